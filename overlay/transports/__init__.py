"""Transports: each implements `overlay.connection.Transport` and knows no other."""
