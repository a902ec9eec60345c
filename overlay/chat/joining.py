"""Joining a session: finding somebody who has it, getting its history, and adding oneself."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass

import anyio

from overlay.chat.events import Joined
from overlay.chat.invite import Invite
from overlay.chat.reconciler import MAX_EXCHANGES
from overlay.chat.session import Session
from overlay.chat.store import ChatStore
from overlay.chat.sync import Sync
from overlay.errors import (
    MalformedError,
    NotFoundError,
    OverlayError,
    ProtocolViolationError,
    RefusedError,
    TransportUnavailableError,
    UnreachableError,
    VerificationError,
)
from overlay.peer.node import Node
from overlay.units.identifiers import UnitIdentifier
from overlay.units.locators import UnitLocator

logger = logging.getLogger(__name__)

_GAVE_NOTHING = (
    NotFoundError,
    UnreachableError,
    VerificationError,
    ProtocolViolationError,
    MalformedError,
)
"""What one holder's failure looks like; another may still have the session."""


@dataclass(slots=True)
class _Failures:
    """Why those who have a session did not give it, as far as it matters to whoever joins."""

    refused: RefusedError | None = None
    unavailable: TransportUnavailableError | None = None
    elsewhere: RefusedError | None = None


async def join_session(
    node: Node, store: ChatStore, sync: Sync, *, session: Session, invite: Invite, joined: Joined
) -> None:
    """Get the history of `session` and join it; failed or cancelled, nothing of it stays.

    Raises:
        RefusedError: whoever has the session does not accept the invite's secret, or is on other networks
            than this node, or the session is full.
        TransportUnavailableError: nobody who has it was reached, and what does not work is on this side.
        UnreachableError: nobody who has it was reached.
        VerificationError: as many as may have joined, or what came breaks the session's rules.
        MalformedError: the name is out of its bounds.
        StorageError: the disk is full.
    """
    await store.create(session.row, [invite.created])
    complete = False
    try:
        await _fetch_history(node, sync, session, invite)
        await session.say(joined, node.clock())
        complete = True
    finally:
        if not complete:
            with anyio.CancelScope(shield=True):
                await session.close()


async def _fetch_history(node: Node, sync: Sync, session: Session, invite: Invite) -> None:
    if invite.record:
        with suppress(MalformedError, VerificationError):  # a hint; that of an old invite has expired
            await node.locators.learn(invite.record)
    failures = _Failures()
    if await _fetch_from(node, sync, session, UnitLocator(invite.node, invite.place), failures):
        return
    for holder in await _announced(node, invite):
        if await _fetch_from(node, sync, session, holder, failures):
            return
    if failures.refused is not None:
        raise RefusedError("the invite is not valid for this session any more") from failures.refused
    if failures.unavailable is not None:
        raise failures.unavailable
    if failures.elsewhere is not None:
        raise RefusedError(
            "who is known to have this session is on a network that this node does not use: start it with a"
            " transport that they share, or ask a participant who is on both networks for an invite"
        ) from failures.elsewhere
    raise UnreachableError("nobody who has this session was reached: try later, or ask for a new invite")


async def _fetch_from(
    node: Node, sync: Sync, session: Session, holder: UnitLocator, failures: _Failures
) -> bool:
    try:
        for _ in range(MAX_EXCHANGES):
            if await sync.exchange(session, holder):
                return True
    except RefusedError as error:
        record = node.locators.known(holder.node)
        if record is None or node.locators.leads_anywhere(record):
            failures.refused = failures.refused or error
        else:
            failures.elsewhere = error
    except TransportUnavailableError as error:
        failures.unavailable = failures.unavailable or error
        node.check_online()  # others would fail as slowly where the trouble is here
    except _GAVE_NOTHING as error:
        logger.debug("a node that should have a session gave nothing: %s", error.code)
    return False


async def _announced(node: Node, invite: Invite) -> list[UnitLocator]:
    """Others who have the session; asked for only when whoever invites is not reached."""
    try:
        announcements = await node.find_unit(UnitIdentifier.of_key(invite.created.session))
    except OverlayError:  # the model is not reached: there is nobody else to ask
        return []
    known = {invite.node, node.identifier}
    return [each.locator for each in announcements if each.locator.node not in known]
