"""Connections as Tor v3 onion services: launches or attaches to a tor, publishes, dials through SOCKS."""
