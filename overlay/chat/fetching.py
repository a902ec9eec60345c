"""Fetching a posted file: over several circuits, and gone on with where an earlier attempt ended."""

from __future__ import annotations

from pathlib import Path

from overlay.chat.events import File
from overlay.errors import MalformedError, NotFoundError, UnreachableError, VerificationError
from overlay.files.disk.paths import is_folder
from overlay.files.disk.target import Target, open_target
from overlay.files.engine.actions import Snapshot
from overlay.files.engine.providers import Candidates
from overlay.files.fetching.gathering import gather
from overlay.files.fetching.pace import Pace
from overlay.files.running import Running, Watch, reporting
from overlay.identity import NodeIdentifier
from overlay.peer.node import Node
from overlay.units.capability import ReadCapability, tree_shape
from overlay.wire.filenames import safe_basename

_NO_CONTENT = "what was posted is not the content that it says it is: ask whoever posted it to do so again"


async def fetch_file(
    node: Node, content: File, destination: Path, progress: Watch | None = None
) -> tuple[Path, int]:
    """Fetch a file and write it; what an earlier attempt left is gone on with.

    Args:
        node: asks the holders, without showing itself, also where it is one of them: from what is asked
            elsewhere nobody can tell then which of them it is.
        content: the file, as its event has it.
        destination: a folder, where the file gets its own name made safe, or the path to write.
        progress: told after each step; the limit of what it is told may be changed.

    Returns:
        where the file is, and its size.

    Raises:
        MalformedError: its name cannot be used: give a path.
        VerificationError: what was posted is not the content that its event describes, or holders lied.
        RefusedError: the target exists already, or is being fetched.
        NotFoundError: the folder does not exist, or nobody has all of the file any more.
        UnreachableError: a holder that may have the rest was not reached.
        TransportUnavailableError: nor could it be, because none of this node's transports works.
        StorageError: the disk is full or cannot be written.
        Failed or cancelled, what came is kept and the next attempt goes on.
    """
    capability = _capability(content)
    async with open_target(await _target_path(content, destination), capability, size=content.size) as target:
        await _gather(node, content, target, progress)
        await target.finish()
    return target.path, content.size


def _capability(content: File) -> ReadCapability:
    """Read the capability of a file.

    Raises:
        VerificationError: it is none, or content of this size never has it.
    """
    try:
        capability = ReadCapability.from_bytes(content.capability)
    except MalformedError as error:
        raise VerificationError(_NO_CONTENT) from error
    if tree_shape(content.size, capability.block_size)[1] != capability.level:
        raise VerificationError(_NO_CONTENT)
    return capability


async def _target_path(content: File, destination: Path) -> Path:
    return destination / safe_basename(content.name) if await is_folder(destination) else destination


async def _gather(node: Node, content: File, target: Target, progress: Watch | None) -> None:
    running = Running("chat", content.name, target.path, content.size)
    step = reporting(running, progress)

    def report(snapshot: Snapshot | None) -> None:
        step(snapshot, target.tree.present, content.size)

    holders = Candidates([NodeIdentifier(holder) for holder in dict.fromkeys(content.holders)])
    try:
        await gather(node, target, holders, report, Pace(running.limit, node.chunks.down))
    except UnreachableError as error:
        raise UnreachableError("a node that keeps this file is not reached: try again later") from error
    except NotFoundError as error:
        raise NotFoundError(
            "nobody has all of this file any more: ask its sender to post it again"
        ) from error
    except MalformedError as error:  # the right chunks of a wrong tree: the one who posted it is to blame
        raise VerificationError(_NO_CONTENT) from error
