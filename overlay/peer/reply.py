"""The building block *reply*: bring the answer to an earlier request, over a connection of its own.

Answers within the exchange that asked are given by `overlay.peer.accept`; this block is for requests that
carry a correlation, where the asking connection may be gone by the time there is something to say.
"""

from __future__ import annotations

from overlay.errors import MalformedError
from overlay.identity import NodeIdentifier
from overlay.peer.messages import LATE_ANSWER_KIND, MAX_BODY_BYTES, Answer, LateAnswer
from overlay.peer.push import Push
from overlay.wire.codec import encode


class Reply:
    """Sends late answers."""

    def __init__(self, push: Push) -> None:
        self._push = push

    async def __call__(self, node: NodeIdentifier, correlation: bytes, answer: Answer) -> None:
        """Push `answer` to `node` under `correlation` (16 bytes).

        Raises:
            MalformedError: the answer's body is too long to travel inside a push.
            NotFoundError: the node does not wait for it any more, or cannot be found.
            RefusedError, UnreachableError, VerificationError: see `Push`.
        """
        body = encode(LateAnswer(correlation=correlation, answer=answer))
        if len(body) > MAX_BODY_BYTES:
            raise MalformedError(f"a late answer of {len(body)} bytes is longer than {MAX_BODY_BYTES}")
        await self._push(node, LATE_ANSWER_KIND, body)
