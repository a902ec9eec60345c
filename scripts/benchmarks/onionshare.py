"""OnionShare beside us: its command, from PyPI and in an environment of its own, fetched from with curl."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

PACKAGE = "onionshare-cli"
PIP_TIMEOUT = 600
"""Seconds for fetching it; it took 20."""
CURL_ATTEMPTS = 3
CURL_PATIENCE = 20
"""Seconds without a byte after which curl is begun anew."""
_CURL_TIMED_OUT = 28


class LeftOutError(Exception):
    """It cannot be measured here, and why."""


def install(folder: Path) -> Path:
    """Install it, and give its program.

    Raises:
        LeftOutError: curl, pip or the network is missing.
    """
    if shutil.which("curl") is None:
        raise LeftOutError("OnionShare is left out: curl is not installed")
    python = folder / "bin" / "python"
    commands = (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", PACKAGE],
    )
    for command in commands:
        try:
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=PIP_TIMEOUT)  # noqa: S603
        except subprocess.SubprocessError as error:
            said = str(getattr(error, "stderr", "") or error).strip().splitlines()
            raise LeftOutError(f"OnionShare is left out: pip could not install it ({said[-1]})") from error
    return folder / "bin" / PACKAGE


@contextmanager
def offering(program: Path, file: Path, control: Path, home: Path) -> Iterator[str]:
    """Offer a file through the tor with this control socket, for the length of a block; gives the address.

    Raises:
        LeftOutError: it did not start.
    """
    home.mkdir()
    settings = {"connection_type": "socket_file", "socket_file_path": str(control), "auth_type": "no_auth"}
    config = home / "config.json"
    config.write_text(json.dumps(settings))
    command = [str(program), "--public", "--no-autostop-sharing", "--config", str(config), str(file)]
    environment = os.environ | {"HOME": str(home), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(  # noqa: S603 - chosen here
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            said = []
            for line in process.stdout or ():
                said.append(line.strip())
                if said[-1].startswith("http://") and said[-1].endswith(".onion"):
                    break
            else:
                raise LeftOutError(f"OnionShare is left out: it ended with {' '.join(said[-2:])!r}")
            yield said[-1]
        finally:
            process.terminate()


def curl(address: str, path: Path, proxy: tuple[str, int]) -> float:
    """Fetch what is offered, on a circuit of its own; gives the seconds from starting curl to its end.

    Its single stream gets stuck now and then; it is begun anew then, and only the last attempt counts.

    Raises:
        LeftOutError: it got stuck in every attempt.
        subprocess.CalledProcessError: it failed.
    """
    for _ in range(CURL_ATTEMPTS):
        try:
            return _curl(address, path, proxy)
        except subprocess.CalledProcessError as error:
            if error.returncode != _CURL_TIMED_OUT:
                raise
            print(f"  curl got nothing for {CURL_PATIENCE} s", file=sys.stderr)
    raise LeftOutError(f"OnionShare is left out from here on: curl got stuck {CURL_ATTEMPTS} times")


def _curl(address: str, path: Path, proxy: tuple[str, int]) -> float:
    host, port = proxy
    token = os.urandom(8).hex()  # tor keeps streams with different ones on different circuits
    words = ["curl", "--silent", "--show-error", "--fail", "--proxy", f"socks5h://{token}:x@{host}:{port}"]
    words += ["--speed-limit", "1", "--speed-time", str(CURL_PATIENCE)]
    began = perf_counter()
    subprocess.run([*words, "--output", str(path), f"{address}/download"], check=True)  # noqa: S603 - as above
    return perf_counter() - began
