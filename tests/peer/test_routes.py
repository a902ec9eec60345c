"""The order of networks: what is ready, what answered best and latest, what the user prefers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.identity import NodeIdentifier
from overlay.peer import routes
from overlay.peer.routes import (
    HALF_LIFE,
    LEAST_HEAD_START,
    MOST_HEAD_START,
    SUSPECT_SECONDS,
    RouteBook,
    Way,
)

TOR, I2P, TCP = Way("tor", ready=True, seconds=5), Way("i2p", ready=True, seconds=9), Way("tcp", True, 0.01)
ALICE, BOB, CAROL = (NodeIdentifier(bytes([number]) * 32) for number in range(3))


def order(book: RouteBook, *ways: Way, node: NodeIdentifier = BOB, now: float = 0.0) -> list[str]:
    return [way.network for way in book.rank(node, ways, now)]


def test_without_any_experience_the_users_order_stands() -> None:
    assert order(RouteBook(), I2P, TOR, TCP) == ["i2p", "tor", "tcp"]
    assert order(RouteBook(), TCP, TOR, I2P) == ["tcp", "tor", "i2p"]
    assert order(RouteBook()) == []


def test_what_is_not_ready_is_last_however_well_it_answered() -> None:
    book = RouteBook()
    book.answered(BOB, TOR, 1.0, now=0)
    assert order(book, TOR, I2P) == ["tor", "i2p"]
    assert order(book, Way("tor", ready=False, seconds=5), I2P) == ["i2p", "tor"]


def test_who_answered_is_preferred_to_the_unknown_and_that_to_who_failed() -> None:
    book = RouteBook()
    book.failed(BOB, "tor", now=0)
    book.answered(BOB, TCP, 1.0, now=0)
    assert order(book, TOR, I2P, TCP) == ["tcp", "i2p", "tor"]
    assert order(book, TOR, I2P, TCP, node=ALICE) == ["tor", "i2p", "tcp"]  # says nothing of others


def test_a_network_is_proven_by_a_dial_until_it_stops_or_seems_to_be_gone() -> None:
    book = RouteBook()
    assert not book.proven("tor")
    book.answered(BOB, TOR, 1.0, now=0)
    assert (book.proven("tor"), book.proven("i2p")) == (True, False)
    book.stopped("i2p")
    book.failed(BOB, "tor", now=1)
    book.lost(BOB, "tor", now=1, dialled=True)
    book.lost(ALICE, "tor", now=1, dialled=False)
    assert book.proven("tor")
    book.lost(CAROL, "tor", now=1, dialled=True)
    assert not book.proven("tor")
    book.answered(BOB, TOR, 1.0, now=2)
    assert book.proven("tor")
    book.stopped("tor")
    assert not book.proven("tor")


def test_one_loss_outweighs_any_number_of_answers_and_one_answer_any_number_of_losses() -> None:
    book = RouteBook()
    for _ in range(100):
        book.answered(BOB, TOR, 1.0, now=0)
    book.lost(BOB, "tor", now=0, dialled=True)
    assert order(book, TOR, I2P) == ["i2p", "tor"]
    for _ in range(100):
        book.lost(BOB, "tor", now=0, dialled=True)
    book.answered(BOB, TOR, 1.0, now=0)
    assert order(book, I2P, TOR) == ["tor", "i2p"]


def test_the_slower_of_two_gives_way_to_the_winner_and_is_no_failure() -> None:
    book = RouteBook()
    for way in (TOR, I2P):
        book.answered(BOB, way, 1.0, now=0)
        book.answered(BOB, way, 1.0, now=0)
    book.outrun(BOB, "tor", now=0)
    assert order(book, TOR, I2P) == ["i2p", "tor"]
    book.failed(BOB, "tcp", now=0)
    assert order(book, TCP, TOR) == ["tor", "tcp"]


def test_experience_fades() -> None:
    book = RouteBook()
    book.failed(BOB, "tor", now=0)
    assert order(book, TOR, I2P, now=HALF_LIFE) == ["i2p", "tor"]
    assert order(book, TOR, I2P, now=2.1 * HALF_LIFE) == ["tor", "i2p"]


def test_a_network_over_which_two_nodes_were_lost_is_avoided_for_all_until_it_carries_again() -> None:
    book = RouteBook()
    book.answered(CAROL, TOR, 1.0, now=0)
    book.lost(ALICE, "tor", now=10, dialled=True)
    book.lost(ALICE, "tor", now=10, dialled=True)
    assert order(book, TOR, I2P, node=CAROL, now=10) == ["tor", "i2p"]  # Alice alone may have left
    book.lost(BOB, "tor", now=11, dialled=True)
    assert order(book, TOR, I2P, node=CAROL, now=11) == ["i2p", "tor"]
    assert order(book, TOR, I2P, node=CAROL, now=11 + SUSPECT_SECONDS) == ["tor", "i2p"]
    book.answered(ALICE, TOR, 1.0, now=12)
    assert order(book, TOR, I2P, node=CAROL, now=12) == ["tor", "i2p"]


def test_who_calls_and_hangs_up_speaks_for_nobody_else() -> None:
    book = RouteBook()
    for stranger in (ALICE, BOB):
        book.lost(stranger, "tor", now=0, dialled=False)
    assert order(book, TOR, I2P, node=CAROL) == ["tor", "i2p"]
    assert order(book, TOR, I2P, node=BOB) == ["i2p", "tor"]


def test_a_head_start_follows_what_was_measured_within_bounds() -> None:
    book = RouteBook()
    assert book.head_start(TCP) == LEAST_HEAD_START
    assert book.head_start(TOR) == MOST_HEAD_START
    for _ in range(50):
        book.answered(ALICE, TOR, 1.5, now=0)
    assert book.head_start(TOR) == pytest.approx(3.0)
    book.answered(BOB, TOR, 3.5, now=0)
    assert book.usual(TOR) == pytest.approx(2.0)


def test_dials_with_an_address_of_their_own_are_measured_apart() -> None:
    book = RouteBook()
    alone = Way("i2p", ready=True, seconds=29, isolated=True)
    book.answered(BOB, I2P, 1.0, now=0)
    assert (book.usual(I2P), book.usual(alone)) == (1.0, 29)
    book.answered(BOB, alone, 21.0, now=0)
    assert (book.usual(I2P), book.usual(alone)) == (1.0, 21.0)


def test_memory_is_bounded_and_the_one_untouched_longest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "MAX_MEMORIES", 2)
    book = RouteBook()
    book.failed(ALICE, "tor", now=0)
    book.failed(BOB, "tor", now=0)
    book.failed(ALICE, "tor", now=1)
    book.failed(CAROL, "tor", now=1)
    avoided = [node for node in (ALICE, BOB, CAROL) if order(book, TOR, I2P, node=node, now=1)[0] == "i2p"]
    assert avoided == [ALICE, CAROL]


WAYS = {way.network: way for way in (TOR, I2P, TCP)}
DEEDS = st.tuples(
    st.sampled_from(["answered", "outrun", "failed", "lost"]),
    st.sampled_from([ALICE, BOB, CAROL]),
    st.sampled_from(sorted(WAYS)),
    st.floats(0, 1e4),
)


@given(st.lists(DEEDS, max_size=50), st.permutations(sorted(WAYS)), st.sets(st.sampled_from(sorted(WAYS))))
def test_whatever_happened_every_way_is_ranked_once_and_ready_ones_first(
    deeds: list[tuple[str, NodeIdentifier, str, float]], names: list[str], down: set[str]
) -> None:
    book, now = RouteBook(), 0.0
    for deed, node, network, later in deeds:
        now += later
        if deed == "answered":
            book.answered(node, WAYS[network], later, now)
        elif deed == "lost":
            book.lost(node, network, now, dialled=later > 100)
        else:
            getattr(book, deed)(node, network, now)
    ways = [Way(name, ready=name not in down, seconds=1) for name in names]
    ranked = book.rank(BOB, ways, now)
    assert sorted(way.network for way in ranked) == sorted(names)
    assert [way.ready for way in ranked] == sorted((way.ready for way in ways), reverse=True)
    for way in ways:
        assert LEAST_HEAD_START <= book.head_start(way) <= MOST_HEAD_START
