"""A private Tor network on loopback, for tests, demonstrations and trying things out without internet.

One directory authority and at least three relays: the client's rendezvous circuit has three hops and the
service's four, and four nodes are the fewest that can carry both. The authority's vote is held back until all
descriptors are in, which makes a network in about five seconds instead of half a minute.

Everything it does stays on 127.0.0.1; it protects nobody.

Loopback has no distances, which hides what an onion service's seven links cost. With a delay or a rate, each
relay is reached through a forwarder in front of its port, which makes bytes late and takes no more than told.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio

from overlay.errors import TransportUnavailableError
from overlay.testing.delay_line import Distance
from overlay.testing.distance import open_distance
from overlay.transports.private_files import write_private
from overlay.transports.tor.control import ControlConnection, TorRefusedError
from overlay.transports.tor.process import TorProcess, find_program, launch_tor, quote

MIN_RELAYS = 3
"""Relays beside the authority; with two, services are published and never reached."""

MAX_SOCKET_PATH = 103
"""Bytes of a Unix socket's path: macOS takes 103, Linux 107."""

STEP_TIMEOUT = 60.0
"""Seconds for each step of starting; the longest takes about 3 s on an idle machine."""

REPLY_TIMEOUT = 20.0
"""Seconds for one reply on a control port."""

_POLL = 0.1
_AUTHORITY = "auth0"
_CERTIFICATE_PASSPHRASE = b"private\n"  # tor-gencert wants one; the key signs nothing but this network
_BANDWIDTH_PERIOD = 900  # seconds of one value in tor's bandwidth history
_BANDWIDTH = 20_000_000  # bytes a second; an authority believes 10 MB/s at most
_CACHES = ("cached-certs", "cached-microdesc-consensus", "cached-microdescs*")

COMMON_LINES = (
    "TestingTorNetwork 1",
    "AssumeReachable 1",
    "PathsNeededToBuildCircuits 0.25",
    "V3AuthNIntervalsValid 3",
    "Address 127.0.0.1",
    # The kernel refuses every destination but loopback for sockets bound to it.
    "OutboundBindAddress 127.0.0.1",
    "AddressDisableIPv6 1",
    "NumCPUs 1",
)
"""What every tor of the network has in its configuration, clients included."""

NEARBY_LINES = ("Schedulers Vanilla",)
"""The same in a network without distance: the default scheduler batches, which costs 16 ms for each small
round trip. Where the round trip is that of a real network, so is the scheduler."""

_RELAY_LINES = (
    "AvoidDiskWrites 1",
    "SafeLogging 0",
    "CookieAuthentication 1",
    "SocksPort 0",
    "ExitRelay 0",
    "ExitPolicy reject *:*",
    "ContactInfo none@invalid.test",
    "ServerDNSDetectHijacking 0",
    "ServerDNSAllowBrokenConfig 1",
    "ServerDNSTestAddresses",
)

_AUTHORITY_LINES = (
    "AuthoritativeDirectory 1",
    "V3AuthoritativeDirectory 1",
    "TestingDirAuthVoteGuard *",
    "TestingDirAuthVoteHSDir *",
    "TestingMinExitFlagThreshold 0",
    "AuthDirTestReachability 0",
    "AuthDirTestEd25519LinkKeys 0",
    "TestingV3AuthInitialVotingInterval 1800",
    "TestingV3AuthInitialVoteDelay 2",
    "TestingV3AuthInitialDistDelay 2",
    "V3AuthVotingInterval 300",
    "V3AuthVoteDelay 2",
    "V3AuthDistDelay 2",
)


@dataclass(frozen=True)
class _Node:
    """One tor of the network, running."""

    directory: Path
    process: TorProcess
    control: ControlConnection


