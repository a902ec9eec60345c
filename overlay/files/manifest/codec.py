"""The manifest of a folder: what is in it, and what reads each file. Pure.

A manifest is written and read entry by entry, so a million of them need no more memory than the longest
list of names in one folder. Equal folders have equal manifests, byte for byte, and a reader takes nothing
but what a writer writes. That is also what protects the reader: the order of the entries shows duplicates,
files that are folders too and names that other systems take for one, before anything is created.

Source: docs/spec/files.md, section "Manifests".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta

from overlay.errors import MalformedError
from overlay.files.manifest.paths import (
    MAX_DEPTH,
    MAX_NAME_BYTES,
    MAX_PATH_BYTES,
    check_path,
    fold,
    show_path,
)
from overlay.units.capability import CAPABILITY_BYTES, ReadCapability, tree_shape
from overlay.wire.codec import Count, Message, Timestamp, decode, encode

HEADER = b"overlay-folder/1\n"
"""How every manifest begins: what it is, and the version of its format."""
MAX_ENTRIES = 1_000_000
"""Entries of a manifest, and files and folders that they make: a source tree of the largest kind has 100,000
files. A path of 300 bytes can make 128 folders, so those on the way count as well."""
MAX_MANIFEST_BYTES = 256 * 1024 * 1024
"""Bytes of a manifest: a million entries whose paths have 150 bytes."""
MAX_TOTAL_BYTES = 2**63 - 1
"""Bytes of all files together: what SQLite and MessagePack readers can count."""
MAX_ENTRY_BYTES = MAX_PATH_BYTES + 2 * MAX_DEPTH + 256
"""Bytes of an encoded entry: its path, a length for each name, and 130 for all else."""

_LENGTH_BYTES = 2
_END_BYTES = 16


class _EntryBody(Message, frozen=True):
    path: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=MAX_NAME_BYTES)], ...],
        Meta(min_length=1, max_length=MAX_DEPTH),
    ]
    size: Count = 0
    modified: Timestamp = 0
    executable: bool = False
    capability: Annotated[bytes, Meta(max_length=CAPABILITY_BYTES)] = b""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, or a folder in which there is nothing. Other folders follow from the files in them.

    Attributes:
        path: the names from the shared folder down to it.
        capability: reads the file; None for an empty folder.
        size: bytes of the file; 0 for a folder.
        modified: when the file was last changed, seconds since 1970; 0 for a folder.
        executable: whether its owner may execute the file. No other permission is carried.
    """

    path: tuple[str, ...] = field(repr=False)
    capability: ReadCapability | None = None
    size: int = 0
    modified: int = 0
    executable: bool = False

    def __post_init__(self) -> None:
        """Refuse what no manifest can say.

        Raises:
            MalformedError: a path that leaves the folder, cannot be created or shows as something else; a
                size that does not fit the capability; a time out of bounds; details of a folder.
        """
        check_path(self.path)
        if self.capability is None:
            if self.size or self.modified or self.executable:
                raise MalformedError(f"the folder {show_path(self.path)} has details that only files have")
            return
        if not 0 <= self.size <= MAX_TOTAL_BYTES or not 0 <= self.modified < 1 << 53:
            raise MalformedError(f"the size or time of {show_path(self.path)} is out of bounds")
        if tree_shape(self.size, self.capability.block_size)[1] != self.capability.level:
            raise MalformedError(f"the size of {show_path(self.path)} does not fit its read capability")

    @property
    def text(self) -> str:
        """The path as people write it, with slashes."""
        return "/".join(self.path)


def check_manifest_bytes(count: int) -> None:
    """Refuse what is too long for a manifest.

    Raises:
        MalformedError: `count` bytes are more than one may have.
    """
    if count > MAX_MANIFEST_BYTES:
        raise MalformedError(f"the manifest of a folder has more than {MAX_MANIFEST_BYTES} bytes")


def write_manifest(entries: Iterable[Entry]) -> Iterator[bytes]:
    """Write a manifest, piece by piece.

    Args:
        entries: in the order of their paths. Whoever walks through folders, the names in each sorted as
            text, has them in this order.

    Yields:
        pieces of at most `MAX_ENTRY_BYTES` and a few bytes, one for each entry.

    Raises:
        MalformedError: entries that are not in order or clash, or more than a manifest can hold.
    """
    checks = _Checks()
    checks.count(len(HEADER))
    yield HEADER
    for entry in entries:
        body = _encode(entry)
        checks.count(_LENGTH_BYTES + len(body))
        checks.add(entry)
        yield len(body).to_bytes(_LENGTH_BYTES) + body
    end = bytes(_LENGTH_BYTES) + checks.end()
    checks.count(len(end))
    yield end


