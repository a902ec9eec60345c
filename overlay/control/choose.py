"""Which session or file a person means: a full identifier, the beginning of one, or a name. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from overlay.errors import NotFoundError, RefusedError
from overlay.identity import parse_identifier

MIN_PREFIX_LENGTH = 4
"""Characters; fewer would often be a word that happens to fit."""
IDENTIFIER_LENGTH = 56
MAX_NAMED_CHOICES = 8
"""Choices that an error names; a person reads no more."""
_SHOWN_PREFIX = 12  # characters that tell identifiers apart for all practical purposes
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz234567")


@dataclass(frozen=True, slots=True)
class Choice:
    """Something with an identifier of 56 characters and a name that somebody else may have given it."""

    identifier: str
    name: str


def choose(what: str, kind: str, text: str, choices: Sequence[Choice]) -> str:
    """Find the identifier of the one that is meant.

    A full identifier means itself. Otherwise all that begin with `text` and all that are called exactly so
    are candidates, because names are chosen by other people and must not hide an identifier.

    Args:
        what: the word for it in errors: `session`, `file`.
        kind: the kind of identifier, as in `overlay.identity.parse_identifier`.
        text: what was typed.
        choices: all there are.

    Returns:
        the identifier, in full.

    Raises:
        MalformedError: it looks like a full identifier, and is mistyped.
        NotFoundError: there is none.
        RefusedError: several fit.
    """
    typed = text.strip().lower()
    if len(typed) == IDENTIFIER_LENGTH and _LETTERS.issuperset(typed):
        parse_identifier(kind, typed)
        found = [choice for choice in choices if choice.identifier == typed]
    else:
        found = [choice for choice in choices if _fits(choice, text, typed)]
    if not found:
        raise NotFoundError(f"no {what} here is called '{text}' or has an identifier that begins so")
    if len(found) > 1:
        named = ", ".join(
            f"{each.identifier[:_SHOWN_PREFIX]} ({each.name})" for each in found[:MAX_NAMED_CHOICES]
        )
        raise RefusedError(f"'{text}' may be one of several: give more of the identifier, of {named}")
    return found[0].identifier


def _fits(choice: Choice, text: str, typed: str) -> bool:
    begins = len(typed) >= MIN_PREFIX_LENGTH and choice.identifier.startswith(typed)
    return begins or choice.name == text
