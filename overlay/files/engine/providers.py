"""Who may have the chunks: who is asked next, who is left alone for a while, and who for good."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from overlay.identity import NodeIdentifier

FIRST_PAUSE = 2.0
"""Seconds until a provider that failed is tried again; doubled with each failure in a row."""

MAX_PAUSE = 60.0
"""Seconds of the longest such pause: a node that came back is noticed within a minute."""

MAX_FAILURES = 6
"""Failures in a row after which a provider is given up that was reached before: one minute of pauses, and six
attempts to open a circuit, which over Tor take up to a minute each. It may be starting again."""

MAX_FIRST_FAILURES = 2
"""The same for one that was never reached: each attempt is three dials, and whoever waits for what is not
there wants to know. One that nobody said has it is given up after the first."""

BARREN_PAUSE = 10.0
"""Seconds until a provider that had nothing of what it was asked for is asked for other chunks; doubled each
time in a row. It may have a part that is not wanted yet."""

MAX_ACCUSED = 3
"""Liars that an error names."""

MAX_DOUBLINGS = 5
"""A pause is doubled at most so often: 32 times the first."""


@dataclass(slots=True)
class Past:
    """What the transfers of one fetch have shown of those who are asked; a folder takes many of them.

    Attributes:
        useful: who sent something that was wanted.
        liars: who sent something else than was asked for.
    """

    useful: set[NodeIdentifier] = field(default_factory=set)
    liars: set[NodeIdentifier] = field(default_factory=set)

    @property
    def accusation(self) -> str:
        """Say who lied, for an error; empty if nobody did."""
        names = sorted(map(str, self.liars))
        more = f" and {len(names) - MAX_ACCUSED} more" if len(names) > MAX_ACCUSED else ""
        return f"{', '.join(names[:MAX_ACCUSED])}{more} sent something else" if names else ""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Who may have what one fetch brings.

    Attributes:
        named: who is said to have it, the best first.
        others: who is asked as well when those cannot bring all of it, and not before: whoever is asked
            learns what is fetched, and with it what to ask others for.
        past: grows with each transfer, and ends with the fetch.
    """

    named: Sequence[NodeIdentifier]
    others: Sequence[NodeIdentifier] = ()
    past: Past = field(default_factory=Past)


class Reason(StrEnum):
    """Why a transfer cannot be finished."""

    UNREACHABLE = "unreachable"
    """A provider that may have what is missing was not reached, or did not answer: later it may."""
    ABSENT = "absent"
    """Everybody who was reached says that a chunk is not there."""
    LIED = "lied"
    """Whoever is said to have it, and answered, sent wrong chunks."""
    NOBODY = "nobody"
    """No provider is known."""


@dataclass(slots=True)
class _Provider:
    given_up: bool = False
    failures: int = 0
    pending: bool = (
        False  # whether one that is not counted yet waits for the circuits that were begun with it
    )
    barren: int = 0
    paused_until: float = 0.0
    named: bool = True
    met: bool = False
    reached: bool = False
    rate: float = 0.0  # bytes per second of one of its circuits; 0 while it is not known
    lacks: set[bytes] = field(default_factory=set)


