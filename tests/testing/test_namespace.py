from __future__ import annotations

import errno
import os
import subprocess
import sys
from ipaddress import IPv4Interface

import pytest

from overlay.errors import TransportUnavailableError
from overlay.testing import namespace

ADDRESS = IPv4Interface("198.18.0.1/15")

LISTEN = """
import socket
from ipaddress import IPv4Interface
from overlay.testing.namespace import enter_network_namespace
outside = socket.create_server(("127.0.0.1", 0))
enter_network_namespace(IPv4Interface("198.18.0.1/15"))
for host in ("127.0.0.1", "198.18.0.1", "198.19.3.4"):
    with socket.create_server((host, 0)) as inside, socket.create_connection(inside.getsockname()):
        pass
try:
    socket.create_connection(("192.0.2.1", 80), 5)
except OSError as error:
    print(error.strerror, outside.getsockname()[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_inside_there_is_a_loopback_interface_and_no_way_out() -> None:
    done = subprocess.run([sys.executable, "-c", LISTEN], capture_output=True, text=True, check=True)
    assert done.stdout == f"{os.strerror(errno.ENETUNREACH)} 127.0.0.1\n"


def test_a_system_that_allows_none_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(flags: int) -> None:
        raise PermissionError(errno.EPERM, str(flags))

    monkeypatch.setattr(namespace, "_unshare", refuse)
    with pytest.raises(TransportUnavailableError, match="lets you make no network namespace"):
        namespace.enter_network_namespace(ADDRESS)


def test_a_system_without_user_namespaces_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(flags: int) -> None:
        raise OSError(errno.ENOSPC if flags & namespace._CLONE_NEWUSER else errno.EPERM, "no")

    monkeypatch.setattr(namespace, "_unshare", refuse)
    with pytest.raises(TransportUnavailableError, match=os.strerror(errno.ENOSPC)):
        namespace.enter_network_namespace(ADDRESS)
