"""A node: the blocks of the peer layer, put together over one connection layer and one database."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

import anyio
from anyio.abc import TaskStatus

from overlay.channel.machine import ChannelLimits
from overlay.connection import ConnectionLayer
from overlay.database import Database, Schema
from overlay.errors import NotFoundError, OverlayError, StorageError
from overlay.identity import Entropy, NodeIdentifier, NodePublic, NodeSecret, SigningSecret
from overlay.locators import DIRECTORY_ROLE, LocatorRecord, NodeLocator
from overlay.peer.accept import Accept
from overlay.peer.announcement import Announcement
from overlay.peer.channels import ChannelPool
from overlay.peer.chunks import Chunks
from overlay.peer.forward import Forward
from overlay.peer.locator_manager import LOCATOR_SCHEMA, LocatorManager
from overlay.peer.messages import Answer
from overlay.peer.models.directory import DIRECTORY_SCHEMA, Directory, DirectoryClient
from overlay.peer.presence import Presence
from overlay.peer.pull import Pull
from overlay.peer.push import Push
from overlay.peer.register import Register, RegisterStatus
from overlay.peer.reply import Reply
from overlay.peer.reputation import REPUTATION_SCHEMA, ReputationManager
from overlay.peer.storage import STORAGE_SCHEMA, StorageManager
from overlay.peer.ticket import Ticket
from overlay.units.identifiers import UnitIdentifier
from overlay.units.locators import PlaceSeal, UnitLocator

logger = logging.getLogger(__name__)

NODE_SCHEMAS: tuple[Schema, ...] = (LOCATOR_SCHEMA, STORAGE_SCHEMA, REPUTATION_SCHEMA, DIRECTORY_SCHEMA)
"""What a node's database is opened with, beside the schemas of its applications."""

UPKEEP_INTERVAL = 600.0
"""Seconds between purges of expired chunks and savings of reputation."""


@dataclass(frozen=True)
class NodeOptions:
    """What kind of node this is.

    Attributes:
        directory: it serves the central-directory model to others.
        join: the directory that it registers at; None for a node on its own, or the directory itself.
        relays: it forwards for others.
        storage_quota: bytes of chunks that it keeps.
        limits: bounds of each channel.
    """

    directory: bool = False
    join: LocatorRecord | None = None
    relays: bool = False
    storage_quota: int = 1 << 30
    limits: ChannelLimits = field(default_factory=ChannelLimits)


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """How a node stands.

    Attributes:
        state: `starting` until one transport listens; `joining` until each has been tried and the node is
            registered for the first time; `ready`; or `no-directory` when the directory is not reached,
            while everything that needs only nodes that are known goes on.
        detail: one sentence for people.
        identifier: this node's.
        locators: where it is reached.
    """

    state: Literal["starting", "joining", "ready", "no-directory"]
    detail: str
    identifier: NodeIdentifier
    locators: tuple[NodeLocator, ...]


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """What is known of another node.

    Attributes:
        identifier: its own.
        locators: where it is reached, by its own word.
        roles: what it does for others.
        connected: whether a channel to it is open.
        score: its reputation here.
        via: the locator at which the open channel was dialled; None where there is none, or the peer called.
        over: the name of the network that carries the open channel; empty where there is none.
    """

    identifier: NodeIdentifier
    locators: tuple[NodeLocator, ...]
    roles: frozenset[str]
    connected: bool
    score: float
    via: NodeLocator | None = None
    over: str = ""


