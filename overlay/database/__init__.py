"""One SQLite database for each home: each component brings its own schema, all share one file."""

from overlay.database.database import Database
from overlay.database.schema import Schema

__all__ = ["Database", "Schema"]
