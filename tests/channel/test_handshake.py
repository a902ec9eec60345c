from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.channel.handshake import (
    ANONYMOUS,
    ANSWER_BYTES,
    MAX_HELLO_BYTES,
    MUTUAL,
    PROOF_BYTES,
    Established,
    Script,
    initiate_script,
    respond_script,
)
from overlay.errors import MalformedError, ProtocolViolationError, VerificationError
from overlay.identity import NodePublic, NodeSecret

ALICE = NodeSecret.from_bytes(bytes(range(64)))
BOB = NodeSecret.from_bytes(bytes(range(64, 128)))
EVE = NodeSecret.from_bytes(bytes(range(128, 192)))

Change = Callable[[int, bytes], bytes]


def caller(
    secret: NodeSecret | None = ALICE,
    responder: NodePublic = BOB.public,
    hello: bytes | None = None,
    place: bytes = b"",
) -> Script:
    said = (b"hello from alice" if secret else b"") if hello is None else hello
    return initiate_script(secret=secret, responder=responder, hello=said, place=place, entropy=os.urandom)


def callee(secret: NodeSecret = BOB, hello: bytes = b"hello from bob", place: bytes = b"") -> Script:
    return respond_script(secret=secret, hello=hello, place=place, entropy=os.urandom)


def run(
    initiator: Script, responder: Script, change: Change = lambda _, data: data
) -> tuple[Established, Established]:
    """Let two scripts talk; `change` may alter the bytes of each message on the way."""
    results: dict[Script, Established] = {}
    inbox = {initiator: b"", responder: b""}
    steps = {initiator: next(initiator), responder: next(responder)}
    count = 0
    while len(results) < 2:
        for script, other in ((initiator, responder), (responder, initiator)):
            while script not in results:
                if steps[script].send:
                    inbox[other] += change(count, steps[script].send)
                    count += 1
                    steps[script] = steps[script]._replace(send=b"")
                need = steps[script].need
                if len(inbox[script]) < need:
                    break
                data, inbox[script] = inbox[script][:need], inbox[script][need:]
                try:
                    steps[script] = script.send(data)
                except StopIteration as end:
                    results[script] = end.value
    assert inbox == {initiator: b"", responder: b""}
    return results[initiator], results[responder]


def recorder(wire: list[bytes]) -> Change:
    def record(_: int, data: bytes) -> bytes:
        wire.append(data)
        return data

    return record


def test_both_learn_who_the_other_is() -> None:
    one, two = run(caller(), callee())
    assert (one.peer, one.hello) == (BOB.public, b"hello from bob")
    assert (two.peer, two.hello) == (ALICE.public, b"hello from alice")
    assert two.receiving.decrypt(one.sending.encrypt(b"there")) == b"there"
    assert one.receiving.decrypt(two.sending.encrypt(b"back")) == b"back"


def test_an_anonymous_caller_shows_nothing_of_itself() -> None:
    wire: list[bytes] = []
    one, two = run(caller(secret=None), callee(), recorder(wire))
    assert (one.peer, one.hello) == (BOB.public, b"hello from bob")
    assert (two.peer, two.hello) == (None, b"")
    assert [len(data) for data in wire] == [2 + 32 + 16, ANSWER_BYTES[ANONYMOUS]]


@pytest.mark.parametrize("hello", [b"", b"x" * MAX_HELLO_BYTES])
def test_lengths_do_not_show_what_is_said(hello: bytes) -> None:
    wire: list[bytes] = []
    one, two = run(caller(hello=hello), callee(hello=hello), recorder(wire))
    assert one.hello == two.hello == hello
    assert [len(data) for data in wire] == [2 + 32, ANSWER_BYTES[MUTUAL], PROOF_BYTES[MUTUAL]]


