"""Keeping content in this node's own storage."""
