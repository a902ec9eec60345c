"""Files between real `overlay` processes behind real onion services."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from overlay.testing.programs import COMMAND, PATIENCE, MakeHome
from overlay.testing.tor import PrivateTorNetwork

SIZE = 8 * 1024 * 1024 + 5


def test_a_provider_that_comes_back_under_another_onion_address_is_fetched_from(
    make_home: MakeHome, tor_network: PrivateTorNetwork, tmp_path: Path
) -> None:
    options = ("--transport", "tor", "--torrc", str(tor_network.client_torrc))
    meeting, ann, bob = (make_home(name, up_options=options) for name in ("meeting", "ann", "bob"))
    meeting.up("--directory")
    ticket = meeting.one("ticket")["ticket"]
    before = ann.up("--join", ticket)["locators"]
    bob.up("--join", ticket)
    data = os.urandom(SIZE)
    (tmp_path / "big").write_bytes(data)
    link = ann.one("file", "share", str(tmp_path / "big"))["link"]

    bob.one("file", "limit", "--down", "256K")  # so that there is something left when she is back
    command = [*COMMAND, "--home", str(bob.path), "file", "get", link, "-o", str(tmp_path / "copy")]
    fetching = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    running: list[dict[str, object]] = []
    while not running or not running[0]["present"]:
        assert fetching.poll() is None
        running = bob.run("file", "status")
    assert ann.end(signal.SIGKILL) == -signal.SIGKILL
    (ann.path / "tor" / "onion.key").unlink()
    after = ann.up()["locators"]
    assert after[0].startswith("/onion3/")
    assert not set(after) & set(before)
    assert fetching.poll() is None
    bob.one("file", "limit", "--down", "none")
    fetching.communicate(timeout=PATIENCE)
    assert fetching.returncode == 0  # the same command: nobody gave it anew
    assert (tmp_path / "copy").read_bytes() == data
