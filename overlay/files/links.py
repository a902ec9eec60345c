"""What a person copies to hand a file or a folder to somebody: an ERIS URN, and where it is to be had. Pure.

`urn:eris:…` alone is a whole link, here and in every other ERIS implementation. What only this network
understands stands behind it as an r-component (RFC 8141), so that the URN in front of it stays what it is.

Source: docs/spec/files.md, section "Links".
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Annotated, Literal, Self

from msgspec import Meta

from overlay.errors import MalformedError
from overlay.locators import MAX_RECORD_BYTES
from overlay.units.capability import ReadCapability, tree_shape
from overlay.wire.codec import Count, Message, decode, encode
from overlay.wire.filenames import MAX_NAME_BYTES, safe_basename
from overlay.wire.tokens import CHECKSUM_BYTES, base32, unbase32

MAX_PROVIDERS = 8
"""Providers of a link: a circuit each is all that a fetch opens, and 8 records have 5 KB as text."""
MAX_CONTENT_BYTES = 2**63 - 1
"""Bytes of one content: what files, SQLite and MessagePack readers can count."""
MAX_DETAILS_BYTES = MAX_PROVIDERS * (MAX_RECORD_BYTES + 3) + MAX_NAME_BYTES + 64
"""Bytes of what stands behind the URN, before base32: records with their lengths, name, size, field names."""
MAX_LINK_CHARACTERS = 32768
"""Characters of a link: the longest has 27,000; the rest is for line breaks and for hints of others."""

Kind = Literal["file", "folder"]

_BEGINNING = "urn:eris:"
_CHECKSUM_KEY = b"from"
_DAMAGED = "this link is damaged: copy it again, whole"


class _Details(Message, frozen=True):
    providers: Annotated[
        tuple[Annotated[bytes, Meta(min_length=1, max_length=MAX_RECORD_BYTES)], ...],
        Meta(max_length=MAX_PROVIDERS),
    ] = ()
    name: Annotated[str, Meta(max_length=MAX_NAME_BYTES)] = ""
    size: Count | None = None
    kind: Kind = "file"


@dataclass(frozen=True, slots=True)
class FileLink:
    """A file or folder that can be fetched. It is a secret: whoever has it can read.

    Attributes:
        capability: what to read: the content of a file, or the manifest of a folder.
        providers: encoded locator records of nodes that have it, at most `MAX_PROVIDERS`. They are hints and
            not verified here, because they expire: whoever learns one verifies it.
        name: a name for it, safe to create anywhere; empty if the link says none.
        size: bytes of what `capability` reads, for a folder those of its manifest; None if not said.
        kind: what `capability` reads; a link that says nothing is one of a file.
    """

    capability: ReadCapability
    providers: tuple[bytes, ...] = field(default=(), repr=False)
    name: str = field(default="", repr=False)
    size: int | None = None
    kind: Kind = "file"

    def __post_init__(self) -> None:
        """Refuse what no link can say.

        Raises:
            MalformedError: too many or impossible providers, a name that is not safe, a size that content
                with this capability never has, or an unknown kind.
        """
        if len(self.providers) > MAX_PROVIDERS:
            raise MalformedError(f"a link names at most {MAX_PROVIDERS} providers, not {len(self.providers)}")
        if not all(0 < len(record) <= MAX_RECORD_BYTES for record in self.providers):
            raise MalformedError(f"a provider's record in a link has 1 to {MAX_RECORD_BYTES} bytes")
        if self.name and safe_basename(self.name) != self.name:
            raise MalformedError("the name in a link is not safe to create a file under")
        if self.size is not None:
            _check_size(self.size, self.capability)
        if self.kind not in {"file", "folder"}:
            raise MalformedError("a link is one of a file or of a folder")

    @property
    def urn(self) -> str:
        """The text form; `capability.urn` where nothing else is known. Like that, it is never `str()`."""
        details = encode(_Details(providers=self.providers, name=self.name, size=self.size, kind=self.kind))
        if details == encode(_Details()):
            return self.capability.urn
        return f"{self.capability.urn}?+from={base32(details + _checksum(self.capability, details))}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a link that somebody typed or pasted: any case, white space and line breaks anywhere.

        Raises:
            MalformedError: not a link, too long, damaged or cut, out of bounds, or one that asks for a part
                or a form of the content (q-component or f-component).
        """
        if len(text) > MAX_LINK_CHARACTERS:
            raise MalformedError("this link is too long")
        compact = "".join(text.split())
        if "#" in compact or "?=" in compact:
            raise MalformedError("a link asks for the whole content: leave out what follows '?=' or '#'")
        name, mark, hints = compact.partition("?+")
        capability = _read_capability(name)
        details = _read_details(capability, hints) if mark else _Details()
        return cls(capability, details.providers, details.name, details.size, details.kind)


def _read_capability(name: str) -> ReadCapability:
    if not name.lower().startswith(_BEGINNING):
        raise MalformedError(f"this is no link: one begins with '{_BEGINNING}'")
    try:
        return ReadCapability.parse(name)
    except MalformedError as error:
        raise MalformedError(_DAMAGED) from error


def _check_size(size: int, capability: ReadCapability) -> None:
    if not 0 <= size <= MAX_CONTENT_BYTES:
        raise MalformedError("the size in a link is not one that a file can have")
    if tree_shape(size, capability.block_size)[1] != capability.level:
        raise MalformedError(f"content of {size} bytes does not fit the read capability of its link")


def _read_details(capability: ReadCapability, hints: str) -> _Details:
    """Find our own parameter among those of the r-component; others are hints for other programs.

    Raises:
        MalformedError: a parameter without name or value, ours twice, or damaged.
    """
    parameters = [hint.partition("=") for hint in hints.split("&")]
    if not all(name and mark for name, mark, _ in parameters):
        raise MalformedError(_DAMAGED)
    values = [value for name, _, value in parameters if name.lower() == "from"]
    if len(values) > 1:
        raise MalformedError("a link says only once where its content comes from")
    return _open_details(capability, values[0]) if values else _Details()


def _open_details(capability: ReadCapability, value: str) -> _Details:
    """Read our own parameter.

    Raises:
        MalformedError: it is damaged, belongs to another capability, or is out of its bounds.
    """
    try:
        data = unbase32(value)
    except MalformedError as error:  # mistyped, or cut where base32 never ends
        raise MalformedError(_DAMAGED) from error
    details, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if checksum != _checksum(capability, details):
        raise MalformedError(_DAMAGED)
    return decode(_Details, details, limit=MAX_DETAILS_BYTES)


def _checksum(capability: ReadCapability, details: bytes) -> bytes:
    """Cover the capability too: alone it has none, and what was mistyped is looked for in vain."""
    data = capability.to_bytes() + details
    return hashlib.blake2b(data, digest_size=CHECKSUM_BYTES, key=_CHECKSUM_KEY).digest()
