from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from overlay.locators import NodeLocator
from overlay.transports.i2p.silence import LEASE_SET_SECONDS, MAX_DETOURS, MAX_SILENT, SILENT_STREAMS, Silence

PEER = NodeLocator("garlic32", bytes(32))
OTHER = NodeLocator("garlic32", b"\1" * 32)


def silent(silence: Silence, times: int, *, detour: int = 0, now: float = 0.0) -> None:
    for _ in range(times):
        silence.note(b"", PEER, detour, answered=False, now=now)


def test_two_silent_streams_in_a_row_call_for_another_session() -> None:
    silence = Silence()
    silent(silence, SILENT_STREAMS - 1)
    assert silence.detour(b"", PEER, 0) == 0
    silent(silence, 1)
    assert silence.detour(b"", PEER, 0) == 1
    assert silence.detour(b"", OTHER, 0) == 0
    assert silence.detour(b"token", PEER, 0) == 0


def test_an_answer_starts_the_count_anew() -> None:
    silence = Silence()
    silent(silence, SILENT_STREAMS - 1)
    silence.note(b"", PEER, 0, answered=True, now=0)
    silent(silence, SILENT_STREAMS - 1)
    assert silence.detour(b"", PEER, 0) == 0


def test_silence_to_the_other_session_too_calls_for_a_third() -> None:
    silence = Silence()
    silent(silence, SILENT_STREAMS)
    silent(silence, SILENT_STREAMS, detour=1)
    assert silence.detour(b"", PEER, 0) == 2


def test_no_peer_has_sessions_made_without_end() -> None:
    silence = Silence()
    for _ in range(10):
        silent(silence, SILENT_STREAMS, detour=silence.detour(b"", PEER, 0))
    assert silence.detour(b"", PEER, 0) == MAX_DETOURS


def test_a_stream_of_the_old_session_does_not_speak_for_the_new_one() -> None:
    silence = Silence()
    silent(silence, SILENT_STREAMS)
    silent(silence, SILENT_STREAMS, detour=0)
    assert silence.detour(b"", PEER, 0) == 1


def test_an_answer_keeps_to_the_session_that_it_came_by() -> None:
    silence = Silence()
    silent(silence, SILENT_STREAMS)
    silence.note(b"", PEER, 1, answered=True, now=1)
    assert silence.detour(b"", PEER, 1) == 1


def test_the_first_session_is_used_again_when_no_old_lease_set_is_left() -> None:
    silence = Silence()
    silent(silence, SILENT_STREAMS, now=5.0)
    assert silence.detour(b"", PEER, 5.0 + LEASE_SET_SECONDS) == 1
    assert silence.detour(b"", PEER, 5.1 + LEASE_SET_SECONDS) == 0
    silent(silence, SILENT_STREAMS - 1, now=5.1 + LEASE_SET_SECONDS)
    assert silence.detour(b"", PEER, 5.1 + LEASE_SET_SECONDS) == 0


def test_the_table_is_bounded_and_forgets_the_oldest() -> None:
    silence = Silence()
    silent(silence, SILENT_STREAMS)
    for number in range(MAX_SILENT):
        silence.note(number.to_bytes(2, "big"), OTHER, 0, answered=False, now=0)
    assert silence.detour(b"", PEER, 0) == 0
    assert len(silence._peers) == MAX_SILENT


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.floats(0, 100)), max_size=50))
def test_detours_only_grow_while_lease_sets_live(streams: list[tuple[int, bool, float]]) -> None:
    silence, now, before = Silence(), 0.0, 0
    for detour, answered, later in streams:
        now += later / 10
        silence.note(b"", PEER, detour, answered=answered, now=now)
        assert silence.detour(b"", PEER, now) in {before, before + 1}
        before = silence.detour(b"", PEER, now)
