"""Schemas of components, and the migration of a database to them.

A component never changes a step that was released: it adds another. So a database of any age reaches the
newest form by the same steps in the same order as every other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import apsw

from overlay.errors import StorageError

_VERSIONS = """
CREATE TABLE IF NOT EXISTS schema_versions (
    name TEXT PRIMARY KEY,
    version INTEGER NOT NULL
) STRICT, WITHOUT ROWID
"""


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of one component.

    Attributes:
        name: the component's, the same for ever; two components of a database must not share one.
        steps: SQL, each run once in a database's life and in this order; a step may hold several
            statements, but no BEGIN, COMMIT or ROLLBACK. The number of steps is the version.
    """

    name: str
    steps: tuple[str, ...]


def migrate(connection: apsw.Connection, schemas: Sequence[Schema]) -> None:
    """Bring every component's tables to their newest form; runs inside the caller's transaction.

    Components that are in the database but not in `schemas` are left as they are.

    Raises:
        StorageError: the database was written by a newer version of the program.
        ValueError: two schemas have the same name.
    """
    if len({schema.name for schema in schemas}) < len(schemas):
        raise ValueError("two schemas of a database have the same name")
    connection.execute(_VERSIONS)
    for schema in schemas:
        _migrate_one(connection, schema)


def _migrate_one(connection: apsw.Connection, schema: Schema) -> None:
    found = connection.execute("SELECT version FROM schema_versions WHERE name = ?", (schema.name,)).get or 0
    newest = len(schema.steps)
    if found > newest:
        raise StorageError(
            f"the database was written by a newer version of this program (version {found} of {schema.name}, "
            f"{newest} is known here): install the newer version"
        )
    if found < newest:
        for step in schema.steps[found:]:
            connection.execute(step)
        connection.execute("INSERT OR REPLACE INTO schema_versions VALUES (?, ?)", (schema.name, newest))
