"""Plain TCP: hides nothing; for tests, local networks and comparison."""
