"""The `overlay` command: thin; every verb calls the control API or the library."""

__version__ = "0.1.0"
