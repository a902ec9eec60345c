"""The clock of the private I2P network's routers, whose pace can be changed while they run.

i2pd looks at a new session's tunnels every 20 s, and at much else just as seldom. `clock.c`, preloaded into
each router, makes those seconds shorter.
"""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio

from overlay.errors import TransportUnavailableError

SOURCE = Path(__file__).with_name("clock.c")
"""What is preloaded, before it is compiled."""

_MOMENT = struct.Struct("=qqqq")  # struct moment of clock.c
_TRUE_PACE = 1000


async def compile_clock(directory: Path) -> Path:
    """Compile the preload library into a directory; takes about 0.15 s.

    Returns:
        the path of the library.

    Raises:
        TransportUnavailableError: there is no C compiler, or it failed, with what it said.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        raise TransportUnavailableError(
            "cc is not installed, and the private I2P network compiles its clock with it: "
            "install a C compiler (Debian, Ubuntu: apt install gcc libc6-dev)"
        )
    library = directory / "clock.so"
    done = await anyio.run_process(
        [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"],
        check=False,
        stderr=subprocess.STDOUT,
    )
    if done.returncode != 0:
        said = done.stdout.decode("utf-8", "replace").strip().splitlines()
        raise TransportUnavailableError(f"the private I2P network's clock was not compiled: {said[-1:]}")
    return library


class SharedClock:
    """The file by which the routers tell the date; a context manager.

    It starts at the true date and the true pace. What went by too fast stays: the routers' date is ahead of
    the true one from then on, in all of them by the same.

    Args:
        path: the file, which is made or replaced.

    Attributes:
        path: the same.
        pace: seconds of the routers' clock to a true one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pace = 1.0
        path.write_bytes(bytes(_MOMENT.size))
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), _MOMENT.size)
        self._since = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        self._date = time.clock_gettime_ns(time.CLOCK_REALTIME)
        self._per_mille = _TRUE_PACE
        self._write()

    def __enter__(self) -> Self:
        """Use the clock."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Unmap the file; routers that still run keep the last pace."""
        self._shared.close()

    def set_pace(self, pace: float) -> None:
        """Let the routers' clock run at a pace from now on; they notice within 0.1 s.

        Args:
            pace: seconds of their clock to a true one, above 0.
        """
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        self._date += (now - self._since) * self._per_mille // 1000
        self._since, self.pace, self._per_mille = now, pace, max(1, round(pace * 1000))
        self._write()

    def environment(self, library: Path) -> dict[str, str]:
        """What a router started by this process needs in its environment."""
        return {
            "LD_PRELOAD": str(library),
            "OVERLAY_CLOCK": str(self.path),
            "OVERLAY_KEEPER": str(os.getpid()),
        }

    def _write(self) -> None:
        check = ~(self._since ^ self._date ^ self._per_mille)
        # In one piece: pack_into clears the bytes before it fills them, under the eyes of the routers.
        self._shared[:] = _MOMENT.pack(self._since, self._date, self._per_mille, check)
