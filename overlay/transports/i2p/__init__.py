"""Connections as I2P destinations: speaks SAM to a router, which it attaches to or launches."""
