"""Listening sockets: how they are bound (TCP, unix, one per worker), and how a failure to bind is reported.

`supervisor` and `worker` own them. The supervisor serves nothing, so this module imports no server.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys

from gateway.errors import GatewayError

BACKLOG = 2048
UNSENT = 128 * 1024
"""Bytes of an answer that the kernel holds of what its client's window does not take yet (TCP_NOTSENT_LOWAT). Without
it the kernel takes megabytes for each client that reads nothing, and the gateway believes that they were sent."""


class ListenError(GatewayError):
    """An address can't be listened on; the message says which, and what to do."""


def listen_for_each(count: int, host: str, port: int, setting: str = "port") -> list[socket.socket]:
    """Listening sockets of one address, one for each of `count` workers: the kernel then spreads connections evenly,
    where workers that accept from one socket get uneven shares. Port 0 takes a free one. Raises ListenError.

    Where the kernel does not spread them (it is not Linux), it is one socket for all.
    """
    first = listen(host, port, setting, shared=count > 1)
    if count == 1:
        return [first]
    if sys.platform != "linux":
        return [first] + [first.dup() for _ in range(count - 1)]
    address, port = first.getsockname()[:2]
    return [first, *(_bound(address, port, setting, shared=True) for _ in range(count - 1))]


def listen(host: str, port: int, setting: str, *, shared: bool = False) -> socket.socket:
    """A listening socket; `shared` lets others of this process listen beside it. Raises ListenError."""
    if shared and port:
        # Two gateways that both share would both succeed, and take half of each other's connections.
        _bound(host, port, setting, shared=False).close()
    return _bound(host, port, setting, shared=shared)


def _bound(host: str, port: int, setting: str, *, shared: bool) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        if shared and sys.platform == "linux":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Accepted sockets inherit both. asyncio's own loop sets the first only for sockets that name their protocol:
        # without it a head and a body in two pieces wait 40 ms for each other.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ListenError(
            f"cannot listen on {host}:{port}: {error.strerror}; set another by `{setting}` in the configuration, or "
            f"GATEWAY_{setting.upper()}"
        ) from None
    return sock


def listen_admin(address: str) -> socket.socket | None:
    """The admin listener of `host:port`, `unix:/path` or `none`. Raises ListenError."""
    if address == "none":
        return None
    if not address.startswith("unix:"):
        host, _, port = address.rpartition(":")
        return listen(host.strip("[]"), int(port), "admin_listen")
    path = address.removeprefix("unix:")
    with contextlib.suppress(FileNotFoundError):
        _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ListenError(f"cannot listen on {path}: {error.strerror}; set another `admin_listen`") from None
    return sock


def forget(sock: socket.socket) -> None:
    """Close a listening socket, and remove its file if it has one."""
    path = sock.getsockname() if sock.family == socket.AF_UNIX else None
    sock.close()
    if isinstance(path, str) and path:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _remove_stale(path: str) -> None:
    """Remove a unix socket without a listener."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.connect(path)
    except ConnectionRefusedError:
        os.unlink(path)
    finally:
        probe.close()


def url_of(sock: socket.socket, scheme: str = "http") -> str:
    host, port = sock.getsockname()[:2]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
