"""Migration: from every older version, refused from a newer one, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator

import apsw
import pytest

from overlay.database.schema import Schema, migrate
from overlay.database.sqlite import open_memory, write_transaction
from overlay.errors import StorageError

STEPS = (
    "CREATE TABLE people (name TEXT PRIMARY KEY); INSERT INTO people VALUES ('ada');",
    "ALTER TABLE people ADD COLUMN age INTEGER NOT NULL DEFAULT 36",
    "UPDATE people SET age = age + 1; CREATE INDEX by_age ON people (age)",
)
NEWEST = Schema("people", STEPS)


@pytest.fixture
def connection() -> Iterator[apsw.Connection]:
    connection = open_memory()
    yield connection
    connection.close()


def run(connection: apsw.Connection, *schemas: Schema) -> None:
    write_transaction(connection, lambda inner: migrate(inner, schemas))


def dump(connection: apsw.Connection) -> list[tuple[apsw.SQLiteValue, ...]]:
    tables = connection.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY name").fetchall()
    versions = connection.execute("SELECT * FROM schema_versions ORDER BY name").fetchall()
    return tables + versions + connection.execute("SELECT * FROM people").fetchall()


@pytest.mark.parametrize("version", range(len(STEPS) + 1))
def test_every_older_version_becomes_the_newest(connection: apsw.Connection, version: int) -> None:
    fresh = open_memory()
    run(fresh, NEWEST)
    run(connection, Schema("people", STEPS[:version]))
    run(connection, NEWEST)
    assert dump(connection) == dump(fresh)
    assert ("ada", 37) in dump(connection)


def test_migrating_again_does_nothing(connection: apsw.Connection) -> None:
    run(connection, NEWEST)
    before = dump(connection)
    run(connection, NEWEST)
    assert dump(connection) == before


def test_a_newer_database_is_refused_and_left_alone(connection: apsw.Connection) -> None:
    run(connection, NEWEST)
    before = dump(connection)
    other = Schema("other", ("CREATE TABLE other (x)",))
    with pytest.raises(StorageError, match=r"newer version .*version 3 of people, 2 is known here.*install"):
        run(connection, other, Schema("people", STEPS[:2]))
    assert dump(connection) == before


def test_a_failing_step_leaves_nothing_of_the_whole_migration(connection: apsw.Connection) -> None:
    run(connection, Schema("people", STEPS[:1]))
    before = dump(connection)
    broken = Schema("people", (*STEPS, "CREATE TABLE half (x); NOT SQL"))
    with pytest.raises(apsw.SQLError):
        run(connection, broken)
    assert dump(connection) == before


def test_components_have_versions_of_their_own(connection: apsw.Connection) -> None:
    run(connection, Schema("people", STEPS[:2]))
    run(connection, Schema("things", ("CREATE TABLE things (x)",)), NEWEST)
    versions = connection.execute("SELECT * FROM schema_versions ORDER BY name").fetchall()
    assert versions == [("people", 3), ("things", 1)]


def test_a_component_that_is_not_there_any_more_stays(connection: apsw.Connection) -> None:
    run(connection, NEWEST)
    before = dump(connection)
    run(connection)
    assert dump(connection) == before


def test_two_components_of_one_name_are_a_mistake(connection: apsw.Connection) -> None:
    with pytest.raises(ValueError, match="same name"):
        run(connection, NEWEST, Schema("people", ()))
