from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest

from overlay.errors import TransportUnavailableError
from overlay.transports.i2p.isolation import MAX_ISOLATED, WITHOUT_TOKEN, IsolationPool, Token
from overlay.transports.i2p.session import SessionMaker
from overlay.transports.i2p.settings import I2pTimeouts, TunnelOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from overlay.transports.i2p.destination import PrivateDestination
    from tests.transports.i2p.conftest import FakeRouter

ONE, TWO, THREE = (Token(name, 0) for name in (b"one", b"two", b"three"))
CREATE = "SESSION CREATE"


def maker_on(router: FakeRouter) -> SessionMaker:
    return SessionMaker(router.address, TunnelOptions(), I2pTimeouts(create=5.0), os.urandom)


@asynccontextmanager
async def pool_on(
    router: FakeRouter, *, limit: int = MAX_ISOLATED, rest: float = 0.0, keep: float = 60.0
) -> AsyncIterator[IsolationPool]:
    async with anyio.create_task_group() as tasks:
        yield IsolationPool(maker_on(router).transient, tasks, rest=rest, limit=limit, keep=keep)
        tasks.cancel_scope.cancel()
    await router.until(lambda: all(connection.closed for connection in router.connections))


async def test_a_token_keeps_its_session(fake_router: FakeRouter) -> None:
    async with pool_on(fake_router) as pool:
        first = await pool.acquire(ONE)
        first.release()
        again = await pool.acquire(ONE)
        assert again.session is first.session


async def test_tokens_share_no_session(fake_router: FakeRouter) -> None:
    async with pool_on(fake_router) as pool:
        leases = [await pool.acquire(token) for token in (ONE, TWO, THREE, Token(b"one", 1))]
        assert len({lease.session.destination for lease in leases}) == len(leases)


async def test_no_session_is_made_before_the_first_token(fake_router: FakeRouter) -> None:
    async with pool_on(fake_router):
        await anyio.wait_all_tasks_blocked()
        assert fake_router.commands == []


async def test_the_session_without_a_token_is_kept(fake_router: FakeRouter) -> None:
    async with pool_on(fake_router, limit=1, keep=0.0) as pool:
        pool.begin(maker_on(fake_router).transient)
        first = await pool.acquire(WITHOUT_TOKEN)
        assert len(await fake_router.seen(CREATE)) == 1  # and no spare one beside it
        first.release()
        (await pool.acquire(ONE)).release()
        await fake_router.until(lambda: len(fake_router.sessions) == 1)
        (await pool.acquire(TWO)).release()
        assert (await pool.acquire(WITHOUT_TOKEN)).session is first.session


async def test_a_spare_waits_for_the_next_token(fake_router: FakeRouter) -> None:
    async with pool_on(fake_router) as pool:
        await pool.acquire(ONE)
        await fake_router.until(lambda: len(fake_router.sessions) == 2)
        fake_router.always(CREATE, fake_router.stall())
        with anyio.fail_after(5):
            await pool.acquire(TWO)
        await fake_router.seen(CREATE, 3)  # the next spare


async def test_all_in_use_is_said(fake_router: FakeRouter) -> None:
    async with pool_on(fake_router, limit=2) as pool:
        await pool.acquire(ONE)
        await pool.acquire(TWO)
        with pytest.raises(
            TransportUnavailableError, match="all 2 I2P sessions that this node may have are in"
        ):
            await pool.acquire(THREE)
        assert len(fake_router.sessions) == 2


async def test_tokens_take_no_room_from_dials_without_one(fake_router: FakeRouter) -> None:
    async with pool_on(fake_router, limit=2) as pool:
        for token in (ONE, TWO):
            await pool.acquire(token)
        usual = await pool.acquire(WITHOUT_TOKEN)
        detours = [await pool.acquire(Token(b"", number)) for number in (1, 2)]
        assert len({lease.session.destination for lease in (usual, *detours)}) == 3
        assert len(fake_router.sessions) == 5
        with pytest.raises(TransportUnavailableError, match="all 2 I2P sessions"):
            await pool.acquire(THREE)


