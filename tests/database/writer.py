"""Stores numbered pairs of notes and says so after each; a test kills it at any moment.

Usage: writer.py DATABASE FIRST-NUMBER
"""

from __future__ import annotations

import sys
from pathlib import Path

import anyio
import apsw

from overlay.database import Database, Schema

NOTES = Schema("notes", ("CREATE TABLE notes (number INTEGER, half INTEGER, body BLOB) STRICT",))
BODY_BYTES = 32_768


async def main() -> None:
    number = int(sys.argv[2])
    async with await Database.open(Path(sys.argv[1]), [NOTES]) as database:
        while True:

            def pair(connection: apsw.Connection, number: int = number) -> None:
                body = bytes([number % 256]) * BODY_BYTES
                connection.executemany(
                    "INSERT INTO notes VALUES (?, ?, ?)", [(number, 0, body), (number, 1, body)]
                )

            await database.write(pair)
            sys.stdout.write(f"{number}\n")
            sys.stdout.flush()
            number += 1


anyio.run(main)
