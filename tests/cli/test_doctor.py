from __future__ import annotations

import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from overlay.control.home import Home
from overlay.control.protocol import JSON
from overlay.control.server import Answers, Arguments, Handler, Handlers

if TYPE_CHECKING:
    from tests.cli.conftest import Command


class Anything(Arguments, frozen=True, forbid_unknown_fields=False):
    """Whatever a verb takes."""


def findings(overlay: Command, *options: str, **environ: str) -> tuple[int, dict[str, Any]]:
    done = overlay("--json", "doctor", *options, environ=environ)
    return done.code, {each["check"]: each for each in done.lines}


def fake_program(folder: Path, name: str, script: str) -> str:
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_without_a_home(overlay: Command) -> None:
    code, found = findings(overlay)
    assert code == 7
    assert found["python"]["ok"]
    assert not found["home"]["ok"]


def test_a_node_that_does_not_run_is_not_wrong(overlay: Command, home: Home) -> None:
    home.config.write_text("transports = ['tcp']\n")
    code, found = findings(overlay)
    assert code == 0
    assert all(each["ok"] for each in found.values())
    assert "overlay up" in found["node"]["detail"]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo Tor version 0.4.8.9.", (0, "0.4.8.9")),
        ("echo Tor version 0.3.5.1.", (4, "too old")),
        ("exit 1", (4, "does not run")),
        ("echo nonsense", (4, "too old")),
    ],
)
def test_tor(overlay: Command, home: Home, tmp_path: Path, script: str, expected: tuple[int, str]) -> None:
    assert home.exists
    code, found = findings(overlay, PATH=fake_program(tmp_path, "tor", script))
    assert code == expected[0]
    assert expected[1] in found["tor-program"]["detail"]


I2PD_CONFIG = """
transports = ["i2p"]
[i2p]
i2pd = "i2pd"
"""


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 'i2pd version 2.45.1 (0.9.57)'", (0, "2.45.1")),
        ("echo 'i2pd version 2.37.0 (0.9.49)'", (4, "too old: install 2.38.0")),
        ("exit 1", (4, "package 'i2pd'")),
    ],
)
def test_i2pd(overlay: Command, home: Home, tmp_path: Path, script: str, expected: tuple[int, str]) -> None:
    home.config.write_text(I2PD_CONFIG)
    code, found = findings(overlay, PATH=fake_program(tmp_path, "i2pd", script))
    assert code == expected[0]
    assert expected[1] in found["i2p-router"]["detail"]
    assert "networks" not in found


def test_an_i2pd_that_is_not_installed(overlay: Command, home: Home) -> None:
    home.config.write_text(I2PD_CONFIG.replace('"i2pd"', '"/nonexistent/i2pd"'))
    code, found = findings(overlay)
    assert (code, found["i2p-router"]["ok"]) == (4, False)
    assert "apt install i2pd" in found["i2p-router"]["detail"]


@contextmanager
def sam_bridge(answer: bytes) -> Iterator[str]:
    """Something on loopback that says `answer` to the first line of each caller; gives its address."""

    class Greeter(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(answer)
            self.rfile.read()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Greeter) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            serving.join()


@pytest.mark.parametrize(
    ("answer", "code", "detail"),
    [
        (b"HELLO REPLY RESULT=OK VERSION=3.1\n", 0, "speaks SAM 3.1"),
        (b"HELLO REPLY RESULT=NOVERSION\n", 4, "does not speak SAM 3.1"),
        (b"220 mail.example.org ESMTP\r\n", 4, "is no SAM bridge"),
    ],
)
def test_an_i2p_router_that_runs_is_greeted(
    overlay: Command, home: Home, answer: bytes, code: int, detail: str
) -> None:
    with sam_bridge(answer) as address:
        home.config.write_text(f'transports = ["i2p"]\n[i2p]\nsam = "{address}"\n')
        ended, found = findings(overlay)
    assert (ended, found["i2p-router"]["ok"]) == (code, code == 0)
    assert detail in found["i2p-router"]["detail"]


def test_an_i2p_router_that_is_not_there(overlay: Command, home: Home) -> None:
    home.config.write_text('transports = ["i2p"]\n[i2p]\nsam = "127.0.0.1:1"\n')
    code, found = findings(overlay)
    assert code == 4
    assert "127.0.0.1:1" in found["i2p-router"]["detail"]