@pytest.mark.parametrize("secret", [ALICE, None])
def test_another_node_than_the_one_called_is_refused_and_not_named(secret: NodeSecret | None) -> None:
    with pytest.raises(VerificationError) as caught:
        run(caller(secret=secret), callee(secret=EVE))
    assert EVE.public.signing.hex() not in str(caught.value)


@pytest.mark.parametrize("secret", [ALICE, None])
def test_a_node_cannot_show_anothers_signing_key(secret: NodeSecret | None) -> None:
    liar = NodeSecret(EVE.signing, BOB.static)
    with pytest.raises(VerificationError):
        run(caller(secret=secret), callee(secret=liar))


def test_a_caller_that_claims_anothers_signing_key_gets_an_identifier_of_its_own() -> None:
    _, two = run(caller(secret=NodeSecret(ALICE.signing, EVE.static)), callee())
    assert two.peer is not None
    assert two.peer.identifier not in {ALICE.identifier, EVE.identifier}


def test_the_caller_says_nothing_to_a_wrong_node() -> None:
    sent: list[bytes] = []
    with pytest.raises(VerificationError):
        run(caller(), callee(secret=EVE), recorder(sent))
    assert len(sent) == 2


@pytest.mark.parametrize("secret", [ALICE, None])
def test_a_handshake_that_is_relayed_to_another_place_fails(secret: NodeSecret | None) -> None:
    with pytest.raises(VerificationError):
        run(caller(secret=secret, place=b"dialled"), callee(place=b"served"))


def test_the_pattern_cannot_be_changed_on_the_way() -> None:
    with pytest.raises(VerificationError):
        run(caller(secret=None), callee(), lambda count, data: b"\1\1" + data[2:34] if count == 0 else data)


@pytest.mark.parametrize("head", [b"\0\1", b"\2\1", b"\1\0", b"\1\3", b"GE"])
def test_other_versions_and_patterns_are_refused(head: bytes) -> None:
    script = callee()
    next(script)
    with pytest.raises(ProtocolViolationError):
        script.send(head)


def test_a_hello_is_bounded() -> None:
    for script in (caller(hello=bytes(MAX_HELLO_BYTES + 1)), callee(hello=bytes(MAX_HELLO_BYTES + 1))):
        with pytest.raises(MalformedError):
            next(script)


def test_an_anonymous_caller_must_not_say_who_it_is() -> None:
    with pytest.raises(MalformedError):
        next(caller(secret=None, hello=b"it is me"))


@given(st.sampled_from([ALICE, None]), st.integers(0, 2), st.integers(2, 2_177), st.integers(1, 255))
def test_any_change_of_a_handshake_is_refused(
    secret: NodeSecret | None, message: int, place: int, change: int
) -> None:
    def alter(count: int, data: bytes) -> bytes:
        if count != message:
            return data
        index = place % len(data)
        return data[:index] + bytes((data[index] ^ change,)) + data[index + 1 :]

    altered = message < (3 if secret else 2)
    try:
        run(caller(secret=secret), callee(), alter)
    except (ProtocolViolationError, VerificationError):
        assert altered
    else:
        assert not altered


@given(st.binary(min_size=ANSWER_BYTES[MUTUAL], max_size=ANSWER_BYTES[MUTUAL]))
def test_a_random_answer_is_refused(answer: bytes) -> None:
    script = caller()
    next(script)
    with pytest.raises((ProtocolViolationError, VerificationError)):
        script.send(answer)


@given(st.sampled_from([MUTUAL, ANONYMOUS]), st.binary(min_size=48, max_size=48))
def test_a_random_call_is_refused_or_answered(pattern: int, message: bytes) -> None:
    script = callee()
    next(script)
    need = script.send(bytes((1, pattern))).need
    try:
        step = script.send(message[:need])
    except VerificationError:
        return
    assert pattern == MUTUAL
    assert len(step.send) == ANSWER_BYTES[MUTUAL]
    with pytest.raises(VerificationError):
        script.send(bytes(step.need))
