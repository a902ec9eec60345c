"""Plain TCP: hides nothing; for tests, local networks and comparison."""

from overlay.transports.tcp.transport import TCP_PROPERTIES, TcpTransport

__all__ = ["TCP_PROPERTIES", "TcpTransport"]
