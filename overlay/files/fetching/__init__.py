"""Bringing content: the driver of the engine, from whom, how fast, and where it goes."""
