"""Storing chunks at other nodes, and fetching them: the wire side of the building block *storage manager*.

A node that stores a chunk can neither read it nor tell its length (see `overlay.units.eris`), and every
chunk is verified against its reference on both sides. Fetching is open to anonymous callers, because who
has a reference has the right to the chunk, and nobody needs to learn who reads what.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from functools import partial
from typing import Protocol

from overlay.channel.driver import Channel
from overlay.errors import MalformedError, UnreachableError, VerificationError
from overlay.identity import NodeIdentifier
from overlay.peer.accept import Accept, Delivery, Reply
from overlay.peer.limits import Limiter
from overlay.peer.links import Lane
from overlay.peer.places import Places
from overlay.peer.pull import Pull
from overlay.peer.push import Push
from overlay.peer.reputation import ReputationManager
from overlay.peer.storage import StorageManager
from overlay.units.eris import chunk_reference, valid_chunk_size

STORE = "chunks.store"
FETCH = "chunks.fetch"

BATCH_CHUNKS = 64
"""Chunks that one request stores or fetches: 2 MiB of the large size, some seconds over a slow circuit."""

REFERENCE_BYTES = 32

MAX_STORES = 16
"""Requests whose chunks are gathered here at once, up to 2 MiB for each."""

_READ_CHUNKS = 4
"""Chunks read at once: a caller who takes nothing holds up no more than these."""


_WRONG_CHUNK = "a node sent a chunk that is not the one that was asked for"

Take = Callable[[bytes, bytes], Awaitable[None]]
"""Given a reference and its chunk."""


class ChunkSource(Protocol):
    """Something else that has chunks for others, beside what is stored here."""

    async def get(self, references: Sequence[bytes]) -> Sequence[bytes | None]:
        """Give for each reference its chunk, or None; each chunk given fits its reference."""
        ...


class Chunks:
    """Stores and fetches chunks elsewhere, and keeps those that others bring.

    Args:
        push, pull, accept: blocks of this node.
        storage: where chunks of others are kept here.
        reputation: notes who served, and who lied.
        clock: seconds since 1970.

    Attributes:
        sources: asked in turn, when somebody fetches, for chunks that are not in `storage`.
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
        self._stores = Places(MAX_STORES)
        self.sources: list[ChunkSource] = []
        self.up = Limiter()
        self.down = Limiter()
        accept.register(STORE, self._receive_store)
        accept.register(FETCH, self._receive_fetch, anonymous=True)

    async def store(self, node: NodeIdentifier, chunks: Sequence[bytes]) -> None:
        """Have `node` keep at most `BATCH_CHUNKS` chunks; when this returns they are on its disk.

        Raises:
            RefusedError: it does not take them, for example because its quota is used up.
            UnreachableError, NotFoundError, VerificationError: see `Push`.
            MalformedError: too many at once.
        """
        if len(chunks) > BATCH_CHUNKS:
            raise MalformedError(f"at most {BATCH_CHUNKS} chunks are stored at once")
        # Before anything is asked: the node has to answer soon after the request was begun.
        await self.up.pass_on(sum(map(len, chunks)))
        await self._push(node, STORE, lane=Lane.BULK, parts=partial(_each, chunks))

    async def fetch(self, node: NodeIdentifier, references: Sequence[bytes]) -> dict[bytes, bytes]:
        """Ask `node`, without showing who asks, for at most `BATCH_CHUNKS` chunks.

        Returns:
            those that it has, by reference, verified.

        Raises:
            VerificationError: it sent a chunk that does not fit; its reputation has suffered for it.
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
        with self._judging(node):
            return await self._pull.parts(node, FETCH, body, consume, lane=Lane.ANONYMOUS)

    async def fetch_over(
        self, channel: Channel, node: NodeIdentifier, references: Sequence[bytes], take: Take
    ) -> None:
        """Ask as `fetch` does, over one channel to `node`, and hand on each chunk as soon as it is here.

        Args:
            channel: a circuit; see `ChannelPool.circuit`.
            node: whose reputation it is.
            references: at most `BATCH_CHUNKS`.
            take: awaited for each chunk that the node says it has. It verifies the chunk, and raises
                `VerificationError` where that fails; what it raises ends the request.

        Raises:
            VerificationError: the node sent a chunk that does not fit; its reputation has suffered for it.
            UnreachableError: the channel ended, or the node stopped, before it had answered for every chunk.
            RefusedError, NotFoundError: the node's answer.
            MalformedError: too many at once.
        """

        async def consume(parts: AsyncIterator[bytes]) -> None:
            async with aclosing(_in_order(references, parts)) as chunks:
                async for reference, chunk in chunks:
                    await self.down.pass_on(len(chunk))
                    await take(reference, chunk)

        with self._judging(node):
            await self._pull.parts_over(channel, FETCH, _fetch_body(references), consume)

    @contextmanager
    def _judging(self, node: NodeIdentifier) -> Iterator[None]:
        """Note what a request shows of a node.

        Raises:
            VerificationError: that of the block.
        """
        try:
            yield
        except VerificationError:
            self._reputation.note(node, "lied", self._clock())
            raise
        self._reputation.note(node, "served", self._clock())

    async def _receive_store(self, delivery: Delivery) -> None:
        chunks: list[bytes] = []
        with self._stores.take() as moved:
            async with aclosing(delivery.parts()) as parts:
                async for part in parts:
                    if len(chunks) == BATCH_CHUNKS or not valid_chunk_size(len(part)):
                        raise MalformedError(
                            f"at most {BATCH_CHUNKS} chunks of a valid size are stored at once"
                        )
                    chunks.append(part)
                    moved()
            await self._storage.put(chunks, now=self._clock())

    async def _receive_fetch(self, delivery: Delivery) -> Reply:
        size = len(delivery.body)
        if size % REFERENCE_BYTES or not 0 < size <= BATCH_CHUNKS * REFERENCE_BYTES:
            raise MalformedError("a request for chunks lists 1 to 64 references of 32 bytes")
        references = [delivery.body[i : i + REFERENCE_BYTES] for i in range(0, size, REFERENCE_BYTES)]
        return Reply(parts=self._found(references))

    async def _found(self, references: Sequence[bytes]) -> AsyncGenerator[bytes, None]:
        for start in range(0, len(references), _READ_CHUNKS):
            for chunk in await self._look_up(references[start : start + _READ_CHUNKS]):
                await self.up.pass_on(len(chunk or b""))
                yield chunk or b""

    async def _look_up(self, references: Sequence[bytes]) -> list[bytes | None]:
        found = await self._storage.get(references)
        for source in self.sources:
            missing = [place for place, chunk in enumerate(found) if chunk is None]
            if not missing:
                break
            more = await source.get([references[place] for place in missing])
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
