"""Node locators: where a node can be reached, and the signed record in which it says so.

Text forms: multiaddr (`/onion3/<56 letters>:<port>`, `/garlic32/<letters>`, `/ip4/<a>/tcp/<p>`,
`/ip6/<a>/tcp/<p>`, `/memory/<n>`), and for input also what people write: `<56 letters>.onion:<port>`,
`<52 letters>.b32.i2p`, `<address>:<port>`. Host names are refused, because looking one up tells the
resolver who is asking. Binary form: multiaddr bytes (code as varint, then the address).

Sources: https://github.com/multiformats/multiaddr, Tor rend-spec-v3 section 6 (onion checksum),
docs/spec/locators.md.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Self

import msgspec

from overlay.errors import MalformedError, VerificationError
from overlay.identity import NodeIdentifier, NodePublic, NodeSecret, verify_signature
from overlay.wire.codec import Count, Message, Signature64, Timestamp, decode, encode
from overlay.wire.tokens import base32, unbase32

MAX_LOCATOR_BYTES = 512
"""The longest legitimate locator is an I2P destination of about 400 bytes; BIP155 draws the same line."""

_CODES = {"ip4": 4, "tcp": 6, "ip6": 41, "onion3": 445, "garlic32": 447, "memory": 777}
_ONION_VERSION = b"\x03"


@dataclass(frozen=True, slots=True, order=True)
class NodeLocator:
    """One way to reach a node.

    Attributes:
        protocol: `onion3`, `garlic32`, `ip4`, `ip6` or `memory`.
        address: onion3: the service's 32-byte key; garlic32: the destination's 32-byte hash, or 35 bytes
            and more for an encrypted lease set; ip4 and ip6: 4 and 16 bytes; memory: 8 bytes.
        port: 1 to 65535, or 0 where the protocol has none.
    """

    protocol: str
    address: bytes
    port: int = 0

    def __post_init__(self) -> None:
        """Refuse what no text or binary form stands for.

        Raises:
            MalformedError: unknown protocol, wrong length of address, or a port out of range.
        """
        sizes = {"onion3": (32,), "ip4": (4,), "ip6": (16,), "memory": (8,), "garlic32": (32, *range(35, 64))}
        if len(self.address) not in sizes.get(self.protocol, ()):
            size = len(self.address)
            raise MalformedError(f"not a locator: {self.protocol} with an address of {size} bytes")
        has_port = self.protocol in {"onion3", "ip4", "ip6"}
        if not (1 <= self.port <= 65535 if has_port else self.port == 0):
            raise MalformedError(f"{self.port} is not a port from 1 to 65535")

    @classmethod
    def onion(cls, host: str, port: int) -> Self:
        """Make a locator from a v3 onion host name, with or without `.onion`.

        Raises:
            MalformedError: not a v3 onion name, or its checksum is wrong.
        """
        data = unbase32(host.lower().removesuffix(".onion"))
        key, checksum = data[:32], data[32:]
        if len(key) != 32 or checksum != _onion_tail(key):
            raise MalformedError("not a v3 onion address: it has 56 letters and digits, copy it whole")
        return cls("onion3", key, port)

    @classmethod
    def tcp(cls, host: str, port: int) -> Self:
        """Make a locator from an IP address (or `localhost`, which is 127.0.0.1) and a port.

        Raises:
            MalformedError: a host name, or not an address at all.
        """
        try:
            address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
        except ValueError as error:
            raise MalformedError(f"{host!r} is not an IP address, and names are not looked up") from error
        return cls(f"ip{address.version}", address.packed, port)

    @property
    def host(self) -> str:
        """The address as its network writes it: `….onion`, `….b32.i2p`, `127.0.0.1`, `::1`."""
        match self.protocol:
            case "onion3":
                return base32(self.address + _onion_tail(self.address)) + ".onion"
            case "garlic32":
                return base32(self.address) + ".b32.i2p"
            case "memory":
                return str(int.from_bytes(self.address, "big"))
            case _:
                return str(ipaddress.ip_address(self.address))

    def __str__(self) -> str:
        """The multiaddr text."""
        match self.protocol:
            case "onion3":
                return f"/onion3/{self.host.removesuffix('.onion')}:{self.port}"
            case "garlic32":
                return f"/garlic32/{base32(self.address)}"
            case "memory":
                return f"/memory/{self.host}"
            case _:
                return f"/{self.protocol}/{self.host}/tcp/{self.port}"

    def to_bytes(self) -> bytes:
        """The multiaddr bytes."""
        head = _varint(_CODES[self.protocol])
        port = self.port.to_bytes(2, "big")
        match self.protocol:
            case "onion3":
                return head + self.address + _onion_tail(self.address) + port
            case "garlic32":
                return head + _varint(len(self.address)) + self.address
            case "memory":
                return head + self.address
            case _:
                return head + self.address + _varint(_CODES["tcp"]) + port

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read multiaddr bytes, all of them.

        Raises:
            MalformedError: an unknown code, a wrong length or checksum, or bytes left over.
        """
        if len(data) > MAX_LOCATOR_BYTES:
            raise MalformedError(f"a locator of {len(data)} bytes is longer than {MAX_LOCATOR_BYTES}")
        code, body = _read_varint(data)
        if code == _CODES["onion3"] and len(body) == 37:
            if body[32:35] != _onion_tail(body[:32]):
                raise MalformedError("an onion address with a wrong checksum")
            return cls("onion3", body[:32], int.from_bytes(body[35:], "big"))
        if code == _CODES["garlic32"]:
            length, address = _read_varint(body)
            if length == len(address):
                return cls("garlic32", address)
        if code == _CODES["memory"]:
            return cls("memory", body)
        for name, size in (("ip4", 4), ("ip6", 16)):
            if code == _CODES[name] and len(body) == size + 3 and body[size] == _CODES["tcp"]:
                return cls(name, body[:size], int.from_bytes(body[size + 1 :], "big"))
        raise MalformedError("not a locator of a kind known here")