class Node:
    """One node. Its blocks are attributes, so that an application uses, or replaces, each by itself.

    Args:
        secret: its keys.
        layer: its transports; `run` starts those that are not started yet.
        database: opened with `NODE_SCHEMAS`.
        clock: seconds since 1970.
        entropy: random bytes.
        options: what kind of node it is.

    Attributes:
        accept: receivers of requests, by kind.
        push, pull, forward: requests to other nodes.
        locators, storage, reputation: the managers.
        chunks: chunks at other nodes.
        channels: open connections; its `contacts` tell of each node that is met.
    """

    def __init__(
        self,
        *,
        secret: NodeSecret,
        layer: ConnectionLayer,
        database: Database,
        clock: Callable[[], float],
        entropy: Entropy,
        options: NodeOptions,
    ) -> None:
        self.public: NodePublic = secret.public
        self.identifier: NodeIdentifier = secret.identifier
        self.clock = clock
        self.entropy = entropy
        self._options = options
        self._listening = False
        self._changed = anyio.Event()
        self._seal = PlaceSeal(
            hashlib.blake2b(b"overlay/place", digest_size=32, key=secret.to_bytes()).digest()
        )
        self.accept = Accept(self._reply_later)
        self.locators = LocatorManager(secret, database, clock, reaches=layer.can_dial)
        self.storage = StorageManager(database, quota=options.storage_quota)
        self.reputation = ReputationManager(database)
        self.channels = ChannelPool(
            secret=secret,
            layer=layer,
            locators=self.locators,
            reputation=self.reputation,
            accept=self.accept,
            entropy=entropy,
            clock=clock,
            limits=options.limits,
        )
        self._presence = Presence(
            layer,
            serve=self.channels.listen,
            published=self._publish,
            changed=self._tell_changed,
            entropy=entropy,
        )
        self.locators.observers.append(lambda _: self._tell_changed())
        self.push = Push(self.channels)
        self.reply = Reply(self.push)
        self.pull = Pull(self.channels, self.accept, entropy)
        self.forward = Forward(
            secret=secret, pull=self.pull, accept=self.accept, entropy=entropy, relays=options.relays
        )
        self.chunks = Chunks(
            push=self.push,
            pull=self.pull,
            accept=self.accept,
            storage=self.storage,
            reputation=self.reputation,
            clock=clock,
        )
        self._directory = self._serve_directory(database) if options.directory else None
        join = options.join
        self._client = self._join_directory(join, hidden=layer.anonymous) if join else None
        self._register = self._keep_registered(self._client) if self._client else None

    def _serve_directory(self, database: Database) -> Directory:
        return Directory(
            database=database,
            accept=self.accept,
            locators=self.locators,
            push=self.push,
            clock=self.clock,
        )

    def _join_directory(self, record: LocatorRecord, *, hidden: bool) -> DirectoryClient:
        client = DirectoryClient(
            record,
            push=self.push,
            pull=self.pull,
            accept=self.accept,
            locators=self.locators,
            clock=self.clock,
            hidden=hidden,
        )
        client.observers.append(lambda _: self._tell_changed())
        self.locators.resolvers.append(client.find_node)
        return client

    def _keep_registered(self, client: DirectoryClient) -> Register:
        register = Register(client, clock=self.clock, entropy=self.entropy, changed=self._tell_changed)

        def left(node: NodeIdentifier) -> None:
            if node == client.directory:
                register.soon()

        async def met(node: NodeIdentifier) -> None:
            if node == client.directory and register.status.state == "retrying":
                register.soon()

        self.channels.departures.append(left)
        self.channels.contacts.append(met)
        return register

    # --- running

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Start the transports, listen, register and serve until cancelled, and stop them again.

        `task_status` tells when the first transport listens; the others may join later.

        Raises:
            TransportUnavailableError, MalformedError: no transport could listen: why the first did not.
            StorageError: the database does not work.
        """
        await self._load()
        failure: OverlayError | None = None
        try:
            async with anyio.create_task_group() as group:
                await group.start(self.channels.run)
                failure = await group.start(self._presence.run)
                if failure is not None:
                    group.cancel_scope.cancel()
                else:
                    if self._directory is not None:
                        group.start_soon(self._directory.run)
                    if self._register is not None:
                        group.start_soon(self._register.run)
                    group.start_soon(self._upkeep)
                    self._listening = True
                    self._tell_changed()
                    task_status.started()
        finally:
            self._listening = False
            self._tell_changed()
            with anyio.CancelScope(shield=True):
                await self._save_reputation()
        if failure is not None:
            raise failure

    def _publish(self, locators: Sequence[NodeLocator]) -> None:
        """Say where this node is reached, to whoever spreads it."""
        self.locators.serve(locators, roles=[DIRECTORY_ROLE] if self._directory else [])
        if self._register is not None:
            self._register.soon()
        if self._directory is not None:
            self._directory.tell_own()

    async def _load(self) -> None:
        await self.locators.load()
        await self.reputation.load()
        if self._options.join is not None:
            self.locators.pinned.add(self._options.join.identifier)
            await self.locators.keep(self._options.join)

    async def _upkeep(self) -> None:
        while True:
            try:
                await self.storage.purge(self.clock())
            except StorageError as error:
                logger.warning("expired chunks could not be removed: %s", error)
            await anyio.sleep(UPKEEP_INTERVAL)
            await self._save_reputation()

    async def _save_reputation(self) -> None:
        try:
            await self.reputation.flush()
        except StorageError as error:  # what is not saved now is saved at the next time
            logger.warning("the record of what other nodes did could not be saved: %s", error)

    async def _reply_later(self, node: NodeIdentifier, correlation: bytes, answer: Answer) -> None:
        await self.reply(node, correlation, answer)

    # --- how it stands

    @property
    def record(self) -> LocatorRecord:
        """This node's current locator record."""
        return self.locators.own

    @property
    def status(self) -> NodeStatus:
        """How this node stands now."""
        locators = self.record.locators if self._listening else ()
        state, detail = self._state()
        return NodeStatus(state, detail, self.identifier, locators)

    def _state(self) -> tuple[Literal["starting", "joining", "ready", "no-directory"], str]:
        if not self._listening:
            return "starting", "starting its transports"
        if waiting := self._presence.waiting:
            names = "; ".join(f"{each.name}: {each.status.detail or 'starting'}" for each in waiting)
            return "joining", f"waiting for {names}"
        if self._register is None:
            return "ready", f"ready{self._failing}"
        registered: RegisterStatus = self._register.status
        match registered.state:
            case "registered":
                count = registered.nodes
                place = f"one of {count} nodes" if count > 1 else "the only node"
                return "ready", f"ready, {place} of its directory{self._failing}"
            case "registering":
                return "joining", f"registering at its directory{self._failing}"
            case _:
                return "no-directory", f"the directory is not reached: {registered.detail}{self._failing}"

    @property
    def _failing(self) -> str:
        """What to say of transports that do not work, while another does."""
        return "".join(f"; {name} does not work: {error}" for name, error in self._presence.failing.items())

    async def wait_changed(self) -> None:
        """Wait until `status`, `peers` or the units that are known may have changed."""
        await self._changed.wait()

    def _tell_changed(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def check_online(self) -> None:
        """Make sure that one of this node's transports works.

        Raises:
            TransportUnavailableError: none does at the moment, and why; asking others would take minutes.
        """
        self._presence.check()

    def ticket(self) -> Ticket:
        """A ticket that lets others join through this node.

        Raises:
            NotFoundError: this node is not reached anywhere yet.
        """
        if not self._listening:
            raise NotFoundError("this node has no address yet: wait until it is ready")
        known = self.locators.known(self._client.directory) if self._client else None
        return Ticket((self.record,) if known is None else (self.record, known))

    def peers(self) -> list[PeerStatus]:
        """Every other node that is known and has not expired, connected ones first."""
        now = self.clock()
        return sorted(
            (self._peer(record, now) for record in self.locators.current()),
            key=lambda peer: (not peer.connected, peer.identifier),
        )

    def _peer(self, record: LocatorRecord, now: float) -> PeerStatus:
        over, via = self.channels.route(record.identifier)
        return PeerStatus(
            record.identifier,
            record.locators,
            record.roles,
            bool(over),
            self.reputation.score(record.identifier, now),
            via,
            over,
        )

    def choose(self, count: int, *, without: Collection[NodeIdentifier] = ()) -> list[NodeIdentifier]:
        """Choose up to `count` other nodes that can be reached, those of best reputation first.

        They may learn who asks: neither whom this node asked anonymously nor what came of it counts here.

        Among nodes whose scores are about equal chance decides, so that none gets everything.
        """
        now = self.clock()
        candidates = [
            record.identifier
            for record in self.locators.reachable()
            if record.identifier not in without and self.reputation.trusted(record.identifier, now)
        ]

        def preference(node: NodeIdentifier) -> tuple[int, bytes]:
            return -round(self.reputation.score(node, now)), self.entropy(8)

        return sorted(candidates, key=preference)[:count]

    # --- units

    def seal_place(self, place: bytes) -> UnitLocator:
        """Make the locator of something that this node holds at `place`."""
        return UnitLocator(self.identifier, self._seal.seal(place, self.entropy))

    def open_place(self, sealed: bytes) -> bytes:
        """The place that this node sealed.

        Raises:
            VerificationError: another node sealed it, or nobody did.
        """
        return self._seal.open(sealed)

    async def announce(self, secret: SigningSecret, locator: UnitLocator) -> None:
        """Make a living unit known through the model, now and as long as this node runs.

        Without a model nothing is told: the unit is found only by who was given its locator.

        Raises:
            UnreachableError, RefusedError: not known yet; the next registration brings it.
        """
        if self._register is not None:
            await self._register.announce(secret, locator)

    def withdraw(self, unit: UnitIdentifier) -> None:
        """Announce a unit no more."""
        if self._register is not None:
            self._register.withdraw(unit)

    async def find_unit(self, unit: UnitIdentifier) -> Sequence[Announcement]:
        """Ask the model who holds a unit; newest first, empty without a model.

        Raises:
            UnreachableError: the model was not reached, and nothing was heard of the unit before.
        """
        return [] if self._client is None else await self._client.find_unit(unit)