class PrivateTorNetwork:
    """A private Tor network for the length of an `async with` block.

    Entering waits until clients can bootstrap; a client that started sooner would sit out tor's back-off.
    Leaving, also by cancellation, ends every process and removes the directory if it was not given.

    Args:
        directory: where the nodes keep their files; by default a new temporary one. Its path must be
            short, because Unix sockets are made in it. Nodes of an earlier run in it are replaced.
        relays: relays beside the authority, at least 3.
        link_delay: seconds that bytes are on their way to a relay, and back, at most 1; of what clients send
            each other through an onion service, seven times.
        link_rate: bytes a second that a relay takes in from those who connected to it, all together, and
            that it sends back to them; None for no limit.
        clock: the wall clock, which tor's voting schedule goes by, in seconds since 1970.

    Raises:
        MalformedError: a delay or a rate that no link can have.

    Attributes:
        directory: where the nodes keep their files.
    """

    directory: Path

    def __init__(
        self,
        directory: Path | None = None,
        relays: int = MIN_RELAYS,
        *,
        link_delay: float = 0.0,
        link_rate: int | None = None,
        clock: Callable[[], float] = time.time,  # noqa: TID251 - tor goes by the same clock
    ) -> None:
        self._distance = Distance(link_delay, link_rate)
        self._given = directory
        self._relays = relays
        self._clock = clock
        self._stack = AsyncExitStack()

    @property
    def client_torrc(self) -> Path:
        """A file with the lines that a tor needs to belong to this network: for `overlay up --torrc`."""
        return self.directory / "client.torrc"

    def seed(self, data_directory: Path) -> None:
        """Copy the network's directory documents into a client's data directory before that client starts.

        It then bootstraps in a fraction of a second, without downloading them. Blocks briefly.
        """
        data_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for pattern in _CACHES:
            for file in (self.directory / _AUTHORITY).glob(pattern):
                shutil.copy(file, data_directory)

    async def __aenter__(self) -> Self:
        """Start the network.

        Raises:
            TransportUnavailableError: tor or tor-gencert is not installed, the directory cannot be used, or
                a step of starting failed; the message names the step.
        """
        if self._relays < MIN_RELAYS:
            raise TransportUnavailableError(f"a private Tor network needs at least {MIN_RELAYS} relays")
        for program in ("tor", "tor-gencert"):
            find_program(program)
        names = [_AUTHORITY, *(f"relay{number}" for number in range(self._relays))]
        async with AsyncExitStack() as stack:
            self.directory = self._given or Path(stack.enter_context(_temporary_directory()))
            _clear(self.directory, names)
            async with AsyncExitStack() as controls:
                nodes = await self._start_nodes(names, stack, controls)
                await _make_consensus(nodes, self._clock)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """End the network."""
        return await self._stack.__aexit__(exc_type, exc, traceback)

    async def _start_nodes(
        self, names: Sequence[str], stack: AsyncExitStack, controls: AsyncExitStack
    ) -> list[_Node]:
        """Start all nodes; once more, with other ports, if one does not start."""
        authority = await _make_authority_keys(self.directory / _AUTHORITY)
        try:
            return await self._try_nodes(names, authority, stack, controls)
        except TransportUnavailableError:  # somebody may have taken a port since it was found free
            return await self._try_nodes(names, authority, stack, controls)

    async def _try_nodes(
        self,
        names: Sequence[str],
        authority: _AuthorityKeys,
        stack: AsyncExitStack,
        controls: AsyncExitStack,
    ) -> list[_Node]:
        directory_port, *ports = _free_ports(len(names) + 1)
        async with AsyncExitStack() as attempt:
            advertised = await self._advertise(ports, attempt)
            common = [*COMMON_LINES, *(() if self._distance else NEARBY_LINES)]
            common.append(authority.torrc_line(advertised[0], directory_port))
            write_private(self.client_torrc, "".join(f"{line}\n" for line in common).encode())
            started = []
            for name, *places in zip(names, ports, advertised, strict=True):
                directory = self.directory / name
                lines = _node_lines(
                    directory, [*common, *_port_lines(*places)], directory_port, self._clock()
                )
                _remember_bandwidth(directory, self._clock())
                started.append((directory, await attempt.enter_async_context(launch_tor(lines, directory))))
            nodes = [_Node(*node, await _connect(*node, controls)) for node in started]
            stack.push_async_exit(attempt.pop_all())
        return nodes

    async def _advertise(self, ports: Sequence[int], stack: AsyncExitStack) -> Sequence[int]:
        """Put the distance in front of the relays' ports, and give the ports by which they are known."""
        if not self._distance:
            return ports
        log = self.directory / "distance.log"
        return await stack.enter_async_context(open_distance(self._distance, ports, log))


