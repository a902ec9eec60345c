"""The socket of a DATAGRAM session, on which i2pd needs to be treated with care.

Datagrams go over the session's own socket, which reaches every router that streams reach; SAM's other way
for them is UDP. i2pd 2.45.1 reads that socket into one buffer of 8 KiB, which sets `MAX_MESSAGE_BYTES`. Of
what comes together with a datagram it leaves the rest unread until still more comes, and of what comes
together with a command that has an answer it forgets the rest. So nothing is sent after a datagram until a
command that has an answer shows that the datagram was read. Without that, of 100 messages in a row to a
router on the same machine 13 were lost, and 71 of those of full length.

Source: i2pd 2.45.1, libi2pd_client/SAM.cpp, HandleMessage and ProcessDatagramSend
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import anyio
import anyio.lowlevel

from overlay.errors import MalformedError, TransportUnavailableError, VerificationError
from overlay.locators import NodeLocator
from overlay.transports.i2p.destination import Destination
from overlay.transports.i2p.protocol import Reply, datagram_send, failure, naming_lookup
from overlay.transports.i2p.sam import SamSocket, open_sam
from overlay.transports.i2p.settings import I2pTimeouts

MAX_MESSAGE_BYTES = 6656
"""Of one message: i2pd's buffer of 8192 bytes also holds the line before it, of up to 1410 bytes with the
longest destination. Each KiB is a tunnel message of its own, and the loss of one is the loss of all."""

MAX_RECEIVED_BYTES = 32_768
"""Of one datagram from a router: more than the about 31,700 that I2P carries, and Java I2P hands on."""

PAUSE = 0.001
"""Seconds that i2pd gets to read a datagram, for which it needs a tenth of them, before it is asked."""

FIRST_PATIENCE = 0.005
"""Seconds to wait for an answer before asking again, doubled each time up to `MAX_PATIENCE`."""

MAX_PATIENCE = 0.5


class DatagramSession:
    """The socket of a DATAGRAM session: what comes is read by one task, any may send.

    Args:
        sam: the socket, on which the session was made; whoever made it closes it.
        timeouts: `reply` is the limit for the router to take a message.
    """

    def __init__(self, sam: SamSocket, timeouts: I2pTimeouts) -> None:
        self._sam = sam
        self._timeouts = timeouts
        self._sending = anyio.Lock()
        self._unread = False  # whether i2pd may not have read our last datagram
        self._sent = 0.0  # when that was
        self._doubtful = False  # whether an answer to an earlier question may still come
        self._asked = 0
        self._question = ""
        self._answered = anyio.Event()

    async def read(self, deliver: Callable[[Destination, bytes], None]) -> NoReturn:
        """Read what the router sends until the session is lost.

        Args:
            deliver: called with the sender and the body of each datagram.

        Raises:
            TransportUnavailableError: the session is lost.
        """
        while True:
            reply = await self._sam.read_reply()
            if reply.topic == "DATAGRAM RECEIVED":
                body = await self._sam.read_exactly(_announced(reply))
                try:
                    sender = Destination.from_base64(reply.fields.get("DESTINATION", ""))
                except MalformedError:
                    continue  # somebody's, of a kind that is not known here: it could not be answered
                deliver(sender, body)
            elif reply.fields.get("NAME") == self._question:
                self._answered.set()

    async def send(self, destination: Destination, body: bytes) -> None:
        """Hand a datagram to the router, when it has read the one before.

        Raises:
            TransportUnavailableError: the router takes nothing; the session is closed.
            Cancelled, the datagram was sent whole, or not at all.
        """
        async with self._sending:
            try:
                with anyio.fail_after(self._timeouts.reply):
                    await self._until_read()
                self._unread = True
                await self._put(datagram_send(destination, len(body)) + body)
                self._sent = anyio.current_time()
            except TimeoutError as error:
                await self._sam.aclose()
                raise TransportUnavailableError(
                    f"the I2P router at {self._sam.where} took no message for {self._timeouts.reply:.0f} s"
                ) from error

    async def _until_read(self) -> None:
        """Ask until the answer to the last question has come: then the router has read all that was sent.

        A question that is read together with a datagram is answered when the next one comes, and then that
        one is forgotten; hence only the last counts, and each has another name unless all is in order.
        """
        if not self._unread:
            return
        await anyio.sleep_until(self._sent + PAUSE)
        patience = FIRST_PATIENCE
        while self._unread:
            # The router complains in its log about any other name; `ME` is known.
            self._asked += 1
            self._question = f"question-{self._asked}" if self._doubtful else "ME"
            self._doubtful = True
            self._answered = anyio.Event()
            await self._put(naming_lookup(self._question))
            with anyio.move_on_after(patience):
                await self._answered.wait()
                self._unread = self._doubtful = False
            patience = min(2 * patience, MAX_PATIENCE)

    async def _put(self, data: bytes) -> None:
        """Send all of `data` or nothing: a part would garble what follows.

        Raises:
            TimeoutError: the router does not read.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        with anyio.CancelScope(shield=True), anyio.fail_after(self._timeouts.reply):
            await self._sam.send(data)


async def look_up(address: tuple[str, int], locator: NodeLocator, timeouts: I2pTimeouts) -> Destination:
    """Ask a router for the full destination of an address, on a socket of its own.

    Args:
        address: of the router's SAM bridge.
        locator: whose destination.
        timeouts: `hello` and `lookup` are the limits.

    Returns:
        the destination, whose hash the address is.

    Raises:
        UnreachableError: nobody publishes it.
        TransportUnavailableError: the router does not answer.
        VerificationError: what the router answers is the destination of another address.
    """
    # Not on the session's socket: for a name that nobody publishes, i2pd leaves that unread for ten seconds.
    async with await open_sam(address, timeouts) as sam:
        reply = require_ok(await sam.request(naming_lookup(locator.host), timeouts.lookup))
    try:
        destination = Destination.from_base64(reply.fields.get("VALUE", ""))
    except MalformedError as error:
        raise TransportUnavailableError("the I2P router's answer to a lookup is no destination") from error
    if destination.locator != locator:
        raise VerificationError("the I2P router's answer to a lookup is the destination of another address")
    return destination


def require_ok(reply: Reply) -> Reply:
    """Give back a reply that is OK.

    Raises:
        failure: it is not.
    """
    if not reply.ok:
        raise failure(reply)
    return reply


def _announced(reply: Reply) -> int:
    """How many bytes follow a line.

    Raises:
        TransportUnavailableError: none or too many, so that what follows cannot be told from another line.
    """
    text = reply.fields.get("SIZE", "")
    if not text.isascii() or not text.isdigit() or len(text) > 8 or int(text) > MAX_RECEIVED_BYTES:
        raise TransportUnavailableError("the I2P router announced a datagram of a size that there is not")
    return int(text)
