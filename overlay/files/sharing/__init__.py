"""Offering files and folders from where they lie."""