class ManifestReader:
    """Reads one manifest, fed piece by piece. After an error it is of no more use.

    Entries are given out as they come, before what follows them was seen: whoever creates files goes through
    the whole manifest once before.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._position = 0
        self._begun = False
        self._ended = False
        self._checks = _Checks()

    def feed(self, data: bytes | bytearray | memoryview) -> list[Entry]:
        """Take the next piece, of any length.

        Returns:
            the entries that it completes, in the order of their paths.

        Raises:
            MalformedError: not a manifest, or one that is not written as it must be. Nobody has a better one.
        """
        self._checks.count(len(data))
        self._buffer += data
        entries = list(self._take_entries())
        del self._buffer[: self._position]
        self._position = 0
        return entries

    def finish(self) -> None:
        """Say that nothing follows.

        Raises:
            MalformedError: something is missing.
        """
        if not self._ended:
            raise MalformedError("the manifest of a folder is cut short")

    def _take_entries(self) -> Iterator[Entry]:
        if not self._begun and not self._take_header():
            return
        while not self._ended and (body := self._take_body()) is not None:
            if body:
                entry = _decode(body)
                self._checks.add(entry)
                yield entry
            else:
                self._ended = True
        if self._ended and len(self._buffer) > self._position:
            raise MalformedError("the manifest of a folder goes on after its end")

    def _take_header(self) -> bool:
        if not self._buffer.startswith(HEADER[: len(self._buffer)]):
            raise MalformedError("this is not the manifest of a folder, or one of a newer version")
        self._begun = self._take(len(HEADER)) is not None
        return self._begun

    def _take_body(self) -> bytes | None:
        """Take an entry's bytes; none at the end of the manifest; None as long as something is missing.

        Raises:
            MalformedError: longer than an entry can be, or the end does not fit.
        """
        start = self._position
        head = self._take(_LENGTH_BYTES)
        if head is None:
            return None
        length = int.from_bytes(head)
        if length > MAX_ENTRY_BYTES:
            raise MalformedError(f"an entry of a manifest is longer than the {MAX_ENTRY_BYTES} bytes allowed")
        body = self._take(length or _END_BYTES)
        if body is None:
            self._position = start
        elif not length:
            self._checks.check_end(body)
            return b""
        return body

    def _take(self, length: int) -> bytes | None:
        end = self._position + length
        if end > len(self._buffer):
            return None
        taken = bytes(self._buffer[self._position : end])
        self._position = end
        return taken


class _Checks:
    """What must hold over all entries, for writer and reader alike.

    It keeps a hash of each name in the folders that are open, those on the way to the last entry; the order
    of entries sees to it that no folder is opened twice.
    """

    def __init__(self) -> None:
        self.entries = 0
        self.total = 0
        self._bytes = 0
        self._made = 0  # files and folders
        self._last: tuple[str, ...] = ()
        self._names: list[set[int]] = []

    def count(self, length: int) -> None:
        """Count bytes of the manifest.

        Raises:
            MalformedError: more than `MAX_MANIFEST_BYTES` in all.
        """
        self._bytes += length
        check_manifest_bytes(self._bytes)

    def add(self, entry: Entry) -> None:
        """Take the next entry.

        Raises:
            MalformedError: it is not in order, clashes with an earlier one, or is one too many.
        """
        self.entries += 1
        self.total += entry.size
        if self.total > MAX_TOTAL_BYTES:
            raise MalformedError("the files of a folder are together larger than any disk")
        if entry.path <= self._last:
            raise MalformedError(
                f"the entry {show_path(entry.path)} of a folder is there twice or out of order"
            )
        shared = _count_shared(self._last, entry.path)
        self._made += len(entry.path) - shared
        if self._made > MAX_ENTRIES:  # there are at least as many as entries
            raise MalformedError(f"a folder has more than {MAX_ENTRIES} files and folders in it")
        self._add_names(entry.path, shared)
        self._last = entry.path

    def end(self) -> bytes:
        """What the end of the manifest says."""
        return self.entries.to_bytes(8) + self.total.to_bytes(8)

    def check_end(self, end: bytes) -> None:
        """Compare what the end says with what was there.

        Raises:
            MalformedError: they differ.
        """
        if end != self.end():
            raise MalformedError("the end of the manifest of a folder does not fit its entries")

    def _add_names(self, path: tuple[str, ...], shared: int) -> None:
        if shared and shared == len(self._last):
            raise MalformedError(f"{show_path(path)} lies in what is a file or an empty folder")
        del self._names[shared + 1 :]
        for depth in range(shared, len(path)):
            if depth == len(self._names):
                self._names.append(set())
            # The hash takes a third of the memory; that two names share one by chance is as likely as
            # one in 10^7 for a million names, and costs no more than a refusal.
            name = hash(fold(path[depth]))
            if name in self._names[depth]:
                raise MalformedError(
                    f"{show_path(path)} has the name of something else on other systems: rename it"
                )
            self._names[depth].add(name)


def _encode(entry: Entry) -> bytes:
    capability = entry.capability.to_bytes() if entry.capability else b""
    return encode(_EntryBody(entry.path, entry.size, entry.modified, entry.executable, capability))


def _decode(data: bytes) -> Entry:
    body = decode(_EntryBody, data, limit=MAX_ENTRY_BYTES)
    capability = ReadCapability.from_bytes(body.capability) if body.capability else None
    entry = Entry(body.path, capability, body.size, body.modified, body.executable)
    if _encode(entry) != data:
        raise MalformedError(f"the entry {show_path(entry.path)} of a folder is not in its shortest form")
    return entry


def _count_shared(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count