_MULTIADDR = re.compile(
    r"/onion3/(?P<onion>[a-zA-Z2-7]{56}):(?P<onion_port>[0-9]{1,5})"
    r"|/garlic32/(?P<garlic>[a-zA-Z2-7]{52,101})"
    r"|/memory/(?P<memory>[0-9]{1,20})"
    r"|/ip4/(?P<ip4>[0-9.]{7,15})/tcp/(?P<ip4_port>[0-9]{1,5})"
    r"|/ip6/(?P<ip6>[0-9a-fA-F:.]{2,45})/tcp/(?P<ip6_port>[0-9]{1,5})"
    r"|(?P<onion_host>[a-zA-Z2-7]{56}(?i:\.onion)):(?P<onion_host_port>[0-9]{1,5})"
    r"|(?P<b32>[a-zA-Z2-7]{52,101})(?i:\.b32\.i2p)"
    r"|\[(?P<host6>[0-9a-fA-F:.]{2,45})\]:(?P<host6_port>[0-9]{1,5})"
    r"|(?P<host>[^/:\[\]\s]{1,253}):(?P<host_port>[0-9]{1,5})"
)


def parse_locator(text: str) -> NodeLocator:
    """Read any text form that a person may type.

    Raises:
        MalformedError: none of the forms, a bad checksum, a port out of range, or a host name.
    """
    found = _MULTIADDR.fullmatch(text.strip())
    if found is None:
        raise MalformedError(
            "this is not an address: write /onion3/…:PORT, ….onion:PORT, ….b32.i2p or IP:PORT"
        )
    part = {name: value for name, value in found.groupdict().items() if value is not None}
    ((kind, value),) = [item for item in part.items() if not item[0].endswith("_port")]
    port = int(part.get(f"{kind}_port", "0"))
    match kind:
        case "onion" | "onion_host":
            return NodeLocator.onion(value, port)
        case "garlic" | "b32":
            return NodeLocator("garlic32", unbase32(value))
        case "memory":
            return memory_locator(int(value))
        case _:
            return NodeLocator.tcp(value, port)


def memory_locator(number: int) -> NodeLocator:
    """The locator of listener `number` of an in-memory network.

    Raises:
        MalformedError: the number does not fit 64 bits.
    """
    if not 0 <= number < 1 << 64:
        raise MalformedError("a memory address is a number below 2^64")
    return NodeLocator("memory", number.to_bytes(8, "big"))


def _onion_tail(key: bytes) -> bytes:
    checksum = hashlib.sha3_256(b".onion checksum" + key + _ONION_VERSION).digest()[:2]
    return checksum + _ONION_VERSION


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes) -> tuple[int, bytes]:
    value = 0
    for index, byte in enumerate(data[:3]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if index and not byte:
                break
            return value, data[index + 1 :]
    raise MalformedError("not a locator: its code is not a multiaddr code in shortest form")


MAX_RECORD_BYTES = 2048
"""A record with eight onion locators takes about 500 bytes, with eight I2P ones about 550."""
MAX_LOCATORS = 8
RECORD_LIFETIME = 24 * 3600
"""Seconds that a record is valid for by default; nodes renew at half of it."""
MAX_RECORD_LIFETIME = 7 * 24 * 3600
MAX_CLOCK_SKEW = 2 * 3600
"""Seconds that two honest clocks may differ by; a record issued further in the future is refused."""

_RECORD_CONTEXT = "locator-record"
DIRECTORY_ROLE = "directory"


class _RecordBody(Message, frozen=True):
    key: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
    number: Count
    issued: Timestamp
    expires: Timestamp
    locators: Annotated[
        tuple[Annotated[bytes, msgspec.Meta(max_length=MAX_LOCATOR_BYTES)], ...],
        msgspec.Meta(max_length=MAX_LOCATORS),
    ]
    roles: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=32)], ...], msgspec.Meta(max_length=8)] = ()


