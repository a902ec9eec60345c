from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from overlay.errors import MalformedError, TransportUnavailableError, VerificationError
from overlay.transports.i2p.keys import generate_destination, load_key
from overlay.transports.i2p.settings import I2pTimeouts

if TYPE_CHECKING:
    from collections.abc import Callable

    from overlay.transports.i2p.destination import PrivateDestination
    from tests.transports.i2p.conftest import FakeRouter

TIMEOUTS = I2pTimeouts()
NOBODY = ("127.0.0.1", 9)


async def test_key_is_made_once_and_only_readable_by_us(fake_router: FakeRouter, tmp_path: Path) -> None:
    path = tmp_path / "home" / "i2p.key"
    key = await load_key(path, fake_router.address, TIMEOUTS)
    assert await fake_router.seen("DEST GENERATE") == ["DEST GENERATE SIGNATURE_TYPE=7"]
    assert path.read_bytes() == key.data
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert await load_key(path, NOBODY, TIMEOUTS) == key  # without a router
    assert [file.name for file in path.parent.iterdir()] == ["i2p.key"]


@pytest.mark.parametrize("data", [b"", b"precious", bytes(5000)])
async def test_damaged_file_is_named_and_kept(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "i2p.key"
    path.write_bytes(data)
    with pytest.raises(MalformedError, match=r"i2p\.key is damaged: restore it from a copy"):
        await load_key(path, NOBODY, TIMEOUTS)
    assert path.read_bytes() == data


async def test_file_whose_keys_do_not_match(
    tmp_path: Path, make_destination: Callable[[int], PrivateDestination]
) -> None:
    path = tmp_path / "i2p.key"
    path.write_bytes(make_destination(1).public.data + make_destination(2).data[391:])
    with pytest.raises(VerificationError, match="restore it from a copy"):
        await load_key(path, NOBODY, TIMEOUTS)


async def test_folder_that_cannot_be_used_is_said(fake_router: FakeRouter, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TransportUnavailableError, match="cannot be used: Not a directory"):
        await load_key(tmp_path / "file" / "i2p.key", fake_router.address, TIMEOUTS)


async def test_no_router_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TransportUnavailableError, match="no I2P router answers"):
        await load_key(tmp_path / "i2p.key", NOBODY, TIMEOUTS)
    assert not [file async for file in anyio.Path(tmp_path).iterdir()]


@pytest.mark.parametrize("line", ["DEST REPLY PUB=AAAA", "DEST REPLY PUB=AAAA PRIV=AAAA"])
async def test_router_that_makes_nothing_of_use(fake_router: FakeRouter, line: str) -> None:
    fake_router.script("DEST GENERATE", fake_router.reply(line))
    with pytest.raises(TransportUnavailableError):
        await generate_destination(fake_router.address, TIMEOUTS)
    await fake_router.connections[0].ended()


async def test_router_that_gives_keys_which_do_not_match(
    fake_router: FakeRouter, make_destination: Callable[[int], PrivateDestination]
) -> None:
    good = make_destination(1).base64
    fake_router.script("DEST GENERATE", fake_router.reply(f"DEST REPLY PUB=A PRIV={good[:-4]}AAAA"))
    with pytest.raises(TransportUnavailableError, match="made no destination that can be used") as failed:
        await generate_destination(fake_router.address, TIMEOUTS)
    assert good[-40:-4] not in str(failed.value)


async def test_router_that_refuses(fake_router: FakeRouter) -> None:
    fake_router.script("DEST GENERATE", fake_router.reply("DEST REPLY RESULT=I2P_ERROR"))
    with pytest.raises(TransportUnavailableError, match="reports an error"):
        await generate_destination(fake_router.address, TIMEOUTS)


async def test_cancelled_load_leaves_nothing(fake_router: FakeRouter, tmp_path: Path) -> None:
    fake_router.script("DEST GENERATE", fake_router.stall())
    async with anyio.create_task_group() as group:
        group.start_soon(load_key, tmp_path / "i2p.key", fake_router.address, TIMEOUTS)
        await fake_router.seen("DEST GENERATE")
        group.cancel_scope.cancel()
    await fake_router.connections[0].ended()
    assert not [file async for file in anyio.Path(tmp_path).iterdir()]
