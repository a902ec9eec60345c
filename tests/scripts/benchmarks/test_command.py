from __future__ import annotations

import os
import subprocess
import sys

import pytest

from scripts.benchmarks.command import status_mebibytes

PEAK = """
import os, sys
taken = b"x" * (64 << 20)
del taken
print(flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_the_peak_of_a_process_outlasts_what_it_gave_back() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PEAK], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        peak, resident = (status_mebibytes(process.pid, field) for field in ("VmHWM", "VmRSS"))
        process.communicate()
    assert peak > 64 > resident


def test_a_process_that_has_ended_has_no_memory() -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        pass
    with pytest.raises(OSError, match=str(process.pid)):
        status_mebibytes(process.pid, "VmHWM")
    assert os.getpid() != process.pid
