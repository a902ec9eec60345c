"""The process that holds a private I2P network: it enters a namespace, runs the routers, and lets SAM in.

Started by `overlay.testing.i2p`. Commands come as JSON lines on standard input, whose end is the end of the
network; what happened goes to standard output in the same way.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from ipaddress import IPv4Interface
from pathlib import Path

import anyio
import msgspec
from anyio.abc import TaskGroup

from overlay.errors import TransportUnavailableError
from overlay.testing.i2p_bridge import Door, Haste
from overlay.testing.i2p_clock import SharedClock, compile_clock
from overlay.testing.i2p_readiness import prove
from overlay.testing.i2p_routers import Place, Router
from overlay.testing.namespace import enter_network_namespace
from overlay.transports.i2p.router import find_i2pd

FLOODFILLS = 3
"""Routers that serve the network database; one that fails leaves two."""

LOOPBACK = IPv4Interface("198.18.0.1/15")
"""What the namespace's loopback interface carries beside 127.0.0.1; see `i2p_routers`."""

START_PACE = 30.0
"""Seconds of the routers' clock to a true one while the network starts."""

SESSION_PACE = 15.0
"""The same while a session is being made: slower, since streams of other sessions run then, and the 10 s for
which a router keeps a caller whom nobody accepts yet are shortened too."""

APART = 0.15
"""True seconds between the starts of two routers: those that dial each other mutually lose connections."""

HASTE_AFTERWARDS = 0.6
"""True seconds for which the clock stays hastened when a session has been made: 9 s of the routers' clock, in
which its lease set is published, and published again where the first time was in vain."""

MAX_COMMAND_BYTES = 4096
"""Bytes of a line on standard input; commands have less than 100."""


class Network(msgspec.Struct, frozen=True):
    """What the process is told when it is started.

    Attributes:
        directory: where the routers keep their files; "" for a temporary one.
        routers: how many routers, those that serve the network database included.
        hasten: whether the clock is hastened while a session is being made.
    """

    directory: str
    routers: int
    hasten: bool


