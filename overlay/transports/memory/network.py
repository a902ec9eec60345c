"""The place where in-memory transports meet."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import anyio
from anyio.abc import ByteStream
from anyio.lowlevel import checkpoint

from overlay.errors import TransportUnavailableError, UnreachableError
from overlay.locators import NodeLocator, memory_locator
from overlay.transports.memory.conditions import Conditions, LinkConditions, PerfectConditions
from overlay.transports.memory.pipe import Change, MemoryStream, Pipe

MAX_WAITING = 128
"""Connections of one listener that nobody has accepted yet; further dials are refused. The usual backlog of a
listening socket."""


class Link:
    """A connection, as the network sees it: who dialled whom, and both directions.

    Args:
        caller: number of the transport that dialled.
        called: number of the transport that listens.
        conditions: what happens to this connection.
        on_over: called when both ends have been closed.
    """

    def __init__(
        self, caller: int, called: int, conditions: LinkConditions, on_over: Callable[[Link], None]
    ) -> None:
        self.caller = caller
        self.called = called
        outward = Pipe(lambda size: conditions.carry(size, outward=True), self.sever)
        inward = Pipe(lambda size: conditions.carry(size, outward=False), self.sever)
        self._pipes = (outward, inward)
        self._on_over = on_over
        self._open_ends = 2
        self.caller_end = MemoryStream(inward, outward, self._end_closed)
        self.called_end = MemoryStream(outward, inward, self._end_closed)

    def sever(self) -> None:
        """Fail both ends at once; nothing that was not yet read arrives."""
        for pipe in self._pipes:
            pipe.break_off()

    def _end_closed(self) -> None:
        self._open_ends -= 1
        if not self._open_ends:
            self._on_over(self)


class Backlog:
    """Connections that wait to be accepted at one number."""

    def __init__(self, on_close: Callable[[], None]) -> None:
        self._waiting: deque[Link] = deque()
        self._on_close = on_close
        self._closed = False
        self._change = Change()

    def offer(self, link: Link) -> bool:
        """Take a connection in, unless too many wait already."""
        if len(self._waiting) >= MAX_WAITING:
            return False
        self._waiting.append(link)
        self._change.announce()
        return True

    async def accept(self) -> ByteStream:
        """Wait for the next connection.

        Raises:
            anyio.ClosedResourceError: closed, before or meanwhile.
        """
        await checkpoint()
        while not self._closed:
            if self._waiting:
                return self._waiting.popleft().called_end
            await self._change.wait()
        raise anyio.ClosedResourceError

    def close(self) -> None:
        """Take no more, and reset what nobody has accepted; closing again does nothing."""
        if self._closed:
            return
        self._closed = True
        self._on_close()
        for link in self._waiting:
            link.sever()
            link.called_end.close()
        self._waiting.clear()
        self._change.announce()


class MemoryNetwork:
    """Joins the in-memory transports that were made with it.

    Args:
        conditions: decides what happens to dials and bytes; perfect by default.
        protocol: what its locators are said to be, and the name of its transports. A node on several
            in-memory networks needs as many: `onion3` and `garlic32` serve for the second and third.
    """

    def __init__(self, conditions: Conditions | None = None, *, protocol: str = "memory") -> None:
        self.protocol = protocol
        self._conditions = conditions or PerfectConditions()
        self._backlogs: dict[int, Backlog] = {}
        self._links: dict[Link, None] = {}  # a set in order of dialling, so that the same run is the same
        self._last_number = 0

    def new_number(self) -> int:
        """Give a number that no transport of this network has been given yet, from 1 up."""
        self._last_number += 1
        return self._last_number

    def locator(self, number: int) -> NodeLocator:
        """The locator of the transport with this number.

        Raises:
            MalformedError: this network's protocol is none of the three.
        """
        if self.protocol == "memory":
            return memory_locator(number)
        return NodeLocator(self.protocol, number.to_bytes(32), port=int(self.protocol == "onion3"))

    @property
    def open_connections(self) -> int:
        """How many connections have an end that was not closed."""
        return len(self._links)

    def listen(self, number: int) -> Backlog:
        """Begin to take connections in at `number`.

        Raises:
            TransportUnavailableError: somebody listens there already.
        """
        if number in self._backlogs:
            raise TransportUnavailableError(f"the memory address {number} is taken by another listener")

        def withdraw() -> None:
            del self._backlogs[number]

        self._backlogs[number] = Backlog(withdraw)
        return self._backlogs[number]

    async def dial(self, caller: int, called: int, *, timeout: float) -> ByteStream:  # noqa: ASYNC109 - see Raises
        """Connect `caller` to whoever listens at `called`.

        Raises:
            UnreachableError: nobody listens there, the conditions refuse, or `timeout` seconds passed.
        """
        conditions = self._conditions.between(caller, called)
        delay = conditions.dial()
        if delay is None:
            raise UnreachableError(f"/memory/{called} cannot be reached from /memory/{caller} at the moment")
        await anyio.sleep(min(delay, timeout))
        if delay > timeout:
            raise UnreachableError(f"/memory/{called} did not answer within {timeout:g} seconds")
        link = Link(caller, called, conditions, self._forget)
        if called not in self._backlogs or not self._backlogs[called].offer(link):
            raise UnreachableError(f"nobody takes connections at /memory/{called}")
        self._links[link] = None
        return link.caller_end

    def sever(self, lost: Callable[[int, int], bool]) -> None:
        """Kill each open connection for which `lost(caller, called)` is true."""
        for link in [link for link in self._links if lost(link.caller, link.called)]:
            link.sever()

    def _forget(self, link: Link) -> None:
        del self._links[link]
