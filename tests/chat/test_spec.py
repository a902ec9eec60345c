"""The worked example of docs/spec/chat.md, computed again."""

from __future__ import annotations

import textwrap
from pathlib import Path

from overlay.chat.events import Created, Event, Joined
from overlay.chat.invite import Invite
from overlay.chat.keys import BoxContext, SessionKeys
from overlay.chat.views import event_text, participant_text, session_text
from overlay.identity import NodeIdentifier, SigningSecret

SPECIFICATION = Path(__file__).parents[2] / "docs" / "spec" / "chat.md"


def compute() -> dict[str, str]:
    key, secret, participant = SigningSecret(b"\1" * 32), b"\2" * 32, SigningSecret(b"\3" * 32)
    node, place, receiver = NodeIdentifier(b"\4" * 32), b"\5" * 92, NodeIdentifier(b"\7" * 32)
    keys = SessionKeys(secret, key.public)
    at = 1_800_000_000
    created = Event.sign(key, session=key.public, clock=1, parents=[], at=at, content=Created(title="Tea"))
    proof = keys.prove(participant.public)
    joined = Event.sign(
        participant,
        session=key.public,
        clock=2,
        parents=[created.id],
        at=at,
        content=Joined(name="Alice", proof=proof, node=node.value, place=place),
    )
    box = keys.seal(b"hello", BoxContext("events", node, receiver), lambda count: b"\6" * count)
    return {
        "session": key.public.hex(),
        "session in text": session_text(key.public),
        "participant": participant.public.hex(),
        "participant in text": participant_text(participant.public),
        "first event": created.encoded.hex(),
        "its identifier": created.id.hex(),
        "in text": event_text(created.id),
        "proof": proof.hex(),
        "second event": joined.encoded.hex(),
        "its identifier, too": joined.id.hex(),
        "box": box.hex(),
        "invite": str(Invite(created, secret, node, place)),
    }


def read() -> dict[str, str]:
    """Names end with a colon; what follows, indented, is a value, over as many lines as it takes."""
    text = SPECIFICATION.read_text(encoding="utf-8")
    block = text.split("```example\n", 1)[1].split("```", 1)[0]
    found: dict[str, str] = {}
    name = ""
    for line in block.splitlines():
        if line.startswith(" "):
            found[name] += line.strip()
        else:
            name = line.removesuffix(":")
            found[name] = ""
    return found


def write() -> str:
    """The example as it stands in the specification: for whoever changes the format."""
    lines = []
    for name, value in compute().items():
        lines += [f"{name}:", *textwrap.wrap(value, 100, initial_indent="  ", subsequent_indent="  ")]
    return "\n".join(lines)


def test_the_example_of_the_specification_is_what_the_code_computes() -> None:
    assert read() == compute(), f"if the format is meant to change, write this:\n{write()}"


def test_the_example_can_be_read_by_whoever_has_only_the_specification() -> None:
    example = read()
    created = Event.verify(bytes.fromhex(example["first event"]))
    joined = Event.verify(bytes.fromhex(example["second event"]))
    assert joined.parents == (created.id,)
    assert Invite.parse(example["invite"]).created == created