async def test_dials_without_a_token_take_no_room_from_tokens(fake_router: FakeRouter) -> None:
    async with pool_on(fake_router, limit=2) as pool:
        for number in range(3):
            await pool.acquire(Token(b"", number))
        first = await pool.acquire(ONE)
        assert (await pool.acquire(TWO)).session is not first.session


async def test_idle_session_without_a_token_does_not_make_room(fake_router: FakeRouter) -> None:
    async with pool_on(fake_router, limit=1) as pool:
        detour = await pool.acquire(Token(b"", 1))
        detour.release()
        await pool.acquire(ONE)
        with pytest.raises(TransportUnavailableError):
            await pool.acquire(TWO)
        assert (await pool.acquire(Token(b"", 1))).session is detour.session


async def test_trouble_with_the_session_without_a_token_is_known_until_it_is_made(
    fake_router: FakeRouter,
) -> None:
    async with pool_on(fake_router) as pool:
        assert pool.trouble == ""
        fake_router.script(CREATE, fake_router.reply('SESSION STATUS RESULT=I2P_ERROR MESSAGE="no"'))
        with anyio.fail_after(5):
            await pool.begin(maker_on(fake_router).transient).wait()
        assert "no" in pool.trouble
        await pool.acquire(WITHOUT_TOKEN)
        assert pool.trouble == ""
        fake_router.always(CREATE, fake_router.hang_up())
        with pytest.raises(TransportUnavailableError):
            await pool.acquire(ONE)
        assert pool.trouble == ""  # a token's is the trouble of its dial


async def test_the_longest_idle_session_makes_room(fake_router: FakeRouter) -> None:
    async with pool_on(fake_router, limit=3) as pool:
        leases = {token: await pool.acquire(token) for token in (ONE, TWO, THREE)}
        leases[TWO].release()
        leases[ONE].release()
        (await pool.acquire(TWO)).release()  # so that ONE has been idle for longer
        fresh = await pool.acquire(Token(b"four", 0))
        assert fresh.session not in {lease.session for lease in leases.values()}
        assert (await pool.acquire(THREE)).session is leases[THREE].session
        assert (await pool.acquire(ONE)).session is not leases[ONE].session


async def test_a_session_rests_before_it_makes_room(fake_router: FakeRouter) -> None:
    async with pool_on(fake_router, limit=2, rest=60.0) as pool:
        (await pool.acquire(ONE)).release()
        (await pool.acquire(TWO)).release()
        with pytest.raises(TransportUnavailableError):
            await pool.acquire(THREE)


async def test_release_counts_once(fake_router: FakeRouter) -> None:
    async with pool_on(fake_router, limit=2) as pool:
        first, second = await pool.acquire(ONE), await pool.acquire(ONE)
        await pool.acquire(TWO)
        first.release()
        first.release()
        with pytest.raises(TransportUnavailableError):
            await pool.acquire(THREE)
        second.release()
        await pool.acquire(THREE)


async def test_a_lost_session_is_made_again_for_its_token(fake_router: FakeRouter) -> None:
    async with pool_on(fake_router) as pool:
        first = await pool.acquire(ONE)
        of_one = first.session.destination
        (identifier,) = [name for name, made in fake_router.sessions.items() if made.public == of_one]
        await fake_router.lose(identifier)
        await first.session.lost.wait()
        again = await pool.acquire(ONE)
        assert again.session.destination != first.session.destination


