"""The central-directory model: one node keeps the list of all others and of their units.

Registration gives a node its confirmation and the list of others; the others learn of it, and of each new
unit. Everything in the directory is signed by whom it is about, so a directory can withhold and forget, but
not forge.
"""

from overlay.peer.models.directory.client import DirectoryClient
from overlay.peer.models.directory.server import DIRECTORY_SCHEMA, Directory

__all__ = ["DIRECTORY_SCHEMA", "Directory", "DirectoryClient"]