class Command(msgspec.Struct, frozen=True):
    """One line of standard input.

    Attributes:
        do: "kill" or "start" with a router's index, or "pace".
        router: the index of a client router.
        pace: seconds of the routers' clock to a true one.
    """

    do: str
    router: int = 0
    pace: float = 1.0


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of standard output: the network is ready, or a command was done; `failed` says why not.

    Attributes:
        failed: one sentence; "" when it worked.
        directory: where the routers keep their files, when the network is ready.
        addresses: the SAM addresses of the client routers, when the network is ready.
    """

    failed: str = ""
    directory: str = ""
    addresses: tuple[str, ...] = ()


class Keeper:
    """The network, inside its namespace.

    Args:
        directory: where the files are kept; it exists.
        routers: all of them, those that serve the network database first; nothing of them exists yet.
        doors: one for each other router, made outside.
        haste: the pace of their clock.
    """

    def __init__(
        self, directory: Path, routers: Sequence[Router], doors: Sequence[Door], haste: Haste
    ) -> None:
        self._directory = directory
        self._routers = routers
        self._clients = routers[FLOODFILLS:]
        self._doors = doors
        self._haste = haste

    async def run(self) -> None:
        """Start the network, and obey commands until standard input ends; then every router is killed.

        Raises:
            TransportUnavailableError: it did not start; the message names the step. In a group.
        """
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._obey_all, tasks)
                tasks.start_soon(self._haste.run)
                await self._start(tasks)
        finally:
            with anyio.CancelScope(shield=True):
                for router in self._routers:
                    await router.kill()

    async def _start(self, tasks: TaskGroup) -> None:
        self._haste.set_pace(START_PACE)
        try:
            await self._start_routers()
        except TransportUnavailableError:  # i2pd 2.45 can crash
            await self._start_routers()
        self._haste.set_pace(1.0)
        for router in self._routers:
            tasks.start_soon(router.keep_running)
        for index in range(len(self._doors)):
            await self._open_door(index, tasks)
        _say(Event(directory=str(self._directory), addresses=tuple(door.address for door in self._doors)))

    async def _start_routers(self) -> None:
        await self._make_keys()
        for router in self._routers:
            await router.start()
            await anyio.sleep(APART)
        for router in self._routers:
            await router.wait_for_sam()
        await prove([router.place.sam_port for router in self._clients])

    async def _make_keys(self) -> None:
        """Run the routers once, so that each has keys, and tell each about all others."""
        for router in self._routers:
            await router.kill()
            router.place.prepare()
            await router.start()
        infos = [await router.wait_for_info() for router in self._routers]
        for router, own in zip(self._routers, infos, strict=True):
            await router.kill()
            router.place.write_infos(own, infos)

    async def _open_door(self, index: int, tasks: TaskGroup) -> None:
        await tasks.start(self._doors[index].serve, self._clients[index].place.sam_port, self._haste)

    async def _obey_all(self, tasks: TaskGroup) -> None:
        pending = b""
        while True:
            await anyio.wait_readable(sys.stdin)
            if not (data := os.read(sys.stdin.fileno(), MAX_COMMAND_BYTES)):
                tasks.cancel_scope.cancel()
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                _say(await self._obey(msgspec.json.decode(line, type=Command), tasks))

    async def _obey(self, command: Command, tasks: TaskGroup) -> Event:
        match command.do:
            case "kill":
                await self._kill(command.router)
            case "start":
                try:
                    await self._revive(command.router, tasks)
                except TransportUnavailableError as error:
                    return Event(failed=str(error))
            case "pace":
                self._haste.set_pace(command.pace)
        return Event()

    async def _kill(self, index: int) -> None:
        await self._doors[index].shut()
        await self._clients[index].kill()

    async def _revive(self, index: int, tasks: TaskGroup) -> None:
        router = self._clients[index]
        killed = router.killed
        await router.start()
        try:
            await router.wait_for_sam()
        except TransportUnavailableError:
            await self._kill(index)
            raise
        if killed:
            tasks.start_soon(router.keep_running)
            await self._open_door(index, tasks)


def _say(event: Event) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(event) + b"\n")
    sys.stdout.buffer.flush()


async def _keep(network: Network, directory: Path, doors: Sequence[Door]) -> None:
    executable = find_i2pd("i2pd")
    library = await compile_clock(directory)
    with SharedClock(directory / "clock") as clock:
        environment = clock.environment(library)
        routers = [
            Router(Place(number, directory / f"router{number}", number < FLOODFILLS), executable, environment)
            for number in range(network.routers)
        ]
        haste = Haste(clock, SESSION_PACE if network.hasten else None, HASTE_AFTERWARDS)
        await Keeper(directory, routers, doors, haste).run()


def _prepared(directory: Path) -> Path:
    """Make a directory that was given ready for a new network; only routers of an earlier one are removed.

    Raises:
        TransportUnavailableError: it cannot be used.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        earlier = list(directory.glob("router[0-9]*"))
        if foreign := [old for old in earlier if not Place.is_one(old)]:
            raise TransportUnavailableError(
                f"{foreign[0]} is of no private I2P network: choose another directory"
            )
        for old in earlier:
            shutil.rmtree(old)
    except OSError as error:
        raise TransportUnavailableError(f"{directory} cannot be used: {error.strerror}") from error
    return directory


def main() -> None:
    """Run the network that the only argument tells of, as JSON."""
    network = msgspec.json.decode(sys.argv[1], type=Network)
    with ExitStack() as stack:
        try:
            doors = [stack.enter_context(Door()) for _ in range(network.routers - FLOODFILLS)]
            directory = network.directory or stack.enter_context(
                tempfile.TemporaryDirectory(prefix="i2p-", ignore_cleanup_errors=True)
            )
            _prepared(Path(directory))
            enter_network_namespace(LOOPBACK)
            anyio.run(_keep, network, Path(directory), doors)
        except* TransportUnavailableError as group:
            _say(Event(failed=str(_first(group))))


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


if __name__ == "__main__":
    main()