async def test_refused_session_is_said_and_tried_again(fake_router: FakeRouter) -> None:
    refusal = fake_router.reply('SESSION STATUS RESULT=I2P_ERROR MESSAGE="too many"')
    fake_router.script(CREATE, refusal, refusal)
    async with pool_on(fake_router) as pool:
        with pytest.raises(TransportUnavailableError, match=r"of its own could not be had.*too many"):
            await pool.acquire(ONE)
        await fake_router.seen(CREATE, 2)  # the spare, refused too
        await anyio.wait_all_tasks_blocked()
        assert (await pool.acquire(ONE)).session.destination is not None


async def test_session_with_a_bad_key_fails_its_dial_only(fake_router: FakeRouter) -> None:
    refusal = fake_router.reply("SESSION STATUS RESULT=INVALID_KEY")
    fake_router.script(CREATE, refusal, refusal)
    async with pool_on(fake_router) as pool:
        with pytest.raises(TransportUnavailableError, match="could not be had"):
            await pool.acquire(ONE)
        await fake_router.seen(CREATE, 2)  # the spare, refused too
        await anyio.wait_all_tasks_blocked()
        await pool.acquire(TWO)


async def test_router_killed_while_a_session_is_made(fake_router: FakeRouter) -> None:
    fake_router.always(CREATE, fake_router.stall())
    async with pool_on(fake_router) as pool, anyio.create_task_group() as tasks:

        async def acquire() -> None:
            with pytest.raises(TransportUnavailableError, match="closed the connection"):
                await pool.acquire(ONE)

        tasks.start_soon(acquire)
        await fake_router.seen(CREATE, 2)
        await fake_router.kill()


async def test_a_cancelled_wait_leaves_the_session_to_others(
    fake_router: FakeRouter, make_destination: Callable[[int], PrivateDestination]
) -> None:
    fake_router.script(CREATE, fake_router.stall(), fake_router.stall())
    scope, leases = anyio.CancelScope(), []

    async def give_up() -> None:
        with scope:
            await pool.acquire(ONE)

    async def wait() -> None:
        leases.append(await pool.acquire(ONE))

    async with pool_on(fake_router) as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(give_up)
        tasks.start_soon(wait)
        await fake_router.seen(CREATE, 2)  # the token's, and the spare
        scope.cancel()
        await anyio.wait_all_tasks_blocked()
        for number, connection in enumerate(fake_router.connections):
            made = make_destination(number).base64
            await connection.send(f"SESSION STATUS RESULT=OK DESTINATION={made}\n".encode())
    assert len(leases) == 1


async def test_a_wait_that_everybody_gave_up_makes_room(fake_router: FakeRouter) -> None:
    async with pool_on(fake_router, limit=2) as pool:
        await pool.acquire(ONE)
        fake_router.always(CREATE, fake_router.stall())
        await fake_router.until(lambda: len(fake_router.sessions) == 2)
        (await pool.acquire(TWO)).release()
        with anyio.move_on_after(0.01):
            await pool.acquire(THREE)
        with anyio.move_on_after(0.01) as scope:
            await pool.acquire(Token(b"four", 0))
        assert scope.cancelled_caught  # it waited, and was not refused


async def test_a_session_that_is_used_no_more_is_thrown_away(fake_router: FakeRouter) -> None:
    async with pool_on(fake_router, keep=0.05) as pool:
        first = await pool.acquire(ONE)
        await fake_router.until(lambda: len(fake_router.sessions) == 2)
        await anyio.sleep(0.1)
        assert len(fake_router.sessions) == 2  # one in use, one that nobody has used
        first.release()
        await fake_router.until(lambda: len(fake_router.sessions) == 1)
        assert (await pool.acquire(ONE)).session is not first.session


async def test_a_session_that_was_waited_for_in_vain_serves_another_token(fake_router: FakeRouter) -> None:
    fake_router.always(CREATE, fake_router.stall())
    async with pool_on(fake_router) as pool:
        for number in range(5):
            with anyio.move_on_after(0.02):
                await pool.acquire(Token(b"%d" % number, 0))
        assert len(await fake_router.seen(CREATE, 2)) == 2
