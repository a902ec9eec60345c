"""The demonstration: three nodes, each behind its own onion service, and a chat with a file between two.

Every step is the `overlay` command as anybody can type it, in a process of its own. Nothing is simulated:
with `--transport tor` the network is a small Tor network of real `tor` processes on this machine.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts.demonstration.console import Console
from scripts.demonstration.processes import Answer, Household, Program, StepFailedError, left_over

FILE_BYTES = 3 * 1024 * 1024
READY_SECONDS = "90"
PEOPLE = ("ada", "bob")
TALK = {
    "tor": ("Hello Bob. Do you know where I am?", "No, Ada, and you don't know where I am."),
    "tcp": ("Hello Bob. Do you hear me?", "Loud and clear, Ada."),
}


class Demonstration:
    """The story, step by step.

    Args:
        folder: an empty folder, where the commands run.
        console: what tells it.
        transport: `tor` or `tcp`.
    """

    def __init__(self, folder: Path, console: Console, transport: str) -> None:
        self._folder = folder
        self._console = console
        self._transport = transport
        self.household = Household(folder, lambda words, stays: console.command(words, background=stays))
        self._session = ""

    def tell(self) -> None:
        """Run all steps.

        Raises:
            StepFailedError: one of them did not do what it shows.
        """
        if self._transport == "tor":
            self._start_network()
        ticket = self._start_directory()
        self._start_people(ticket)
        self._open_chat()
        question, answer = TALK[self._transport]
        self._say("ada", "bob", question)
        self._say("bob", "ada", answer)
        self._send_file()
        self._stop()

    def _start_network(self) -> None:
        with self._console.step(
            "A private Tor network starts",
            proves="one authority and three relays, all real tor processes that reach only this machine",
        ):
            self._network = self.household.stay("overlay", "testnet", "tor", "--dir", "net")
            self._network.answer()

    def _start_directory(self) -> str:
        with self._console.step(
            "A directory node goes up, and gives out a ticket",
            proves="one token holds all that a newcomer needs: who the directory is, and where",
        ):
            self._overlay("dir", "init")
            self.household.node("dir", *self._up_words(), "--directory")
            self._show_ready("dir", self._overlay("dir", "status", "--wait", READY_SECONDS))
            return _text(self._overlay("dir", "ticket"), "ticket")

    def _start_people(self, ticket: str) -> None:
        hidden = (
            "each behind its own onion service" if self._transport == "tor" else "each on its own TCP port"
        )
        with self._console.step(
            "Ada and Bob start their nodes with the ticket, at the same time",
            proves=f"both are registered, {hidden}: no account, no server of ours, no name",
        ):
            for person in PEOPLE:
                self._overlay(person, "init", "--name", person.capitalize())
            for person in PEOPLE:
                self.household.node(person, *self._up_words(), "--join", ticket)
            waiting = [self._begin(person, "status", "--wait", READY_SECONDS) for person in PEOPLE]
            for person, program in zip(PEOPLE, waiting, strict=True):
                self._show_ready(person, program.finish()[-1])

    def _open_chat(self) -> None:
        with self._console.step(
            "Ada creates a chat and invites Bob, who joins",
            proves="whoever holds the invite is in; Bob's node found Ada's by identifier, not by address",
        ):
            created = self._overlay("ada", "chat", "create", "Tea at five")
            self._session = _text(created, "session")
            joined = self._overlay("bob", "chat", "join", _text(created, "invite"), "--as", "Bob")
            if _text(joined, "session") != self._session:
                raise StepFailedError("Bob joined another session than the one that Ada created")
            self._console.fact("session", self._session)

    def _say(self, sender: str, reader: str, text: str) -> None:
        with self._console.step(
            f"{sender.capitalize()} writes to {reader.capitalize()}",
            proves="signed by its writer, encrypted from node to node, and the same message on both sides",
        ):
            screen = self._watch(reader)
            sent = _text(self._overlay(sender, "chat", "send", self._session, text), "message")
            entry = screen.answer(lambda line: line.get("id") == sent)
            if entry.get("text") != text:
                raise StepFailedError("the message arrived, and says something else")
            self._console.fact(_text(entry, "from"), text)
            screen.kill()

    def _send_file(self) -> None:
        original, copy = self._folder / "photo.raw", self._folder / "copy.raw"
        original.write_bytes(os.urandom(FILE_BYTES))
        with self._console.step(
            "Ada posts a file of 3 MiB, and Bob fetches it",
            proves="it lay encrypted, in uniform chunks, at nodes that cannot read it; Bob's bytes are Ada's",
        ):
            screen = self._watch("bob")
            posted = _text(self._overlay("ada", "chat", "post", self._session, original.name), "file")
            screen.answer(lambda line: line.get("kind") == "file")
            screen.kill()
            self._overlay("bob", "chat", "get", self._session, posted, "-o", copy.name)
            for label, path in (("posted", original), ("fetched", copy)):
                self._console.fact(label, f"{path.name:<10} sha256 {_digest(path)}")
            if _digest(original) != _digest(copy):
                raise StepFailedError("the file that Bob fetched is not the one that Ada posted")

    def _watch(self, reader: str) -> Program:
        """Keep the chat open on a reader's screen."""
        return self.household.stay("overlay", "--home", reader, "chat", "read", self._session, "--follow")

    def _stop(self) -> None:
        with self._console.step(
            "Everything ends", proves="every process ended by itself when it was told to, and none is left"
        ):
            for home in (*PEOPLE, "dir"):
                self.household.stop_node(home)
            if self._transport == "tor":
                self._console.fact("testnet", "Ctrl-C")
                self._network.interrupt()
            left = left_over(self._folder)
            if left:
                raise StepFailedError(f"processes were left behind: {left}")

    def _up_words(self) -> Sequence[str]:
        if self._transport == "tor":
            return ("--transport", "tor", "--torrc", "net/client.torrc")
        return ("--transport", "tcp", "--listen", "127.0.0.1:0")

    def _overlay(self, home: str, *words: str) -> Answer:
        return self.household.run("overlay", "--home", home, *words)

    def _begin(self, home: str, *words: str) -> Program:
        return self.household.begin("overlay", "--home", home, *words)

    def _show_ready(self, home: str, status: Answer) -> None:
        self._console.fact(home, ", ".join(status["locators"]))


