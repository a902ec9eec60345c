"""A network namespace of this process's own, with nothing in it but a loopback interface. Linux only."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from ipaddress import IPv4Interface
from pathlib import Path

from overlay.errors import TransportUnavailableError

# <linux/sched.h>, <linux/sockios.h>, <linux/if.h>; os.unshare is there from Python 3.12 on.
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS = 0x8914
_SIOCSIFADDR = 0x8916
_SIOCSIFNETMASK = 0x891C
_IFF_UP = 0x1
_REQUEST_BYTES = 40  # struct ifreq on 64-bit machines; the kernel reads no more


def enter_network_namespace(address: IPv4Interface) -> None:
    """Leave the machine's network for good: every later socket sees an empty one, with `lo` alone.

    Sockets that are open already stay in the old one. Without root's rights a user namespace is entered too,
    in which the user keeps their number. The process must have one thread only.

    Args:
        address: what `lo` is given beside 127.0.0.1; on this interface the whole prefix is local.

    Raises:
        TransportUnavailableError: this system lets the user make no such namespace.
    """
    user, group = os.getuid(), os.getgid()
    try:
        try:
            _unshare(_CLONE_NEWNET)
        except PermissionError:
            _unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
            Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
        _configure_loopback(address)
    except OSError as error:
        reason = os.strerror(error.errno or errno.EPERM)
        raise TransportUnavailableError(
            f"this system lets you make no network namespace ({reason}): run this as root, "
            "or have user namespaces allowed"
        ) from error


def _unshare(flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _configure_loopback(address: IPv4Interface) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        _configure(control, "lo", struct.pack("=H", _IFF_UP), _SIOCSIFFLAGS)  # brings 127.0.0.1 with it
        _configure(control, "lo:0", _socket_address(address.ip.packed), _SIOCSIFADDR)
        _configure(control, "lo:0", _socket_address(address.netmask.packed), _SIOCSIFNETMASK)


def _configure(control: socket.socket, name: str, value: bytes, request: int) -> None:
    fcntl.ioctl(
        control, request, struct.pack("=16s", name.encode()) + value.ljust(_REQUEST_BYTES - 16, b"\0")
    )


def _socket_address(packed: bytes) -> bytes:
    return struct.pack("=HH4s", socket.AF_INET, 0, packed)