@dataclass(frozen=True)
class _AuthorityKeys:
    """The two fingerprints by which clients know the authority."""

    identity: str
    relay: str

    def torrc_line(self, port: int, directory_port: int) -> str:
        flags = f"orport={port} no-v2 v3ident={self.identity}"
        return f"DirAuthority {_AUTHORITY} {flags} 127.0.0.1:{directory_port} {self.relay}"


async def _make_authority_keys(directory: Path) -> _AuthorityKeys:
    keys = directory / "keys"
    keys.mkdir(mode=0o700, parents=True)
    await _run(
        "making the authority's keys",
        [find_program("tor-gencert"), "--create-identity-key", "-m", "12", "--passphrase-fd", "0"],
        keys,
    )
    certificate = (keys / "authority_certificate").read_text(encoding="ascii")
    (identity,) = re.findall(r"^fingerprint ([0-9A-F]{40})$", certificate, re.MULTILINE)
    torrc = directory / "torrc"
    lines = [
        f"DataDirectory {quote(directory)}",
        f"Nickname {_AUTHORITY}",
        "ORPort 127.0.0.1:1",
        "SocksPort 0",
    ]
    write_private(torrc, "\n".join([*lines, "Address 127.0.0.1", ""]).encode())
    await _run(
        "making the authority's relay key",
        [
            find_program("tor"),
            "--list-fingerprint",
            "--quiet",
            "-f",
            str(torrc),
            "--defaults-torrc",
            os.devnull,
        ],
        keys,
    )
    relay = (directory / "fingerprint").read_text(encoding="ascii").split()[1]
    return _AuthorityKeys(identity, relay)


async def _run(step: str, command: Sequence[str], directory: Path) -> None:
    with _bounded(step):
        done = await anyio.run_process(
            command, input=_CERTIFICATE_PASSPHRASE, cwd=directory, check=False, stderr=subprocess.STDOUT
        )
    if done.returncode != 0:
        said = done.stdout.decode("utf-8", "replace").strip().splitlines()
        raise TransportUnavailableError(f"the private Tor network failed at {step}: {said[-1:]}")


def _port_lines(port: int, advertised: int) -> list[str]:
    if port == advertised:
        return [f"ORPort 127.0.0.1:{port}"]
    return [f"ORPort 127.0.0.1:{advertised} NoListen", f"ORPort 127.0.0.1:{port} NoAdvertise"]


def _node_lines(directory: Path, common: Sequence[str], directory_port: int, now: float) -> list[str]:
    lines = [
        *common,
        *_RELAY_LINES,
        f"Nickname {directory.name}",
        f"DataDirectory {quote(directory)}",
        f"ControlSocket {quote(directory / 'control.sock')}",
    ]
    if directory.name == _AUTHORITY:
        # An offset that puts the next scheduled vote far off: it is called when all descriptors are in.
        offset = min(int(now) % 1800, 300)
        lines += [*_AUTHORITY_LINES, f"DirPort 127.0.0.1:{directory_port}"]
        lines.append(f"TestingV3AuthVotingStartOffset {offset}")
    return lines


