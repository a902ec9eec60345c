"""The `overlay` command."""