def test_the_library_of_i2p_is_missing(overlay: Command, home: Home) -> None:
    home.config.write_text(I2PD_CONFIG)
    without = (
        "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n: n != 'i2plib' and f(n) or None"
    )
    command = [sys.executable, "-c", f"{without}; from overlay_cli.main import main; main(['doctor'])"]
    done = subprocess.run(command, capture_output=True, env=overlay.environ, check=False)
    assert b"no  i2p-router  i2plib is missing: run pip install 'overlay-p2p[i2p]'" in done.stdout


def test_the_transports_that_up_is_told_of_can_be_looked_at(
    overlay: Command, home: Home, tmp_path: Path
) -> None:
    home.config.write_text(I2PD_CONFIG.replace('["i2p"]', '["tor"]'))
    path = fake_program(tmp_path, "tor", "exit 1")
    fake_program(tmp_path, "i2pd", "echo i2pd version 2.45.1")
    code, found = findings(overlay, PATH=path)
    assert (code, found["tor-program"]["ok"], "i2p-router" in found) == (4, False, False)
    assert "options of 'overlay up' count more" in found["config"]["detail"]
    assert "overlay doctor --transport NAME" in found["config"]["detail"]
    code, found = findings(overlay, "--transport", "i2p", PATH=path)
    assert (code, found["i2p-router"]["ok"], "tor-program" in found) == (0, True, False)
    assert found["config"]["detail"] == "transports: i2p, as --transport says"
    code, found = findings(overlay, "--transport", "i2p", "--transport", "tcp", PATH=path)
    assert (code, found["config"]["ok"]) == (6, False)


def test_two_networks_are_said_to_link_the_addresses(overlay: Command, home: Home, tmp_path: Path) -> None:
    home.config.write_text(I2PD_CONFIG.replace('["i2p"]', '["tor", "i2p"]'))
    fake_program(tmp_path, "tor", "echo Tor version 0.4.8.9.")
    code, found = findings(overlay, PATH=fake_program(tmp_path, "i2pd", "echo i2pd version 2.45.1"))
    assert (code, found["networks"]["ok"]) == (0, True)
    assert "can learn the other" in found["networks"]["detail"]


def test_a_node_that_runs_tells_what_its_transports_have(
    overlay: Command, home: Home, scripted: Callable[[Handlers], None]
) -> None:
    home.config.write_text(I2PD_CONFIG.replace('"i2pd"', '"/nonexistent/i2pd"'))
    i2p: dict[str, JSON] = {"name": "i2p", "state": "failed", "detail": "no router", "facts": {}}
    i2p["facts"] = {"router": "127.0.0.1:1", "error": "it is gone"}

    tor: JSON = {
        "name": "tor",
        "state": "starting",
        "detail": "it ended, again",
        "facts": {"error": "it ended"},
    }

    async def status(_args: Anything, _answers: Answers) -> JSON:
        return {"state": "ready", "detail": "ready", "transports": [i2p, tor]}

    scripted({"status": Handler(Anything, status)})
    code, found = findings(
        overlay, "--transport", "tcp", "--transport", "i2p"
    )  # which the node does not have
    assert (code, found["i2p"]["detail"]) == (
        4,
        "failed no router (router: 127.0.0.1:1; last error: it is gone)",
    )
    assert found["networks"]["ok"]
    assert found["tor"]["detail"] == "starting it ended, again"
    assert found["config"]["detail"] == "well-formed; what counts are the transports that the node runs with"
    assert "i2p-router" not in found  # what the node has counts, and not what config.toml would have it use


def test_what_others_can_read(overlay: Command, home: Home) -> None:
    (home.path / "identity").chmod(0o644)
    code, found = findings(overlay)
    assert (code, found["home"]["ok"]) == (6, False)


def test_a_damaged_identity_and_a_bad_configuration(overlay: Command, home: Home) -> None:
    home.config.write_text("transports = ['pigeon']\n")
    code, found = findings(overlay)
    assert (code, found["config"]["ok"]) == (2, False)
    (home.path / "identity").write_bytes(b"short")
    code, found = findings(overlay)
    assert (code, found["home"]["ok"]) == (2, False)


def test_a_clock_that_is_past(overlay: Command, home: Home) -> None:
    late = 4_000_000_000
    os.utime(home.path / "identity", (late, late))
    code, found = findings(overlay)
    assert (code, found["clock"]["ok"]) == (1, False)


def test_a_home_that_is_held_by_something_that_does_not_answer(overlay: Command, home: Home) -> None:
    home.config.write_text("transports = ['tcp']\n")
    with home.lock():
        code, found = findings(overlay)
    assert (code, found["node"]["ok"]) == (5, False)