def _remember_bandwidth(directory: Path, now: float) -> None:
    """Have a relay say from the start that it has carried more than an authority believes.

    All then weigh the same in every consensus. By their own measurements, after some minutes one has carried
    something and others have not, and clients would choose that one for every hop.
    """
    ended = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(now))
    lines = [
        f"BWHistory{way}{what} {value}"
        for way in ("Read", "Write")
        for what, value in (
            ("Ends", ended),
            ("Interval", _BANDWIDTH_PERIOD),
            ("Values", _BANDWIDTH_PERIOD * _BANDWIDTH),
            ("Maxima", _BANDWIDTH),
        )
    ]
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(directory / "state", "".join(f"{line}\n" for line in lines).encode())


async def _connect(directory: Path, process: TorProcess, stack: AsyncExitStack) -> ControlConnection:
    control = await process.connect_control(
        directory / "control.sock", start=STEP_TIMEOUT, reply=REPLY_TIMEOUT
    )
    await stack.enter_async_context(control)
    await control.authenticate(None)
    return control


async def _make_consensus(nodes: Sequence[_Node], clock: Callable[[], float]) -> None:
    """Have the authority vote as soon as it knows every node, and every node fetch the result at once."""
    authority = nodes[0]

    async def knows_all() -> bool:
        return (await authority.control.get_info("desc/all-recent")).count("\nrouter ") >= len(nodes) - 1

    await _until("waiting for the relays' descriptors", authority, knows_all)
    # 2 to 3 s ahead: with an interval of 5 s tor shortens both delays to 1 s and needs those 2 s.
    valid_after = int(clock()) + 3
    await authority.control.request(
        f"SETCONF TestingV3AuthInitialVotingInterval=5 TestingV3AuthVotingStartOffset={valid_after % 5}"
    )
    await _until("voting", authority, _has_info(authority, "consensus/valid-after"))
    for node in nodes[1:]:
        await node.control.request("SIGNAL RELOAD")  # ends the back-off of downloads
    for node in nodes:
        await _until("distributing the consensus", node, _has_info(node, "status/enough-dir-info"))


def _has_info(node: _Node, key: str) -> Callable[[], Awaitable[bool]]:
    async def has_info() -> bool:
        try:
            return await node.control.get_info(key) not in {"", "0"}
        except TorRefusedError:  # no consensus yet
            return False

    return has_info


async def _until(step: str, node: _Node, condition: Callable[[], Awaitable[bool]]) -> None:
    with _bounded(step, node):
        while not await condition():  # noqa: ASYNC110 - tor has no event for these
            await anyio.sleep(_POLL)


@contextmanager
def _bounded(step: str, node: _Node | None = None) -> Iterator[None]:
    try:
        with anyio.fail_after(STEP_TIMEOUT):
            yield
    except TimeoutError as error:
        log = f"; {node.directory.name} said: {node.process.reason()}" if node else ""
        raise TransportUnavailableError(
            f"the private Tor network did not get past {step} within {STEP_TIMEOUT:.0f} s{log}"
        ) from error


def _temporary_directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="tor-", ignore_cleanup_errors=True)


def _clear(directory: Path, names: Sequence[str]) -> None:
    """Make the directory ready for a new network.

    Raises:
        TransportUnavailableError: its path is too long, or it cannot be used.
    """
    if len(os.fsencode(directory / names[-1] / "control.sock")) > MAX_SOCKET_PATH:
        raise TransportUnavailableError(
            f"the path {directory} is too long for Unix sockets: give a directory with a shorter one"
        )
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in names:
            if (directory / name).exists():
                shutil.rmtree(directory / name)
    except OSError as error:
        raise TransportUnavailableError(f"{directory} cannot be used: {error.strerror}") from error


def _free_ports(count: int) -> list[int]:
    """Find ports that were free a moment ago, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for opened in sockets:
            opened.bind(("127.0.0.1", 0))
        return [opened.getsockname()[1] for opened in sockets]
