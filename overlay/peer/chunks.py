"""Storing chunks at other nodes, and fetching them: the wire side of the building block *storage manager*.

A node that stores a chunk can neither read it nor tell its length (see `overlay.units.eris`), and every
chunk is verified against its reference on both sides. Fetching is open to anonymous callers, because who
has a reference has the right to the chunk, and nobody needs to learn who reads what.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Container, Sequence
from contextlib import aclosing
from typing import Protocol

from overlay.channel.driver import Channel
from overlay.errors import MalformedError, NotFoundError, RefusedError, UnreachableError, VerificationError
from overlay.identity import NodeIdentifier
from overlay.peer.accept import Accept, Delivery, Reply
from overlay.peer.limits import Limiter
from overlay.peer.links import Lane
from overlay.peer.places import Place, Places
from overlay.peer.pull import Pull
from overlay.peer.push import Push
from overlay.peer.reputation import ReputationManager
from overlay.peer.storage import StorageManager
from overlay.units.eris import chunk_reference, valid_chunk_size

STORE = "chunks.store"
FETCH = "chunks.fetch"
UNFOLD = "chunks.unfold"

BATCH_CHUNKS = 64
"""Chunks that one request stores or fetches: 2 MiB of the large size, some seconds over a slow circuit."""

REFERENCE_BYTES = 32

MAX_UNFOLDED = 8
"""Nodes beneath a root have numbers below it by which they can be asked for: with the large size they lead to
112 MiB. Of longer content the rest is fetched beside the first leaves."""

MAX_STORES = 16
"""Requests whose chunks are gathered here at once, up to 2 MiB for each."""

MAX_STORES_OF_CHANNEL = 4
"""Of those, the ones of one channel."""

STORE_PATIENCE = 20.0
"""Seconds that a request to store waits here until others are done: 2 MiB take less over most circuits."""

STORE_SECONDS = 15.0
"""Seconds that a request to store may leave this node waiting for its chunks in all, while others wait,
beside those that its chunks take at `STORE_RATE`: who sends one now and then would keep a place for long."""

STORE_RATE = 32 * 1024
"""Bytes per second of a caller who is never too slow: a twentieth of what one circuit carries."""

_READ_CHUNKS = 8
"""Chunks read at once, in one step of a thread: a caller who takes nothing holds up no more than these, so
all who may be served at once 32 MiB."""


_WRONG_CHUNK = "a node sent a chunk that is not the one that was asked for"

Take = Callable[[bytes, bytes], Awaitable[None]]
"""Given a reference and its chunk."""


Unfold = Callable[[bytes, int], Awaitable[bytes | None]]
"""Given the reference of a root above further nodes, and a number: gives that one of the nodes it names, the
first being 1; None where it is not known."""


class Lookup(Protocol):
    """What a source knows of the chunks of one request."""

    async def get(self, references: Sequence[bytes]) -> Sequence[bytes | None]:
        """Give for each reference its chunk, or None; each chunk given fits its reference."""
        ...


class ChunkSource(Lookup, Protocol):
    """Something else that has chunks for others, beside what is stored here."""

    async def look_up(self, references: Sequence[bytes]) -> Lookup:  # noqa: ARG002 - for those that do
        """Prepare for all chunks of a request, which are then got a few at a time, so that none is held yet.

        That pays where finding many at once costs less than finding a few several times.
        """
        return self


class Chunks:
    """Stores and fetches chunks elsewhere, and keeps those that others bring.

    Args:
        push, pull, accept: blocks of this node.
        storage: where chunks of others are kept here.
        reputation: notes who refuses to store something, which is asked under this node's name; nothing of
            whom it fetches from, which happens anonymously.
        clock: seconds since 1970.

    Attributes:
        sources: asked in turn, when somebody fetches, for chunks that are not in `storage`.
        unfolding: asked in turn, when somebody asks for a chunk of a tree by its number.
        up: limits the bytes of chunks that others get from here, fetched by them or stored at them.
        down: limits the bytes of chunks that this node fetches.
    """

    def __init__(
        self,
        *,
        push: Push,
        pull: Pull,
        accept: Accept,
        storage: StorageManager,
        reputation: ReputationManager,
        clock: Callable[[], float],
    ) -> None:
        self._push = push
        self._pull = pull
        self._storage = storage
        self._reputation = reputation
        self._clock = clock
        self._stores = Places(
            MAX_STORES, each=MAX_STORES_OF_CHANNEL, patience=STORE_PATIENCE, whole=STORE_SECONDS
        )
        self.sources: list[ChunkSource] = []
        self.unfolding: list[Unfold] = []
        self.up = Limiter()
        self.down = Limiter()
        accept.register(STORE, self._receive_store)
        accept.register(FETCH, self._receive_fetch, anonymous=True)
        accept.register(UNFOLD, self._receive_unfold, anonymous=True)

    async def store(self, node: NodeIdentifier, chunks: Sequence[bytes]) -> None:
        """Have `node` keep at most `BATCH_CHUNKS` chunks; when this returns they are on its disk.

        Raises:
            RefusedError: it does not take them, for example because its quota is used up, which counts when
                nodes are chosen next; or this node may not dial it.
            UnreachableError, NotFoundError, VerificationError: see `Push`.
            MalformedError: too many at once.
        """
        if len(chunks) > BATCH_CHUNKS:
            raise MalformedError(f"at most {BATCH_CHUNKS} chunks are stored at once")
        # Before anything is asked: the node has to answer soon after the request was begun.
        for chunk in chunks:
            await self.up.pass_on(len(chunk), node)
        asked = False

        def parts() -> AsyncGenerator[bytes, None]:
            nonlocal asked
            asked = True
            return _each(chunks)

        try:
            await self._push(node, STORE, lane=Lane.BULK, parts=parts)
        except RefusedError:
            if asked:  # else this node refused to dial, which is not the other's doing
                self._reputation.note(node, "refused", self._clock())
            raise

    async def fetch(self, node: NodeIdentifier, references: Sequence[bytes]) -> dict[bytes, bytes]:
        """Ask `node`, without showing who asks, for at most `BATCH_CHUNKS` chunks.

        Returns:
            those that it has, by reference, verified.

        Raises:
            VerificationError: it sent a chunk that does not fit.
            RefusedError, UnreachableError, NotFoundError: see `Pull`.
            MalformedError: too many at once.
        """

        async def consume(parts: AsyncIterator[bytes]) -> dict[bytes, bytes]:
            found: dict[bytes, bytes] = {}
            async with aclosing(_in_order(references, parts)) as chunks:
                async for reference, chunk in chunks:
                    await self.down.pass_on(len(chunk))
                    if chunk_reference(chunk) != reference:
                        raise VerificationError(_WRONG_CHUNK)
                    found[reference] = chunk
            return found

        body = _fetch_body(references)
        return await self._pull.parts(node, FETCH, body, consume, lane=Lane.ANONYMOUS)

    async def fetch_over(self, channel: Channel, references: Sequence[bytes], take: Take) -> None:
        """Ask as `fetch` does, over one channel to a node, and hand on each chunk as soon as it is here.

        Args:
            channel: a circuit; see `ChannelPool.circuit`.
            references: at most `BATCH_CHUNKS`.
            take: awaited for each chunk that the node says it has. It verifies the chunk, and raises
                `VerificationError` where that fails; what it raises ends the request.

        Raises:
            VerificationError: the node sent a chunk that does not fit, or too many.
            UnreachableError: the channel ended, or the node stopped, before it had answered for every chunk.
            RefusedError, NotFoundError: the node's answer.
            MalformedError: too many at once.
        """

        async def consume(parts: AsyncIterator[bytes]) -> None:
            async with aclosing(_in_order(references, parts)) as chunks:
                async for reference, chunk in chunks:
                    await self.down.pass_on(len(chunk))
                    await take(reference, chunk)

        await self._pull.parts_over(channel, FETCH, _fetch_body(references), consume)

    async def unfold_over(self, channel: Channel, root: bytes, number: int) -> bytes:
        """Ask for a chunk whose reference is not known yet: that saves waiting for the chunk that names it.

        Args:
            channel: as for `fetch_over`.
            root: reference of the root of a tree.
            number: of the node, see `Unfold`; above 0 and below `MAX_UNFOLDED`.

        Returns:
            what the node says it is. Nothing was verified: that needs the chunks above it.

        Raises:
            NotFoundError: the node does not know; it may have the chunk all the same.
            VerificationError: it sent something that is no chunk, or several.
            UnreachableError: the channel ended, or the node stopped, before it had answered.
            RefusedError: the node's answer.
        """

        async def consume(parts: AsyncIterator[bytes]) -> bytes:
            found: bytes | None = None
            async for part in parts:
                if found is not None or (part and not valid_chunk_size(len(part))):
                    raise VerificationError(_WRONG_CHUNK)
                found = part
            if found is None:
                raise VerificationError(_WRONG_CHUNK)
            if not found:
                raise NotFoundError("that node does not know the tree")
            await self.down.pass_on(len(found))
            return found

        return await self._pull.parts_over(channel, UNFOLD, root + bytes((number,)), consume)

    async def _receive_store(self, delivery: Delivery) -> None:
        chunks: list[bytes] = []
        try:
            async with self._stores.take(delivery.channel) as place:
                await self._take_chunks(delivery, place, chunks)
                await self._storage.put(chunks, now=self._clock())
        finally:
            chunks.clear()  # an error keeps this frame alive until it is collected, which can be much later

    async def _take_chunks(self, delivery: Delivery, place: Place, chunks: list[bytes]) -> None:
        """Gather the chunks of a request to store.

        Raises:
            MalformedError: they are no chunks, or too many.
        """
        async with aclosing(delivery.parts()) as parts:
            while True:
                with place.standing_still():
                    part = await anext(parts, None)
                if part is None:
                    return
                if len(chunks) == BATCH_CHUNKS or not valid_chunk_size(len(part)):
                    raise MalformedError(f"at most {BATCH_CHUNKS} chunks of a valid size are stored at once")
                chunks.append(part)
                place.moved(len(part) / STORE_RATE)

    async def _receive_fetch(self, delivery: Delivery) -> Reply:
        size = len(delivery.body)
        if size % REFERENCE_BYTES or not 0 < size <= BATCH_CHUNKS * REFERENCE_BYTES:
            raise MalformedError("a request for chunks lists 1 to 64 references of 32 bytes")
        references = [delivery.body[i : i + REFERENCE_BYTES] for i in range(0, size, REFERENCE_BYTES)]
        return Reply(parts=self._found(references), together=_READ_CHUNKS, count=len(references), up=self.up)

    async def _receive_unfold(self, delivery: Delivery) -> Reply:
        root, number = delivery.body[:REFERENCE_BYTES], delivery.body[REFERENCE_BYTES:]
        if len(number) != 1 or not 0 < number[0] < MAX_UNFOLDED:
            raise MalformedError(
                "a node of a tree is named by the reference of its root and a number of 1 to 7"
            )
        # Looked for in its turn, as all chunks are: who asks for much and takes nothing costs nothing.
        return Reply(parts=self._unfolded(root, number[0]), count=1, up=self.up)

    async def _unfolded(self, root: bytes, number: int) -> AsyncGenerator[bytes, None]:
        for unfold in self.unfolding:
            chunk = await unfold(root, number)
            if chunk is not None:
                yield chunk
                return
        yield b""

    async def _found(self, references: Sequence[bytes]) -> AsyncGenerator[bytes, None]:
        lookups = await self._look_up(references)
        for start in range(0, len(references), _READ_CHUNKS):
            found = deque(await _gather(lookups, references[start : start + _READ_CHUNKS]))
            while found:
                yield found.popleft() or b""  # held here no more, while others have their turn

    async def _look_up(self, references: Sequence[bytes]) -> Sequence[Lookup]:
        """Ask once for each request, not for each few chunks: every question is a step of a thread."""
        there = await self._storage.has(references)
        stored = {reference for reference, is_there in zip(references, there, strict=True) if is_there}
        if all(there):
            return [self._storage, *self.sources]
        sources = [await source.look_up(references) for source in self.sources]
        return [_Stored(self._storage, stored), *sources]


class _Stored:
    """What is stored of a request, for which the storage was looked through already."""

    def __init__(self, storage: StorageManager, stored: Container[bytes]) -> None:
        self._storage = storage
        self._stored = stored

    async def get(self, references: Sequence[bytes]) -> Sequence[bytes | None]:
        if not any(reference in self._stored for reference in references):
            return [None] * len(references)
        return await self._storage.get(references)


async def _gather(lookups: Sequence[Lookup], references: Sequence[bytes]) -> Sequence[bytes | None]:
    """Ask each in turn for what those before it do not have."""
    found: list[bytes | None] = [None] * len(references)
    for lookup in lookups:
        missing = [place for place, chunk in enumerate(found) if chunk is None]
        if not missing:
            break
        more = await lookup.get([references[place] for place in missing])
        for place, chunk in zip(missing, more, strict=True):
            found[place] = chunk
    return found


async def _in_order(
    references: Sequence[bytes], parts: AsyncIterator[bytes]
) -> AsyncGenerator[tuple[bytes, bytes], None]:
    """Say which chunk each part is meant to be; those that a node does not have are left out.

    Raises:
        VerificationError: there are more parts than references.
        UnreachableError: there are less.
    """
    answered = 0
    async for part in parts:
        if answered >= len(references):
            raise VerificationError(_WRONG_CHUNK)
        if part:
            yield references[answered], part
        answered += 1
    if answered < len(references):
        raise UnreachableError("a node stopped before it had answered for every chunk")


def _fetch_body(references: Sequence[bytes]) -> bytes:
    if len(references) > BATCH_CHUNKS:
        raise MalformedError(f"at most {BATCH_CHUNKS} chunks are fetched at once")
    return b"".join(references)


async def _each(chunks: Sequence[bytes]) -> AsyncGenerator[bytes, None]:
    for chunk in chunks:
        yield chunk
