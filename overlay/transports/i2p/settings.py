"""Which I2P router a transport uses, how its tunnels are, and how long it waits."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from overlay.errors import MalformedError

DEFAULT_SAM = "127.0.0.1:7656"
"""Where i2pd and Java I2P offer SAM unless they are told otherwise."""

MAX_TUNNEL_LENGTH = 7
"""Hops that the network takes at most; a tunnel's build message has room for 8 records."""

MAX_TUNNEL_QUANTITY = 16
"""Tunnels each way at most: a lease set, which names the inbound ones, has room for 16."""


@dataclass(frozen=True)
class LaunchedRouter:
    """An i2pd process of the transport's own, which ends with it.

    Attributes:
        data_directory: kept between runs, for the router's keys and its knowledge of the network; a router
            that starts with an empty one takes minutes until it is of use. Made with mode 0700.
        extra_config: a file of lines to add to the configuration; ours come after them, and win.
        executable: the program, by name or path.
    """

    data_directory: Path
    extra_config: Path | None = None
    executable: str = "i2pd"


@dataclass(frozen=True)
class AttachedRouter:
    """An I2P router on this machine that somebody else runs.

    Attributes:
        sam: `HOST:PORT` of its SAM bridge. SAM is neither encrypted nor authenticated, and carries private
            keys: an address other than loopback is for a network that only its owner is on.
    """

    sam: str = DEFAULT_SAM

    def __post_init__(self) -> None:
        """Refuse what is no address.

        Raises:
            MalformedError: `sam` is no IP address and port.
        """
        _ = self.address

    @property
    def address(self) -> tuple[str, int]:
        """`sam`, read: an IP address and a port.

        Raises:
            MalformedError: neither; host names but `localhost` are not looked up.
        """
        host, colon, port = self.sam.rpartition(":")
        digits = port.isascii() and port.isdigit() and len(port) <= 5
        if not colon or not digits or not 1 <= int(port) <= 65535:
            raise MalformedError(f"'{self.sam}' is no address of a SAM bridge: write {DEFAULT_SAM}")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        try:
            address = ipaddress.ip_address("127.0.0.1" if bare == "localhost" else bare)
        except ValueError as error:
            raise MalformedError(
                f"'{self.sam}' has no IP address: write {DEFAULT_SAM}, since names are not looked up"
            ) from error
        return str(address), int(port)


@dataclass(frozen=True)
class TunnelOptions:
    """What a session's tunnels are like, which is what its anonymity and its speed rest on.

    Every message passes the sender's outbound tunnel and the receiver's inbound one. Each hop knows the
    hop before and the one after. With one hop, that router sees who uses the tunnel and can watch all of
    it; with two, two that collude can; from three on a hop cannot tell at which place it stands. Each hop
    adds its round trip and its limit of throughput: on a private network on one machine, a stream over
    three hops had two thirds of the throughput of one hop, and twice the round trip.
    More tunnels make a session reliable, not more anonymous: traffic goes on when one fails, which each
    does after ten minutes at the latest; with two of them sessions were stranded. Each costs other routers
    some work, and is one more set of routers that take part.

    Attributes:
        length: hops of a tunnel, 1 to 7, the same both ways. A tunnel of no hops would show where the node
            is to everybody.
        quantity: tunnels each way, 1 to 16.
        initial_ack_delay: milliseconds that a stream waits before it acknowledges what came, so that one
            acknowledgement serves for more of it. None leaves it to the router; i2pd's own is 200.
    """

    length: int = 3
    quantity: int = 5
    initial_ack_delay: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers out of range.

        Raises:
            MalformedError: one is.
        """
        if not 1 <= self.length <= MAX_TUNNEL_LENGTH:
            raise MalformedError(
                f"I2P tunnels have 1 to {MAX_TUNNEL_LENGTH} hops, not {self.length}: with none, everybody"
                " would see where this node is"
            )
        if not 1 <= self.quantity <= MAX_TUNNEL_QUANTITY:
            raise MalformedError(
                f"an I2P session has 1 to {MAX_TUNNEL_QUANTITY} tunnels each way, not {self.quantity}"
            )
        if self.initial_ack_delay is not None and not 1 <= self.initial_ack_delay <= 10_000:
            raise MalformedError("an I2P stream acknowledges after 1 to 10000 milliseconds")

    def options(self) -> tuple[str, ...]:
        """The words for SESSION CREATE."""
        words = [
            f"inbound.length={self.length}",
            f"outbound.length={self.length}",
            f"inbound.quantity={self.quantity}",
            f"outbound.quantity={self.quantity}",
            # ECIES-X25519 alone: i2pd's default would offer ElGamal beside it, slow and long out of date.
            "i2cp.leaseSetEncType=4",
            # Nobody needs to learn from an echo that this destination is online.
            "i2p.streaming.answerPings=false",
        ]
        if self.initial_ack_delay is not None:
            words.append(f"i2p.streaming.initialAckDelay={self.initial_ack_delay}")
        return tuple(words)

    def __str__(self) -> str:
        """For people: `3 hops, 5 each way`."""
        return f"{self.length} hop{'s' if self.length > 1 else ''}, {self.quantity} each way"


@dataclass(frozen=True)
class I2pTimeouts:
    """Seconds that the transport waits; the defaults are for the public network.

    Attributes:
        dial: for a whole dial. A lost first packet costs 9 s, a broken tunnel 27 to 63 s.
        start: from launching a router until its SAM port answers, which takes 0.1 to 0.3 s at rest.
        hello: until a router's port is connected and has answered the first command, which takes it
            milliseconds; what does not within this is no SAM bridge, or hangs.
        create: for SESSION CREATE. i2pd looks every 20 s whether tunnels are there, and was seen to answer
            after up to 80 s.
        lookup: for NAMING LOOKUP of a name that nobody publishes; i2pd gives up after 10 s.
        reply: for a reply that needs no network.
        linger: for the router to forget a session that was closed. i2pd keeps its destination for 5 s more,
            hands it to a new session with the same key meanwhile, and then takes it away from that one too.
        round_trip: what a small request and its answer usually take; pauses between dials follow from it.
            Twelve hops with the default tunnels, each on a volunteer's line: seconds.
    """

    dial: float = 90.0
    start: float = 30.0
    hello: float = 10.0
    create: float = 180.0
    lookup: float = 45.0
    reply: float = 30.0
    linger: float = 6.0
    round_trip: float = 4.0
