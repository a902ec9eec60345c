"""Connections inside one process, for tests and simulations.

Transports meet in a `MemoryNetwork`, an object that whoever builds the nodes passes in; two networks know
nothing of each other. `Conditions` decide what happens to each dial and each piece of bytes.
"""

from overlay.transports.memory.conditions import Conditions, LinkConditions, PerfectConditions
from overlay.transports.memory.network import MemoryNetwork
from overlay.transports.memory.transport import MEMORY_PROPERTIES, MemoryTransport

__all__ = [
    "MEMORY_PROPERTIES",
    "Conditions",
    "LinkConditions",
    "MemoryNetwork",
    "MemoryTransport",
    "PerfectConditions",
]