class Providers:
    """The providers of one transfer.

    Args:
        nodes: in the order in which they are tried first; before them, those that were of use already.
        past: what is known of them, and learned.
    """

    def __init__(self, nodes: Iterable[NodeIdentifier], past: Past | None = None) -> None:
        self._past = past or Past()
        first = sorted(nodes, key=lambda node: node not in self._past.useful)
        self._providers = {node: _Provider() for node in first}

    def add(self, node: NodeIdentifier) -> None:
        """Learn of one more of whom nobody says that it has it; whoever is known already keeps its past."""
        self._providers.setdefault(node, _Provider(named=False))

    def pick(
        self,
        circuits: Mapping[NodeIdentifier, int],
        fresh: Container[NodeIdentifier],
        most: int,
        now: float,
        without: Container[NodeIdentifier] = (),
    ) -> NodeIdentifier | None:
        """Choose whom the next circuit leads to.

        One that was not tried comes first. Where there are several, one that was not reached yet gets one
        circuit only; while it still may be, its share is kept for it. Of the others it is the
        one whose circuits carry most, the more so the fewer it has already.

        Args:
            circuits: how many each provider has.
            fresh: providers to whom a circuit was begun only just now.
            most: circuits of all together.
            now: seconds.
            without: providers that are not chosen.
        """
        ready = [(node, it) for node, it in self._usable() if it.paused_until <= now and node not in without]
        untried = [node for node, _ in ready if not circuits.get(node)]
        if untried or len(ready) <= 1:
            return untried[0] if untried else next((node for node, _ in ready), None)
        reached = [(node, it) for node, it in ready if it.reached]
        hopeful = sum(not it.reached and node in fresh for node, it in ready)
        share = -(-most // max(1, len(reached) + hopeful)) if hopeful else most
        best = max((it.rate for _, it in reached), default=0.0) or 1.0
        worth = {
            node: (it.rate or best) / (1 + circuits[node]) for node, it in reached if circuits[node] < share
        }
        return max(worth, key=worth.__getitem__, default=None)

    def may_have(self, node: NodeIdentifier, reference: bytes) -> bool:
        """Whether a provider did not say yet that it has not this chunk."""
        return reference not in self._providers[node].lacks

    def useless(self, wanted: Collection[bytes]) -> set[NodeIdentifier]:
        """Find the providers that have said of every chunk that is wanted that they have it not."""
        return {node for node, it in self._usable() if wanted and it.lacks.issuperset(wanted)}

    def reached(self, node: NodeIdentifier) -> None:
        """Note that a circuit to a provider is open."""
        provider = self._providers[node]
        provider.reached = provider.met = True
        provider.pending = False

    def served(self, node: NodeIdentifier, rate: float | None) -> None:
        """Note that a chunk came; `rate` is the bytes per second of its circuit if they are known."""
        self._past.useful.add(node)
        provider = self._providers[node]
        provider.failures = provider.barren = 0
        provider.given_up = False
        provider.rate = rate or provider.rate

    def lacking(self, node: NodeIdentifier, references: Iterable[bytes]) -> None:
        """Note what a provider says it has not."""
        self._providers[node].lacks.update(references)

    def barren(self, node: NodeIdentifier, now: float) -> float:
        """Note that a provider had nothing of what it was asked for; returns until when it is left alone."""
        provider = self._providers[node]
        for other in self._providers.values():  # it may have what this one has not
            if other.barren and not other.failures:
                other.paused_until = now
        provider.paused_until = now + BARREN_PAUSE * 2 ** min(provider.barren, MAX_DOUBLINGS)
        provider.barren += 1
        return provider.paused_until

    def failed(
        self, node: NodeIdentifier, now: float, *, permanent: bool = False, pending: bool = False
    ) -> None:
        """Note that a provider was not reached, or did not answer.

        Args:
            node: which.
            now: seconds.
            permanent: whether trying again does not help.
            pending: whether other circuits to it are still being opened: only the last of them that fails
                says something about the provider.
        """
        provider = self._providers[node]
        provider.reached = False
        if now < provider.paused_until and not (permanent or provider.pending):
            return  # circuits that fail together have failed once
        provider.pending = pending
        pause = min(MAX_PAUSE, FIRST_PAUSE * 2 ** min(provider.failures, MAX_DOUBLINGS))
        provider.paused_until = max(provider.paused_until, now + pause)
        provider.failures += not pending
        first = MAX_FIRST_FAILURES if provider.named else 1
        most = MAX_FAILURES if provider.met else first
        provider.given_up |= permanent or provider.failures >= most

    def lied(self, node: NodeIdentifier) -> None:
        """Never ask this provider again."""
        self._past.liars.add(node)

    @property
    def liars(self) -> Collection[NodeIdentifier]:
        """Those that sent something else than was asked for, now or earlier."""
        return sorted(self._past.liars)

    def arrived(self, reference: bytes) -> None:
        """Forget who has not this chunk: it is here."""
        for provider in self._providers.values():
            provider.lacks.discard(reference)

    @property
    def lacked(self) -> int:
        """Count the chunks that some provider has not, once for each."""
        return sum(len(provider.lacks) for _, provider in self._usable())

    @property
    def absent(self) -> Collection[bytes]:
        """The chunks that all who can still be asked say are not there."""
        lacks = sorted((it.lacks for _, it in self._usable()), key=len)
        return lacks[0].intersection(*lacks[1:]) if lacks and lacks[0] else ()

    @property
    def verdict(self) -> Reason | None:
        """Why the transfer cannot be finished; None while it can."""
        absent = bool(self.absent)
        if self._usable() and not absent:
            return None
        liars = [it for node, it in self._providers.items() if node in self._past.liars]
        honest = [it for node, it in self._providers.items() if node not in self._past.liars]
        named = [it for it in honest if it.named]
        if any(it.given_up for it in named):
            return Reason.UNREACHABLE
        if not named and any(it.named for it in liars):  # whoever else was asked need not have had it
            return Reason.LIED
        if any(it.given_up for it in honest):
            return Reason.UNREACHABLE
        if absent:
            return Reason.ABSENT
        return Reason.LIED if liars else Reason.NOBODY

    def retry_at(self, now: float) -> float:
        """When the next pause ends; infinity if nobody pauses."""
        pauses = (it.paused_until for _, it in self._usable() if it.paused_until > now)
        return min(pauses, default=float("inf"))

    def _usable(self) -> list[tuple[NodeIdentifier, _Provider]]:
        return [
            (node, it)
            for node, it in self._providers.items()
            if not it.given_up and node not in self._past.liars
        ]
