"""Every public error of the library: whose fault it is, and what can be done.

Errors are split by blame, so that a caller can decide without reading text:
`MalformedError` is the caller's own, `TransportUnavailableError` the local proxy's,
`UnreachableError` the network's, `ProtocolViolationError` and `VerificationError` the peer's.
The message of each is one sentence that says what is wrong and, where something can be done, what.
`code` is the stable word under which an error travels over the control API and between nodes.
"""

from __future__ import annotations

from typing import ClassVar


class OverlayError(Exception):
    """Something the library was asked to do did not happen."""

    code: ClassVar[str] = "failure"


class MalformedError(OverlayError, ValueError):
    """Input does not have the form that it must have: text that was typed, or bytes that arrived."""

    code = "malformed"


class NotRunningError(OverlayError):
    """No node runs on this home."""

    code = "not-running"


class TransportUnavailableError(OverlayError):
    """The local side of a transport does not work: no proxy, wrong password, not bootstrapped."""

    code = "unavailable"


class UnreachableError(OverlayError):
    """A peer could not be reached, or did not answer in time; trying again later can help."""

    code = "unreachable"


class RefusedError(OverlayError):
    """The other side, or a policy of this one, said no."""

    code = "refused"


class NotFoundError(OverlayError, LookupError):
    """What was asked for is not known here, nor to anybody who was asked."""

    code = "not-found"


class VerificationError(OverlayError):
    """A signature, hash or key does not fit what it is said to belong to; nothing of it was kept."""

    code = "verification"


class ProtocolViolationError(OverlayError):
    """The peer broke the protocol; the connection it did so on is closed."""

    code = "protocol"


class ClosedError(OverlayError):
    """The channel, exchange or connection is closed, by either side, and carries nothing more."""

    code = "closed"


class StorageError(OverlayError):
    """The disk or a quota is full, or the database cannot be used; what was acknowledged is kept."""

    code = "storage"


ERRORS_BY_CODE: dict[str, type[OverlayError]] = {
    error.code: error
    for error in (
        OverlayError,
        MalformedError,
        NotRunningError,
        TransportUnavailableError,
        UnreachableError,
        RefusedError,
        NotFoundError,
        VerificationError,
        ProtocolViolationError,
        ClosedError,
        StorageError,
    )
}


def error_from_code(code: str, message: str) -> OverlayError:
    """Rebuild an error that came over the control API or from a peer; an unknown code is a plain failure."""
    return ERRORS_BY_CODE.get(code, OverlayError)(message)