class _SignedRecord(Message, frozen=True):
    body: Annotated[bytes, msgspec.Meta(max_length=MAX_RECORD_BYTES)]
    signature: Signature64


@dataclass(frozen=True)
class LocatorRecord:
    """A node's own, signed word on where it is reached. Only `sign` and `verify` make one.

    Attributes:
        public: the node's public keys; the identifier follows from them.
        number: grows with each record of a node; the highest counts.
        issued: when it was signed, seconds since 1970.
        expires: when it ends, seconds since 1970.
        locators: most preferred first. Locators of kinds that are not known here are left out.
        roles: what the node does for others, such as `directory`.
        encoded: the signed bytes, to be stored and passed on as they are.
    """

    public: NodePublic
    number: int
    issued: int
    expires: int
    locators: tuple[NodeLocator, ...]
    roles: frozenset[str]
    encoded: bytes

    @cached_property
    def identifier(self) -> NodeIdentifier:
        """The identifier of the node that signed."""
        return self.public.identifier

    @classmethod
    def sign(
        cls,
        secret: NodeSecret,
        locators: Sequence[NodeLocator],
        *,
        number: int,
        now: float,
        lifetime: int = RECORD_LIFETIME,
        roles: Sequence[str] = (),
    ) -> Self:
        """Sign a new record of the node that holds `secret`.

        Raises:
            MalformedError: more locators or a longer lifetime than a record may have.
        """
        if len(locators) > MAX_LOCATORS or lifetime > MAX_RECORD_LIFETIME:
            raise MalformedError(
                f"a locator record has at most {MAX_LOCATORS} locators and {MAX_RECORD_LIFETIME} seconds"
            )
        body = encode(
            _RecordBody(
                key=secret.public.to_bytes(),
                number=number,
                issued=int(now),
                expires=int(now) + lifetime,
                locators=tuple(locator.to_bytes() for locator in locators),
                roles=tuple(sorted(roles)),
            )
        )
        signature = secret.signing.sign(_RECORD_CONTEXT, body)
        return cls._from_body(body, encode(_SignedRecord(body=body, signature=signature)))

    @classmethod
    def verify(cls, data: bytes, *, now: float) -> Self:
        """Read a record that came from anywhere.

        Raises:
            MalformedError: not a record, or out of bounds.
            VerificationError: the signature does not fit, it has expired, or its times make no sense.
        """
        record = cls.from_store(data)
        if not record.issued <= record.expires <= record.issued + MAX_RECORD_LIFETIME:
            raise VerificationError("a locator record is valid for longer than records may be")
        if record.issued > now + MAX_CLOCK_SKEW:
            raise VerificationError("a locator record comes from the future: check this machine's clock")
        if record.expires <= now:
            raise VerificationError("a locator record has expired")
        return record

    @classmethod
    def from_store(cls, data: bytes) -> Self:
        """Read a record that was verified when it was stored: form and signature, but not its times.

        Raises:
            MalformedError: not a record, or out of bounds.
            VerificationError: the signature does not fit.
        """
        signed = decode(_SignedRecord, data, limit=MAX_RECORD_BYTES)
        record = cls._from_body(signed.body, bytes(data))
        verify_signature(record.public.signing, _RECORD_CONTEXT, signed.body, signed.signature)
        return record

    @classmethod
    def _from_body(cls, data: bytes, encoded: bytes) -> Self:
        body = decode(_RecordBody, data, limit=MAX_RECORD_BYTES)
        return cls(
            public=NodePublic.from_bytes(body.key),
            number=body.number,
            issued=body.issued,
            expires=body.expires,
            locators=tuple(filter(None, map(_known_locator, body.locators))),
            roles=frozenset(body.roles),
            encoded=encoded,
        )


def _known_locator(data: bytes) -> NodeLocator | None:
    try:
        return NodeLocator.from_bytes(data)
    except MalformedError:  # a kind that a newer version knows
        return None
