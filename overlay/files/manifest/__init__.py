"""The manifest of a folder. Pure."""
