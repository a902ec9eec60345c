from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from overlay.channel.noise import MAX_NOISE_BYTES, CipherState, HandshakeState
from overlay.errors import ClosedError, MalformedError, ProtocolViolationError, VerificationError

VECTORS = Path(__file__).parents[3] / "shared" / "vectors" / "noise" / "cacophony-25519-chachapoly.json"
XX = "Noise_XX_25519_ChaChaPoly_BLAKE2b"


def load_vectors() -> list[Any]:
    if not VECTORS.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason="the public Noise vectors are not there"))]
    vectors = json.loads(VECTORS.read_text())["vectors"]
    return [pytest.param(vector, id=vector["protocol_name"]) for vector in vectors]


def side(vector: dict[str, Any], role: str) -> HandshakeState:
    static = vector.get(f"{role}_static")
    remote = vector.get(f"{role}_remote_static")
    return HandshakeState(
        vector["protocol_name"],
        initiator=role == "init",
        prologue=bytes.fromhex(vector[f"{role}_prologue"]),
        entropy=lambda _: bytes.fromhex(vector[f"{role}_ephemeral"]),
        static=X25519PrivateKey.from_private_bytes(bytes.fromhex(static)) if static else None,
        remote_static=bytes.fromhex(remote) if remote else None,
    )


@pytest.mark.parametrize("vector", load_vectors())
def test_public_vector(vector: dict[str, Any]) -> None:
    initiator, responder = side(vector, "init"), side(vector, "resp")
    messages = [(bytes.fromhex(m["payload"]), bytes.fromhex(m["ciphertext"])) for m in vector["messages"]]
    writer, reader = initiator, responder
    while not initiator.finished:
        payload, ciphertext = messages.pop(0)
        assert writer.write_message(payload) == ciphertext
        assert reader.read_message(ciphertext) == payload
        writer, reader = reader, writer
    assert responder.finished
    assert initiator.hash == responder.hash == bytes.fromhex(vector["handshake_hash"])
    ciphers = {initiator: initiator.split(), responder: responder.split()}
    for payload, ciphertext in messages:
        assert ciphers[writer][0].encrypt(payload) == ciphertext
        assert ciphers[reader][1].decrypt(ciphertext) == payload
        writer, reader = reader, writer


def xx(*, initiator: bool, prologue: bytes = b"") -> HandshakeState:
    static = X25519PrivateKey.generate()
    return HandshakeState(XX, initiator=initiator, prologue=prologue, entropy=os.urandom, static=static)


def test_each_side_learns_the_others_key() -> None:
    keys = [X25519PrivateKey.generate() for _ in range(2)]
    one, two = (
        HandshakeState(XX, initiator=first, prologue=b"", entropy=os.urandom, static=key)
        for first, key in zip((True, False), keys, strict=True)
    )
    two.read_message(one.write_message(b""))
    one.read_message(two.write_message(b""))
    two.read_message(one.write_message(b""))
    assert one.remote_static == keys[1].public_key().public_bytes_raw()
    assert two.remote_static == keys[0].public_key().public_bytes_raw()


def test_different_prologues_do_not_meet() -> None:
    one, two = xx(initiator=True, prologue=b"a"), xx(initiator=False, prologue=b"b")
    two.read_message(one.write_message(b""))
    with pytest.raises(VerificationError):
        one.read_message(two.write_message(b""))


@pytest.mark.parametrize("point", [bytes(32), bytes([1]) + bytes(31)])
def test_low_order_points_are_refused(point: bytes) -> None:
    responder = xx(initiator=False)
    responder.read_message(point)
    with pytest.raises(VerificationError):
        responder.write_message(b"")


def test_a_missing_key_is_the_callers_mistake() -> None:
    with pytest.raises(MalformedError):
        HandshakeState(XX.replace("XX", "NK"), initiator=True, prologue=b"", entropy=os.urandom)


@given(st.binary(max_size=200))
def test_any_message_is_read_or_refused(data: bytes) -> None:
    initiator = xx(initiator=True)
    initiator.write_message(b"")
    with pytest.raises((ProtocolViolationError, VerificationError)):
        initiator.read_message(data)


@given(st.integers(0, 111), st.integers(1, 255))
def test_any_change_of_a_message_is_noticed(place: int, change: int) -> None:
    one, two = xx(initiator=True), xx(initiator=False)
    two.read_message(one.write_message(b""))
    message = bytearray(two.write_message(b"0123456789abcdef"))
    message[place] ^= change
    with pytest.raises(VerificationError):
        one.read_message(bytes(message))


def test_an_oversized_message_is_refused() -> None:
    with pytest.raises(ProtocolViolationError):
        xx(initiator=False).read_message(bytes(MAX_NOISE_BYTES + 1))


def test_the_last_nonce_is_never_used() -> None:
    cipher = CipherState(bytes(32), nonce=2**64 - 2)
    ciphertext = cipher.encrypt(b"last")
    with pytest.raises(ClosedError):
        cipher.encrypt(b"one too many")
    receiver = CipherState(bytes(32), nonce=2**64 - 2)
    assert receiver.decrypt(ciphertext) == b"last"
    with pytest.raises(ClosedError):
        receiver.decrypt(ciphertext)


def test_a_failed_decryption_changes_nothing() -> None:
    sender, receiver = CipherState(bytes(32)), CipherState(bytes(32))
    first, second = sender.encrypt(b"1"), sender.encrypt(b"2")
    with pytest.raises(VerificationError):
        receiver.decrypt(second)
    assert [receiver.decrypt(first), receiver.decrypt(second)] == [b"1", b"2"]
    with pytest.raises(VerificationError):
        receiver.decrypt(first)
