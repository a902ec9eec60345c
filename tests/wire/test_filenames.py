from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from overlay.errors import MalformedError
from overlay.wire.filenames import MAX_NAME_BYTES, safe_basename


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "...",
        " ",
        "a/b",
        "/etc/passwd",
        "../up",
        "..\\up",
        "C:\\x",
        "nul\0",
        "a\nb",
        "a\x1b[2Jb",
        "a\x7f",
        "a\x9b31m",
        "gpj\u202eexe",
        "a\u2066b",
        "a\u200bb",
        "a\u200c",
        "..\u200c",
        "a\u200db",
        "é\u200d",
        "é\u200c\u200cé",
        "a\u00adb",
        "\ufeffa",
        "a\u2028b",
        "a\ud800",
        "CON",
        "con.txt",
        "Nul",
        "COM1.log",
        "lpt9",
        "aux .c",
        "a" * 5000,
    ],
)
def test_what_no_honest_program_sends_is_refused(name: str) -> None:
    with pytest.raises(MalformedError):
        safe_basename(name)


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("report.pdf", "report.pdf"),
        ("Größe 1.txt", "Größe 1.txt"),
        (".bashrc", "_bashrc"),
        ("-rf", "_rf"),
        ("--help.txt", "__help.txt"),
        ("~root", "_root"),
        ("..x", "__x"),
        ("name. . ", "name"),
        ("a:b*c?", "a_b_c_"),
        ("contents", "contents"),
        ("console.log", "console.log"),
        ("می\u200cروم.txt", "می\u200cروم.txt"),
        ("👩\u200d💻", "👩\u200d💻"),
        ("é" * 99 + "\u200dé", "é" * 99),
        ("a" * 300 + ".tar", "a" * 196 + ".tar"),
        ("é" * 200, "é" * 100),
    ],
)
def test_what_is_awkward_is_mended(name: str, safe: str) -> None:
    assert safe_basename(name) == safe


@given(st.text(max_size=400))
@example("-" * 199 + "  .x")
@example("con" + "." + "x" * 300)
@example("\u00a0con")
def test_a_name_is_safe_or_refused(name: str) -> None:
    try:
        safe = safe_basename(name)
    except MalformedError:
        return
    assert 0 < len(safe.encode()) <= MAX_NAME_BYTES
    assert Path(safe).name == safe
    assert not safe.startswith((".", "-", "~", " "))
    assert not safe.endswith((".", " "))
    assert all(unicodedata.category(char) != "Cc" for char in safe)


@given(st.text(alphabet=st.sampled_from("abcon. -_~:*é\u200d\u00a01"), min_size=1, max_size=260))
def test_a_safe_name_stays_as_it_is(name: str) -> None:
    try:
        safe = safe_basename(name)
    except MalformedError:
        return
    assert safe_basename(safe) == safe


def test_a_safe_name_can_be_created(tmp_path: Path) -> None:
    target = tmp_path / safe_basename("é" * 500 + ".txt")
    target.write_bytes(b"x")
    assert list(tmp_path.iterdir()) == [target]
