"""I2P destinations: their text, their hash, and the keys that they come from."""
