"""One SQLite database for each home."""
