"""Text tokens that people copy from one program into another: tickets, invites, identifiers.

Form: a prefix that names the kind, then lower-case base32 without padding of payload and checksum. The
checksum is four bytes of BLAKE2b keyed by the prefix, so a ticket is never taken for an invite and a
damaged copy is told from a wrong one. White space and line breaks inside a pasted token are ignored.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

from overlay.errors import MalformedError

CHECKSUM_BYTES = 4

_DAMAGED = "this token is damaged: copy it again, whole"


def base32(data: bytes) -> str:
    """Lower-case base32 (RFC 4648) without padding."""
    return base64.b32encode(data).decode("ascii").rstrip("=").lower()


def unbase32(text: str) -> bytes:
    """The inverse of `base32`; upper case is accepted.

    Raises:
        MalformedError: a character that is not base32, a length that base32 never has, or bits left over.
    """
    padded = text.upper() + "=" * (-len(text) % 8)
    try:
        data = base64.b32decode(padded)
    except (binascii.Error, ValueError) as error:
        raise MalformedError("not base32 text") from error
    if base32(data) != text.lower():
        raise MalformedError("not base32 text in its shortest form")
    return data


def format_token(prefix: str, payload: bytes) -> str:
    """Write `payload` as a token of the kind that `prefix` names."""
    return prefix + base32(payload + _checksum(prefix, payload))


def parse_token(prefix: str, text: str, *, limit: int) -> bytes:
    """Read a token back into its payload.

    Args:
        prefix: the kind that is expected.
        text: what was typed or pasted.
        limit: the most bytes that a legitimate payload has.

    Returns:
        the payload.

    Raises:
        MalformedError: another kind of token, too long, damaged or cut.
    """
    compact = "".join(text.split())
    if not compact.lower().startswith(prefix):
        raise MalformedError(f"this token does not begin with '{prefix}'")
    if len(compact) > len(prefix) + (limit + CHECKSUM_BYTES) * 8 // 5 + 1:
        raise MalformedError("this token is too long")
    try:
        data = unbase32(compact[len(prefix) :])
    except MalformedError as error:  # mistyped, or cut where base32 never ends
        raise MalformedError(_DAMAGED) from error
    payload, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if len(data) <= CHECKSUM_BYTES or checksum != _checksum(prefix, payload):
        raise MalformedError(_DAMAGED)
    return payload


def _checksum(prefix: str, payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=CHECKSUM_BYTES, key=prefix.encode("ascii")).digest()
