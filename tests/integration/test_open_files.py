"""More clients than the process may open files: those within the limit are served, the others get 503."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import LISTENING, Child, write_config

LIMIT, CLIENTS = 256, 330
pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def limited(tmp_path: Path, origin: str) -> Iterator[tuple[Child, int]]:
    """A gateway that may open LIMIT files, and its port."""
    file = write_config(
        tmp_path / "gateway.yaml",
        {
            "redis_url": "none",
            "admin_listen": "none",
            "access_log": False,
            "upstreams": {"api": {"url": origin}},
            "routes": {"rest": {"path": "/{path:path}", "upstream": "api", "ttl": "60s"}},
        },
    )
    serve = [sys.executable, "-m", "gateway", "serve", "--config", str(file), "--port", "0"]
    child = Child(
        ["/bin/sh", "-c", f'ulimit -n {LIMIT}; exec "$@"', "sh", *serve], output=tmp_path / "out", cwd=tmp_path
    )
    try:
        yield child, int(child.said(LISTENING)[1].rpartition(":")[2])
    finally:
        child.end()


def ask(sock: socket.socket) -> bytes:
    """The status of a response on a kept connection, empty where it was closed without one."""
    with contextlib.suppress(ConnectionError):
        sock.sendall(b"GET /items/1 HTTP/1.1\r\nHost: a.test\r\n\r\n")
    with contextlib.suppress(ConnectionError):
        return sock.recv(65536)[9:12]
    return b""


def test_those_within_the_limit_are_served_and_it_recovers(limited: tuple[Child, int]) -> None:
    child, port = limited
    with contextlib.ExitStack() as clients:
        seen: Counter[bytes] = Counter()
        for _ in range(CLIENTS):
            sock = clients.enter_context(socket.create_connection(("127.0.0.1", port), 10))
            seen[ask(sock)] += 1
        print(seen)
        assert seen[b"200"] >= 0.6 * LIMIT
        assert seen[b"200"] + seen[b"503"] == CLIENTS
    child.said("there are file descriptors again")
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        assert ask(sock) == b"200"
    assert child.errors.count("no file descriptors left") == 1
