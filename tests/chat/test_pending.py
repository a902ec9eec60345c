from __future__ import annotations

from overlay.chat.events import Event, Text
from overlay.chat.pending import MAX_PENDING, MAX_PENDING_PER_SENDER, Pending
from overlay.identity import SigningSecret

ALICE = SigningSecret(b"a" * 32)
PARENT = b"p" * 32


def event(number: int, *parents: bytes) -> Event:
    return Event.sign(
        ALICE,
        session=b"s" * 32,
        clock=2,
        parents=parents or (PARENT,),
        at=number,
        content=Text(text="hi"),
    )


def test_children_wait_in_their_order_until_they_are_removed() -> None:
    pending = Pending()
    both = sorted((event(1), event(2, PARENT, b"q" * 32)), key=lambda each: each.position)
    for each in reversed(both):
        pending.add(each, b"bob")
    assert pending.children(PARENT) == both
    pending.remove(both[0])
    assert pending.children(PARENT) == both[1:]
    pending.remove(both[1])
    assert (len(pending), pending.children(PARENT), pending.children(b"q" * 32)) == (0, [], [])


def test_a_sender_that_floods_pushes_out_only_its_own() -> None:
    pending = Pending()
    honest = event(0)
    pending.add(honest, b"alice")
    for number in range(1, 3 * MAX_PENDING_PER_SENDER):
        pending.add(event(number), b"mallory")
    assert honest.id in pending
    assert len(pending) == 1 + MAX_PENDING_PER_SENDER


def test_many_senders_together_have_a_limit_too() -> None:
    pending = Pending()
    for number in range(MAX_PENDING + 10):
        pending.add(event(number), number.to_bytes(4))
    assert len(pending) == MAX_PENDING
    assert event(0).id not in pending
