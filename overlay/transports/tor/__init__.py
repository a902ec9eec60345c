"""Connections over Tor: v3 onion services as locators, SOCKS with isolation for dialling."""