def _text(answer: Answer, key: str) -> str:
    value = answer.get(key)
    if not isinstance(value, str):
        raise StepFailedError(f"an answer lacks the text '{key}': {answer}")
    return value


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(transport: str, folder: Path, console: Console) -> int:
    """Tell the story in `folder`; afterwards no process of it is left. Returns the exit code."""
    demonstration = Demonstration(folder, console, transport)
    try:
        demonstration.tell()
    except StepFailedError as failure:
        console.failure(failure.reason, [*failure.details, *demonstration.household.last_words()])
        return 1
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave half of them behind
        demonstration.household.close()
    return 0


def main() -> int:
    """Run the demonstration; 0 when every step did what it shows."""
    parser = argparse.ArgumentParser(
        prog="scripts/demo", description="Three nodes, a chat between two, and a file, step by step."
    )
    parser.add_argument("--transport", choices=("tor", "tcp"), default="tor")
    transport: str = parser.parse_args().transport
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console(sys.stdout)
    network = "on a private Tor network" if transport == "tor" else "over plain TCP (which hides nothing)"
    console.headline(f"overlay: three nodes, a chat and a file, {network}")
    # The name is short because a Unix socket's path holds 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="ov-demo-")).resolve()
    try:
        code = run(transport, folder, console)
    except KeyboardInterrupt:
        console.failure("interrupted", [])
        code = 128 + signal.SIGINT
    finally:
        shutil.rmtree(folder)
    if code == 0:
        console.farewell("Done: no process and no file is left behind;")
    return code


if __name__ == "__main__":
    sys.exit(main())
