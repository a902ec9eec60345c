"""The numbers of docs/spec/channel.md are those of the code."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from pathlib import Path

from overlay.channel.frames import CloseCode, FrameType, ResetCode, finish_frame, open_frame
from overlay.channel.handshake import Established, Step, initiate_script, respond_script
from overlay.channel.machine import DEFAULT_LIMITS, ChannelMachine
from overlay.identity import Entropy, NodeSecret
from overlay.locators import memory_locator

SPEC = (Path(__file__).parents[2] / "docs" / "spec" / "channel.md").read_text("utf-8")


def always(byte: int) -> Entropy:
    return lambda size: bytes((byte,)) * size


def finish(script: Generator[Step, bytes, Established], data: bytes) -> Established:
    try:
        script.send(data)
    except StopIteration as end:
        established: Established = end.value
        return established
    raise AssertionError


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_the_worked_example() -> None:
    place = memory_locator(1).to_bytes()
    alice = NodeSecret.from_bytes(bytes(range(64)))
    bob = NodeSecret.from_bytes(bytes(range(64, 128)))
    caller = initiate_script(
        secret=alice, responder=bob.public, hello=b"hello", place=place, entropy=always(0xAA)
    )
    responder = respond_script(secret=bob, hello=b"welcome", place=place, entropy=always(0xBB))
    next(responder)
    first = next(caller).send
    responder.send(first[:2])
    answer = responder.send(first[2:]).send
    proof = caller.send(answer).send
    assert finish(responder, proof).peer == alice.public
    machine = ChannelMachine(finish(caller, b""), initiator=True, limits=DEFAULT_LIMITS, now=0)
    number = machine.open()
    machine.send(number, b"hi")
    machine.finish(number)
    cell = machine.data_to_send(0)
    numbers = {
        "PLACE": place.hex(),
        "FIRST": first.hex(),
        "ANSWER": answer[:32].hex(),
        "SUMANSWER": sha256(answer),
        "PROOF": proof[:32].hex(),
        "SUMPROOF": sha256(proof),
        "FRAMES": " ".join(
            part.hex()
            for part in (
                open_frame(1, bulk=False).header + b"\0",
                bytes.fromhex("03 00000001 0002") + b"hi",
                finish_frame(1).header,
            )
        ),
        "CELL": cell[:32].hex(),
        "SUMCELL": sha256(cell),
    }
    missing = {name: value for name, value in numbers.items() if value not in SPEC}
    assert missing == {}
    assert (len(answer), len(proof), len(cell)) == (2_178, 2_146, 1_024)


def test_types_and_codes_are_listed() -> None:
    for kind in FrameType:
        assert f"| {kind.value} | {kind.name} |" in SPEC
    assert [code.value for code in ResetCode] == [0, 1]
    assert [code.value for code in CloseCode] == [0, 1, 2]
