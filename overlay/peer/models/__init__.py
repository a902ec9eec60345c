"""Models for finding nodes and units: the central directory."""
