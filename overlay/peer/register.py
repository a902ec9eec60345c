"""The building block *register*: keep this node and its units known to a model, and say how that stands."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import anyio

from overlay.errors import OverlayError
from overlay.identity import Entropy, SigningSecret
from overlay.locators import RECORD_LIFETIME
from overlay.peer.announcement import Announcement
from overlay.peer.models.base import Model
from overlay.units.identifiers import UnitIdentifier
from overlay.units.locators import UnitLocator

logger = logging.getLogger(__name__)

REGISTRATION_INTERVAL = RECORD_LIFETIME / 2
"""Seconds between registrations: with the renewal of the record, so that the model never has an old one."""

FIRST_PAUSE = 2.0
LAST_PAUSE = 300.0
"""Seconds between tries while the model is not reached: doubled each time, up to five minutes."""


@dataclass(frozen=True, slots=True)
class RegisterStatus:
    """How registration stands.

    Attributes:
        state: `registering` before the first outcome, then `registered` or `retrying`.
        detail: one sentence for people.
        nodes: how many nodes the model knew at the last registration.
    """

    state: Literal["registering", "registered", "retrying"]
    detail: str
    nodes: int = 0


class Register:
    """Registers with a model, again in time, and again when it did not work.

    Args:
        model: where to.
        clock: seconds since 1970.
        entropy: jitter, so that nodes do not all come back at once after an outage.
        changed: called after each change of `status`.
    """

    def __init__(
        self, model: Model, *, clock: Callable[[], float], entropy: Entropy, changed: Callable[[], None]
    ) -> None:
        self._model = model
        self._clock = clock
        self._entropy = entropy
        self._changed = changed
        self._again = anyio.Event()
        self._units: dict[UnitIdentifier, tuple[SigningSecret, UnitLocator]] = {}
        self.status = RegisterStatus("registering", "registering")

    async def run(self) -> None:
        """Keep registered until cancelled. Failures are told in `status` and tried again."""
        pause = FIRST_PAUSE
        while True:
            self._again = anyio.Event()
            try:
                registration = await self._model.register()
                for secret, locator in list(self._units.values()):
                    await self._model.announce(Announcement.sign(secret, locator, now=self._clock()))
            except OverlayError as error:
                wait = pause * (0.75 + self._entropy(1)[0] / 510)
                pause = min(pause * 2, LAST_PAUSE)
                self._tell(
                    RegisterStatus(
                        "retrying", f"{error}; trying again in {wait:.0f} seconds", self.status.nodes
                    )
                )
            else:
                pause, wait = FIRST_PAUSE, REGISTRATION_INTERVAL
                self._tell(RegisterStatus("registered", "registered", registration.nodes))
            with anyio.move_on_after(wait):
                await self._again.wait()

    async def announce(self, secret: SigningSecret, locator: UnitLocator) -> None:
        """Make the unit whose key is `secret` known as held at `locator`, now and with each registration.

        Raises:
            UnreachableError, RefusedError: not known yet; the next registration brings it.
        """
        self._units[UnitIdentifier.of_key(secret.public)] = (secret, locator)
        await self._model.announce(Announcement.sign(secret, locator, now=self._clock()))

    def withdraw(self, unit: UnitIdentifier) -> None:
        """Announce a unit no more; what was announced expires by itself."""
        self._units.pop(unit, None)

    def soon(self) -> None:
        """Register now instead of at the next time: an address changed, or the network came back."""
        self._again.set()

    def _tell(self, status: RegisterStatus) -> None:
        if status.state != self.status.state:
            logger.info("registration: %s", status.state)
        self.status = status
        self._changed()
