from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from overlay.control.home import Home, Remembered, write_private
from overlay.errors import MalformedError, NotFoundError, RefusedError


def entropy(count: int) -> bytes:
    return bytes(range(count))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "deep" / "home")
    home.create("name = 'x'\n", entropy)
    return home


def modes(home: Home) -> set[int]:
    return {stat.S_IMODE(path.lstat().st_mode) for path in [home.path, *home.path.rglob("*")]}


def test_a_home_is_private_and_holds_its_keys(home: Home) -> None:
    assert home.exists
    assert modes(home) == {0o700, 0o600}
    assert home.identity() == entropy(64)
    assert home.config.read_text() == "name = 'x'\n"
    assert home.check() == []
    assert {path.name for path in home.path.iterdir()} == {"config.toml", "identity", "i2p", "lock", "tor"}


def test_a_file_that_vanishes_meanwhile_does_not_matter(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = home.i2p / "data" / "router.info.new"
    monkeypatch.setattr(Path, "rglob", lambda *_: iter([gone, home.config]))
    home.config.chmod(0o644)
    assert home.check() == [f"others could read {home.config}, and now cannot"]


def test_a_home_is_not_made_over_another(home: Home) -> None:
    before = {path: path.read_bytes() for path in home.path.rglob("*") if path.is_file()}
    with pytest.raises(RefusedError, match="already"):
        home.create("name = 'y'\n", os.urandom)
    assert {path: path.read_bytes() for path in home.path.rglob("*") if path.is_file()} == before


def test_a_home_is_not_made_among_other_things(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RefusedError, match="other things"):
        Home(tmp_path).create("", entropy)
    with pytest.raises(RefusedError, match="not a folder"):
        Home(tmp_path / "thesis.tex").create("", entropy)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_home_is_not_made_while_another_process_makes_it(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.path.mkdir()
    with home.lock(), pytest.raises(RefusedError):
        home.create("", entropy)


@pytest.mark.parametrize("step", range(5))
def test_cut_short_at_any_write_it_leaves_no_home_and_can_be_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    home = Home(tmp_path / "home")
    with monkeypatch.context() as patch:
        _fail_at(patch, step)
        with pytest.raises(OSError, match="the disk is full"):
            home.create("", entropy)
    assert not home.exists
    with pytest.raises(NotFoundError):
        home.check()
    home.create("", entropy)
    assert home.identity() == entropy(64)


def _fail_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Let one fsync or rename fail: three for the configuration, two for the identity."""
    calls = iter(range(100))

    def failing(real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            if next(calls) == step:
                raise OSError("the disk is full")
            return real(*args)

        return call

    patch.setattr(os, "fsync", failing(os.fsync))
    patch.setattr(Path, "replace", failing(Path.replace))


def test_killed_before_its_identity_it_is_no_home(tmp_path: Path) -> None:
    path = tmp_path / "home"
    script = (
        "import os, signal, sys; from pathlib import Path; from overlay.control.home import Home\n"
        "def entropy(n):\n if n == 64: os.kill(os.getpid(), signal.SIGKILL)\n return bytes(n)\n"
        "Home(Path(sys.argv[1])).create('', entropy)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == -9
    home = Home(path)
    assert not home.exists
    home.create("", entropy)
    assert home.exists


def test_what_others_could_read_is_closed_to_them(home: Home) -> None:
    home.path.chmod(0o755)
    (home.path / "identity").chmod(0o644)
    sentences = home.check()
    assert len(sentences) == 2
    assert all("could read" in sentence for sentence in sentences)
    assert modes(home) == {0o700, 0o600}


def test_a_home_of_another_user_is_refused(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(RefusedError, match="another user"):
        home.check()


def test_two_nodes_on_one_home_are_refused(home: Home) -> None:
    assert not home.locked
    with home.lock():
        assert home.locked
        with pytest.raises(RefusedError, match="already"), home.lock():
            pass
    with home.lock():
        pass


def test_a_killed_process_lets_go_of_the_home(home: Home) -> None:
    script = (
        "import sys; from pathlib import Path; from overlay.control.home import Home\n"
        "with Home(Path(sys.argv[1])).lock(): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(home.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert home.locked
        process.kill()
        process.wait()
    assert not home.locked


def test_a_damaged_identity_is_named(home: Home) -> None:
    (home.path / "identity").write_bytes(b"short")
    with pytest.raises(MalformedError, match="identity"):
        home.identity()


def test_what_is_remembered_comes_back(home: Home) -> None:
    assert home.remembered() == Remembered()
    home.remember(Remembered(join="ticket", directory=True))
    assert home.remembered() == Remembered(join="ticket", directory=True)
    assert modes(home) == {0o700, 0o600}


@pytest.mark.parametrize("data", [b"", b"[]", b'{"join": 5, "directory": true}', b"\xff", b"{}"])
def test_damaged_state_is_named(home: Home, data: bytes) -> None:
    (home.path / "state.json").write_bytes(data)
    with pytest.raises(MalformedError, match=r"state\.json"):
        home.remembered()


def test_a_private_file_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_private(file, b"one")
    write_private(file, b"two")
    assert file.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("given", "environ", "expected"),
    [
        ("/a", {"OVERLAY_HOME": "/b", "XDG_DATA_HOME": "/c"}, "/a"),
        (None, {"OVERLAY_HOME": "/b", "XDG_DATA_HOME": "/c"}, "/b"),
        (None, {"XDG_DATA_HOME": "/c"}, "/c/overlay"),
        (None, {"XDG_DATA_HOME": "relative"}, "/user/.local/share/overlay"),
        (None, {}, "/user/.local/share/overlay"),
        ("~/x", {}, "/user/x"),
    ],
)
def test_where_the_home_is(
    monkeypatch: pytest.MonkeyPatch, given: str | None, environ: dict[str, str], expected: str
) -> None:
    monkeypatch.setenv("HOME", "/user")
    monkeypatch.setattr(sys, "platform", "linux")
    assert Home.locate(given, environ).path == Path(expected)


def test_where_the_home_is_on_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/user")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert Home.locate(None, {}).path == Path("/user/Library/Application Support/overlay")
