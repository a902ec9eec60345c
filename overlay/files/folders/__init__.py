"""Fetching a folder, or a part of it."""
