"""The running node's local API over a Unix socket in its home."""
