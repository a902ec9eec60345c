"""What nodes say to each other inside an exchange of a channel. Pure.

An exchange carries one `Request`, then as many raw *parts* as the caller has, then the caller's finish.
The other side sends one `Answer`, then as many raw parts as it has, then its finish.
Specification: docs/spec/messages.md.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from overlay.errors import (
    NotFoundError,
    OverlayError,
    RefusedError,
    StorageError,
    TransportUnavailableError,
    UnreachableError,
)
from overlay.wire.codec import Message

MAX_PART_BYTES = 65_536
"""One message of an exchange: holds the largest chunk (32 KiB) and a page of history."""

MAX_BODY_BYTES = MAX_PART_BYTES - 1_024
"""Leaves room for the other fields of a request or an answer, which take less than 800 bytes."""

MAX_ERROR_CHARACTERS = 256

Kind = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Body = Annotated[bytes, msgspec.Meta(max_length=MAX_BODY_BYTES)]
Correlation = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Sentence = Annotated[str, msgspec.Meta(max_length=MAX_ERROR_CHARACTERS)]
Code = Annotated[str, msgspec.Meta(max_length=32)]


class Request(Message, frozen=True):
    """A push or a pull of one kind.

    With a correlation the caller does not wait for the answer in this exchange: the other side confirms at
    once and pushes a `LateAnswer` over any connection when it has one.
    """

    kind: Kind
    body: Body = b""
    correlation: Correlation | None = None


class Answer(Message, frozen=True):
    """What came of a request: an empty `code` is success, otherwise it is the code of an error."""

    code: Code = ""
    text: Sentence = ""
    body: Body = b""

    @classmethod
    def of_error(cls, error: OverlayError) -> Answer:
        """Tell the peer of an error of ours; only its own sentence is told.

        What the disk or a local proxy said stays here: it names paths, and so perhaps the user.
        """
        if isinstance(error, (StorageError, TransportUnavailableError)):
            return cls(code=error.code, text="this node has a difficulty of its own: try again later")
        return cls(code=error.code, text=str(error)[:MAX_ERROR_CHARACTERS])

    def result(self) -> bytes:
        """The body.

        Raises:
            NotFoundError: the peer does not have it.
            UnreachableError: the peer could not reach somebody it needed.
            RefusedError: every other code, because whatever a peer blames is its own view.
        """
        match self.code:
            case "":
                return self.body
            case NotFoundError.code:
                raise NotFoundError(f"the other node does not have it: {self.text}")
            case UnreachableError.code:
                raise UnreachableError(f"the other node could not reach a third: {self.text}")
            case _:
                raise RefusedError(f"the other node refused: {self.text}")


class LateAnswer(Message, frozen=True):
    """The body of a push of kind `reply`: the answer to an earlier request with this correlation."""

    correlation: Correlation
    answer: Answer


LATE_ANSWER_KIND = "reply"
"""The kind under which a `LateAnswer` is pushed."""
