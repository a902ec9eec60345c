"""The demonstration: three nodes, each where nobody sees it, and a chat and files between two.

Every step is the `overlay` command as anybody can type it, in a process of its own. Nothing is simulated: the
networks are a small Tor network of real `tor` processes and a small I2P network of real `i2pd` processes, on
this machine. With `--transport tor,i2p` one is taken down while people write and a file is under way.
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
from dataclasses import dataclass
from pathlib import Path
from time import sleep

from scripts.demonstration.console import Console
from scripts.demonstration.processes import Answer, Household, Program, StepFailedError, left_over
from scripts.demonstration.resuming import SIZES, ResumedFetch

FILE_BYTES = 3 * 1024 * 1024
LONG_FILE_BYTES = 16 * 1024 * 1024
"""Enough that a network can be taken down while it is under way."""
READY_SECONDS = "90"
PEOPLE = ("ada", "bob")
HIDDEN = ("Hello Bob. Do you know where I am?", "No, Ada, and you don't know where I am.")
OPEN = ("Hello Bob. Do you hear me?", "Loud and clear, Ada.")
AFTERWARDS = ("Tor is gone. Are you still there?", "I am, and nothing of what we said is lost.")


@dataclass(frozen=True, slots=True)
class Network:
    """A network that nodes can be on.

    Attributes:
        title: the step that starts it; empty where it is there anyway.
        proves: what that shows.
        command: what starts it.
        home: where it puts each node.
    """

    title: str
    proves: str
    command: tuple[str, ...]
    home: str


NETWORKS = {
    "tor": Network(
        "A private Tor network starts",
        "one authority and three relays, all real tor processes that reach only this machine",
        ("overlay", "testnet", "tor", "--dir", "net"),
        "behind its own onion service",
    ),
    "i2p": Network(
        "A private I2P network starts",
        "real i2pd routers in a network namespace of their own, which nothing leaves",
        ("overlay", "testnet", "i2p", "--dir", "net-i2p"),
        "behind its own I2P destination",
    ),
    "tcp": Network("", "", (), "on its own TCP port"),
}


PLACES = {
    "tor": "on a private Tor network",
    "i2p": "on a private I2P network",
    "tor,i2p": "on Tor and I2P at once, of which one is taken down",
    "tcp": "over plain TCP (which hides nothing)",
}
"""What `--transport` can be, and what that is."""

POLL_SECONDS = 0.02


class Demonstration:
    """The story, step by step.

    Args:
        folder: an empty folder, where the commands run.
        console: what tells it.
        transports: names of `NETWORKS`; with two of them the first is taken down in the middle.
    """

    def __init__(self, folder: Path, console: Console, transports: Sequence[str]) -> None:
        self._folder = folder
        self._console = console
        self._transports = transports
        self.household = Household(folder, lambda words, stays: console.command(words, background=stays))
        self._networks: dict[str, Program] = {}
        self._sam: list[str] = []
        self._session = ""

    def tell(self) -> None:
        """Run all steps.

        Raises:
            StepFailedError: one of them did not do what it shows.
        """
        for name in self._transports:
            if NETWORKS[name].command:
                self._start_network(name)
        ticket = self._start_directory()
        self._start_people(ticket)
        self._open_chat()
        question, answer = OPEN if "tcp" in self._transports else HIDDEN
        self._say("ada", "bob", question)
        self._say("bob", "ada", answer)
        self._resume_a_fetch()
        if len(self._transports) > 1:
            self._lose_a_network()
        else:
            self._send_file()
        self._stop()

    def _start_network(self, name: str) -> None:
        network = NETWORKS[name]
        with self._console.step(network.title, proves=network.proves):
            self._networks[name] = self.household.stay(*network.command)
            answer = self._networks[name].answer()
            if name == "i2p":
                self._sam = answer["sam"]

    def _start_directory(self) -> str:
        with self._console.step(
            "A directory node goes up, and gives out a ticket",
            proves="one token holds all that a newcomer needs: who the directory is, and where",
        ):
            self._overlay("dir", "init")
            self.household.node("dir", *self._up_words(0), "--directory")
            self._show_ready("dir", self._overlay("dir", "status", "--wait", READY_SECONDS))
            return _text(self._overlay("dir", "ticket"), "ticket")

    def _start_people(self, ticket: str) -> None:
        hidden = " and ".join(NETWORKS[name].home for name in self._transports)
        with self._console.step(
            "Ada and Bob start their nodes with the ticket, at the same time",
            proves=f"both are registered, each {hidden}: no account, no server of ours, no name",
        ):
            for person in PEOPLE:
                self._overlay(person, "init", "--name", person.capitalize())
            for number, person in enumerate(PEOPLE, 1):
                self.household.node(person, *self._up_words(number), "--join", ticket)
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
        with self._console.step(
            "Ada posts a file of 3 MiB, and Bob fetches it",
            proves="it lay encrypted, in uniform chunks, at nodes that cannot read it; Bob's bytes are Ada's",
        ):
            posted = self._post("photo.raw", FILE_BYTES)
            self._overlay("bob", "chat", "get", self._session, posted, "-o", "copy.raw")
            self._compare("photo.raw", *(_digest(self._folder / name) for name in ("photo.raw", "copy.raw")))

    def _resume_a_fetch(self) -> None:
        up_words = self._up_words(1 + PEOPLE.index("bob"))
        length = min(SIZES[name] for name in self._transports)
        ResumedFetch(self._folder, self._console, self.household, up_words, length).tell()

    def _lose_a_network(self) -> None:
        """Take the first network down while Ada fetches a file, and have both write on.

        Ada, because the others keep the file for her: Bob's node has all of it already.

        Raises:
            StepFailedError: the file was there too soon, or is another one in the end.
        """
        with self._console.step(
            "Ada posts a film of 16 MiB, loses her own copy, and begins to fetch it back",
            proves="the nodes that keep it for her can read nothing of it; a part of it is on her disk again",
        ):
            posted = self._post("film.raw", LONG_FILE_BYTES)
            digest = _digest(self._folder / "film.raw")
            (self._folder / "film.raw").unlink()
            self._show_networks()
            fetching = self._begin("ada", "chat", "get", self._session, posted, "-o", "film.raw")
            self._wait_part(fetching, LONG_FILE_BYTES // 16)
        lost, kept = self._transports
        with self._console.step(
            f"The {lost.capitalize()} network is taken down in the middle",
            proves=f"every process of it has ended; what is left is {kept.upper()}",
        ):
            self._networks.pop(lost).kill()
            there = self._part_bytes()
            if there == 0:
                raise StepFailedError("the file was there before the network could be taken down")
            self._console.fact("film.raw", f"{there >> 20} of {LONG_FILE_BYTES >> 20} MiB are there")
        self._say("ada", "bob", AFTERWARDS[0])
        self._say("bob", "ada", AFTERWARDS[1])
        with self._console.step(
            "Ada's film comes on", proves="the rest came over the other network, and it is the same film"
        ):
            fetching.finish()
            self._compare("film.raw", digest, _digest(self._folder / "film.raw"))
            self._show_networks()

    def _show_networks(self) -> None:
        """Say over which network Ada's node is connected to the others."""
        answers = self._begin("ada", "peers").finish()
        self._console.fact("connected", ", ".join(f"over {each['over']}" for each in answers if each["over"]))

    def _post(self, name: str, size: int) -> str:
        (self._folder / name).write_bytes(os.urandom(size))
        screen = self._watch("bob")
        posted = _text(self._overlay("ada", "chat", "post", self._session, name), "file")
        screen.answer(lambda line: line.get("kind") == "file")
        screen.kill()
        return posted

    def _wait_part(self, fetching: Program, size: int) -> None:
        while self._part_bytes() < size:
            if not fetching.running:
                raise StepFailedError("the file was there before the network could be taken down")
            sleep(POLL_SECONDS)

    def _part_bytes(self) -> int:
        return sum(part.stat().st_size for part in self._folder.glob(".*.part"))

    def _compare(self, name: str, posted: str, fetched: str) -> None:
        self._console.fact("posted", f"{name:<10} sha256 {posted}")
        self._console.fact("fetched", f"{name:<10} sha256 {fetched}")
        if posted != fetched:
            raise StepFailedError("the file that was fetched is not the one that was posted")

    def _watch(self, reader: str) -> Program:
        """Keep the chat open on a reader's screen."""
        return self.household.stay("overlay", "--home", reader, "chat", "read", self._session, "--follow")

    def _stop(self) -> None:
        with self._console.step(
            "Everything ends", proves="every process ended by itself when it was told to, and none is left"
        ):
            for home in (*PEOPLE, "dir"):
                self.household.stop_node(home)
            for network in self._networks.values():
                self._console.fact("testnet", "Ctrl-C")
                network.interrupt()
            left = left_over(self._folder)
            if left:
                raise StepFailedError(f"processes were left behind: {left}")

    def _up_words(self, number: int) -> Sequence[str]:
        """What node `number` is started with; on I2P each has a router of its own, as people have."""
        words: list[str] = []
        for name in self._transports:
            words += ("--transport", name)
            match name:
                case "tor":
                    words += ("--torrc", "net/client.torrc")
                case "i2p":
                    words += ("--sam", self._sam[number])
                case _:
                    words += ("--listen", "127.0.0.1:0")
        return words

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


def run(transports: Sequence[str], folder: Path, console: Console) -> int:
    """Tell the story in `folder`; afterwards no process of it is left. Returns the exit code."""
    demonstration = Demonstration(folder, console, transports)
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
        prog="scripts/demo", description="Three nodes, a chat between two, and files, step by step."
    )
    parser.add_argument("--transport", choices=tuple(PLACES), default="tor")
    transport: str = parser.parse_args().transport
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console(sys.stdout)
    console.headline(f"overlay: three nodes, a chat and files, {PLACES[transport]}")
    # The name is short because a Unix socket's path holds 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="ov-demo-")).resolve()
    try:
        code = run(transport.split(","), folder, console)
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
