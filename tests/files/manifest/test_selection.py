from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import MalformedError
from overlay.files.manifest.codec import Entry
from overlay.files.manifest.selection import select
from overlay.units.capability import SMALL_BLOCK, ReadCapability

CAPABILITY = ReadCapability(SMALL_BLOCK, 0, bytes(32), bytes(32))
PATHS = [
    "README",
    "docs/README",
    "docs/a.txt",
    "docs/old/a.txt",
    "docs/old/b.md",
    "photos",
    "photos 2/x.jpg",
    "x/docs/c.txt",
    "x/y/docs",
]


def taken(*patterns: str) -> list[str]:
    takes = select(patterns)
    return [path for path in PATHS if takes(Entry(tuple(path.split("/")), CAPABILITY))]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("README", ["README", "docs/README"]),
        ("/README", ["README"]),
        ("readme", []),
        ("*.txt", ["docs/a.txt", "docs/old/a.txt", "x/docs/c.txt"]),
        ("?.txt", ["docs/a.txt", "docs/old/a.txt", "x/docs/c.txt"]),
        ("[!a].txt", ["x/docs/c.txt"]),
        ("/*.txt", []),
        (
            "docs",
            ["docs/README", "docs/a.txt", "docs/old/a.txt", "docs/old/b.md", "x/docs/c.txt", "x/y/docs"],
        ),
        ("docs/", ["docs/README", "docs/a.txt", "docs/old/a.txt", "docs/old/b.md", "x/docs/c.txt"]),
        ("/docs", ["docs/README", "docs/a.txt", "docs/old/a.txt", "docs/old/b.md"]),
        ("docs/*.txt", ["docs/a.txt"]),
        ("docs/**/*.txt", ["docs/a.txt", "docs/old/a.txt"]),
        ("**/docs/*.txt", ["docs/a.txt", "x/docs/c.txt"]),
        ("x/**/docs", ["x/docs/c.txt", "x/y/docs"]),
        ("docs/old/**", ["docs/old/a.txt", "docs/old/b.md"]),
        ("photos/**", []),
        ("docs*old", []),
        ("photos*", ["photos", "photos 2/x.jpg"]),
        ("**", PATHS),
        ("*", PATHS),
        ("/**", PATHS),
        ("*/", [path for path in PATHS if "/" in path]),
    ],
)
def test_a_pattern_means(pattern: str, expected: list[str]) -> None:
    assert taken(pattern) == expected


def test_several_patterns_add_up_and_none_means_nothing() -> None:
    assert taken("/README", "*.jpg") == ["README", "photos 2/x.jpg"]
    assert taken() == []


def test_an_empty_folder_is_a_folder() -> None:
    folder = Entry(("photos", "empty"))
    assert select(["empty/"])(folder)
    assert select(["photos"])(folder)
    assert not select(["empty/"])(Entry(("photos", "empty"), CAPABILITY))


def test_one_letter_in_two_encodings_is_one() -> None:
    for pattern in ("caf\u00e9", "cafe\u0301", "caf?"):
        for name in ("caf\u00e9", "cafe\u0301"):
            assert select([pattern])(Entry((name,), CAPABILITY))


@pytest.mark.parametrize("pattern", ["", "/", "//", ".", "..", "../up", "a/../b", "./a", "a//b", "a" * 5000])
def test_a_pattern_that_can_mean_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(MalformedError):
        select([pattern])


@given(st.text("ab*?[]!-/.^&~|\\", max_size=12) | st.text(max_size=12))
def test_any_text_is_a_pattern_or_malformed(text: str) -> None:
    try:
        takes = select([text])
    except MalformedError:
        return
    takes(Entry(("a", "b", "ab"), CAPABILITY))


@given(st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=5), st.data())
def test_a_path_means_itself_and_so_does_what_stands_for_it(path: list[str], data: st.DataObject) -> None:
    pattern = [data.draw(st.sampled_from([name, "?", "*", f"[{name}]"])) for name in path]
    at, until = sorted(data.draw(st.tuples(st.integers(0, len(path)), st.integers(0, len(path)))))
    if until < len(path):
        pattern[at:until] = ["**"]
    assert select(["/" + "/".join(pattern)])(Entry(tuple(path), CAPABILITY))


def test_no_path_makes_a_pattern_slow() -> None:
    # Tried one after the other, the ways to share 100 names among 20 of `**` would outlast the sun.
    takes = select(["**/a/" * 20 + "b", "*a" * 100 + "b"])
    assert not takes(Entry(("a",) * 100, CAPABILITY))
    assert not takes(Entry(("a" * 250,), CAPABILITY))
