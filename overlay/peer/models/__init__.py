"""Models for finding nodes and units; all stand behind `Model`.

The central directory is one; flooded requests and document routing join it behind the same interface.
"""

from overlay.peer.models.base import Model, Registration

__all__ = ["Model", "Registration"]
