"""A home's own destination: made by a router once, and from then on read from the home's key file.

The file has the form of I2P's own key files (`.dat` of i2pd's tunnels, `eepPriv.dat` of Java I2P): the
destination, then its private keys. A service made elsewhere can therefore be moved here, and back.

Source: https://geti2p.net/spec/common-structures (PrivateKeyFile)
"""

from __future__ import annotations

from pathlib import Path

from anyio import to_thread

from overlay.errors import MalformedError, TransportUnavailableError, VerificationError
from overlay.transports.i2p.destination import MAX_PRIVATE_BYTES, PrivateDestination
from overlay.transports.i2p.protocol import dest_generate, failure
from overlay.transports.i2p.sam import open_sam
from overlay.transports.i2p.settings import I2pTimeouts
from overlay.transports.private_files import write_private


async def load_key(path: Path, address: tuple[str, int], timeouts: I2pTimeouts) -> PrivateDestination:
    """Load the destination from `path`; have a router make one, and store it, when there is none.

    Args:
        path: of the key file, which only this user can read.
        address: of the SAM bridge that makes a new one.
        timeouts: `hello` and `reply` are the limits.

    Returns:
        the destination, which is on disk.

    Raises:
        MalformedError: the file is no private destination; it is left as it is.
        VerificationError: its keys do not match; it is left as it is.
        TransportUnavailableError: the file can be neither read nor written, or the router makes none.
        Cancelled, it leaves either no file or a whole one.
    """
    try:
        data = await to_thread.run_sync(_read, path)
        if data is not None:
            return _parse(path, data)
        made = await generate_destination(address, timeouts)
        await to_thread.run_sync(write_private, path, made.data)
    except OSError as error:
        raise TransportUnavailableError(f"the I2P key in {path} cannot be used: {error.strerror}") from error
    return made


async def generate_destination(address: tuple[str, int], timeouts: I2pTimeouts) -> PrivateDestination:
    """Have a router make a destination with an Ed25519 key; it is kept nowhere.

    Raises:
        failure: TransportUnavailableError: the router refuses.
        TransportUnavailableError: it does not answer, or its answer is no private destination.
    """
    async with await open_sam(address, timeouts) as sam:
        reply = await sam.request(dest_generate(), timeouts.reply)
    if not reply.ok:
        raise failure(reply)
    try:
        return PrivateDestination.from_base64(reply.fields["PRIV"])
    except (KeyError, MalformedError, VerificationError) as error:
        raise TransportUnavailableError(
            f"the I2P router at {sam.where} made no destination that can be used: update it"
        ) from error


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(MAX_PRIVATE_BYTES + 1)
    except FileNotFoundError:
        return None


def _parse(path: Path, data: bytes) -> PrivateDestination:
    """Name the file in what is wrong with it.

    Raises:
        MalformedError: it is no private destination.
        VerificationError: its keys do not match.
    """
    try:
        return PrivateDestination(data)
    except (MalformedError, VerificationError) as error:
        raise type(error)(f"the I2P key in {path} is damaged: restore it from a copy ({error})") from error
