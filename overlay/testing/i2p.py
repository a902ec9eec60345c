"""A private I2P network in a network namespace of its own, for tests, demonstrations and trying things out.

Three routers that serve the network database and at least five others, all i2pd, on addresses that exist
nowhere else: nothing can leave the namespace, so no router of the public network is ever met. The others are
what clients use; their SAM ports are seen on 127.0.0.1 outside.

i2pd takes 20 s of its clock to make a session. That clock runs thirty times faster while the network starts,
and fifteen times while a session is being made; at other times it is the true one. Linux only. It protects
nobody.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from threading import Lock
from types import TracebackType
from typing import IO, Self, cast

import anyio
from anyio import to_thread
from msgspec import json

from overlay.errors import MalformedError, TransportUnavailableError
from overlay.testing.i2p_namespace import Command, Event, Network
from overlay.testing.i2p_routers import MAX_ROUTERS
from overlay.transports.i2p.router import find_i2pd

DEFAULT_ROUTERS = 8
"""Three that serve the network database and five others: enough for tunnels of one to three hops."""

MIN_PACE, MAX_PACE = 0.01, 100.0
"""Seconds of the routers' clock to a true one; at 60 they were still seen to work."""

END_TIMEOUT = 10.0
"""Seconds for everything to end, which takes about 0.1 s, before it is killed."""

_ENDED = "the private I2P network has ended"


class PrivateI2pNetwork:
    """A private I2P network for the length of an `async with` block.

    Entering takes about 3 s: it waits until bytes went both ways between all client routers. Leaving, also by
    cancellation, ends every process; so does the end of this process, even by SIGKILL. The methods may be
    called from any event loop, and from several at once.

    Args:
        directory: where the routers keep their files; by default a new temporary one. Routers of an earlier
            run in it are replaced.
        routers: how many routers there are, at least 8.
        hasten: whether the routers' clock is hastened while a session is being made; without that, a session
            takes 20 s or more, as on the public network.

    Attributes:
        directory: where the routers keep their files.
        sam_addresses: the SAM addresses of the client routers, as `127.0.0.1:PORT`; five of eight.
    """

    directory: Path
    sam_addresses: tuple[str, ...]

    def __init__(
        self, directory: Path | None = None, routers: int = DEFAULT_ROUTERS, *, hasten: bool = True
    ) -> None:
        self._network = Network(str(directory.absolute()) if directory else "", routers, hasten)
        self._lock = Lock()
        self._keeper: _Keeper | None = None

    async def __aenter__(self) -> Self:
        """Start the network.

        Raises:
            TransportUnavailableError: i2pd or a C compiler is not installed, this system lets the user make
                no namespace, the directory cannot be used, or a step of starting failed; the message names
                the step.
        """
        if not DEFAULT_ROUTERS <= self._network.routers <= MAX_ROUTERS:
            raise TransportUnavailableError(
                f"a private I2P network has {DEFAULT_ROUTERS} to {MAX_ROUTERS} routers"
            )
        if not sys.platform.startswith("linux"):
            raise TransportUnavailableError(
                "a private I2P network needs Linux: it lives in a network namespace"
            )
        find_i2pd("i2pd")
        try:
            self._keeper = await to_thread.run_sync(_Keeper, self._network)
            ready = await self._talk(self._keeper.read)
        except BaseException:
            await self._end()
            raise
        self.directory, self.sam_addresses = Path(ready.directory), ready.addresses
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the network."""
        await self._end()

    async def kill_router(self, index: int) -> None:
        """Kill a client router with SIGKILL; its SAM address refuses connections from then on.

        Does nothing when it is not running. Cancelled, it may have been killed or not.

        Args:
            index: which of `sam_addresses` it serves.

        Raises:
            MalformedError: there is no such router.
            TransportUnavailableError: the network has ended.
        """
        await self._command("kill", index)

    async def start_router(self, index: int) -> None:
        """Start a killed router again, with the same files and SAM address, and wait until that answers.

        One that ends by itself is started again without being asked for. Cancelled, it may have been started
        or not.

        Args:
            index: which of `sam_addresses` it serves.

        Raises:
            MalformedError: there is no such router.
            TransportUnavailableError: it does not start, or the network has ended.
        """
        await self._command("start", index)

    async def set_pace(self, pace: float) -> None:
        """Let the routers' clock run at another pace when no session is being made.

        Args:
            pace: seconds of their clock to a true one, 0.01 to 100; 1 after the network's start.

        Raises:
            MalformedError: the pace is out of range.
            TransportUnavailableError: the network has ended.
        """
        if not MIN_PACE <= pace <= MAX_PACE:
            raise MalformedError(f"the pace of the routers' clock is {MIN_PACE} to {MAX_PACE}")
        await self._talk(partial(self._ask, Command("pace", pace=pace)))

    async def _command(self, do: str, index: int) -> None:
        if not 0 <= index < len(self.sam_addresses):
            raise MalformedError(f"client routers are numbered 0 to {len(self.sam_addresses) - 1}")
        await self._talk(partial(self._ask, Command(do, router=index)))

    async def _talk(self, work: Callable[[], Event]) -> Event:
        """Talk to the keeper in a thread: the network belongs to no event loop.

        Cancelled, the thread goes on until it has its answer, so that no answer is taken for another's.

        Raises:
            TransportUnavailableError: what was asked for did not happen.
        """
        event = await to_thread.run_sync(self._one_at_a_time, work, abandon_on_cancel=True)
        if event.failed:
            raise TransportUnavailableError(event.failed)
        return event

    def _one_at_a_time(self, work: Callable[[], Event]) -> Event:
        with self._lock:
            return work()

    def _ask(self, command: Command) -> Event:
        return self._keeper.ask(command) if self._keeper else Event(failed=_ENDED)

    async def _end(self) -> None:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(self._end_keeper)

    def _end_keeper(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.end()  # whoever waits for its answer has it now, and lets go of the lock
            with self._lock:
                keeper.close()


class _Keeper:
    """The process that holds the network; its methods block."""

    def __init__(self, network: Network) -> None:
        self._errors = TemporaryFile()  # noqa: SIM115 - for the life of the process
        command = [sys.executable, "-m", "overlay.testing.i2p_namespace", json.encode(network).decode()]
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # a Ctrl-C on the terminal is for us, and we end it in order
        )
        # Given as pipes, they are there.
        self._input, self._output = cast("tuple[IO[bytes], ...]", (self._process.stdin, self._process.stdout))

    def ask(self, command: Command) -> Event:
        with suppress(BrokenPipeError):  # what it said before it ended tells why
            self._input.write(json.encode(command) + b"\n")
            self._input.flush()
        return self.read()

    def read(self) -> Event:
        if line := self._output.readline():
            return json.decode(line, type=Event)
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return Event(failed=f"{_ENDED}: {said[-1]}" if said else _ENDED)

    def end(self) -> None:
        with suppress(BrokenPipeError):  # it has ended, and never read the last command
            self._input.close()
        try:
            self._process.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        self._output.close()
        self._errors.close()
