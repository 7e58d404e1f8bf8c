"""The sockets that the gateway listens on: one for each worker, and one for the operator."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

from gateway.server.listener import UNSENT, ListenError, forget, listen, listen_admin, listen_for_each, url_of


def test_each_worker_has_a_socket_of_its_own_at_one_address() -> None:
    sockets = listen_for_each(3, "127.0.0.1", 0)
    try:
        assert len({sock.getsockname() for sock in sockets}) == 1
        assert len({sock.fileno() for sock in sockets}) == 3
    finally:
        for sock in sockets:
            sock.close()


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="this system has no TCP_NOTSENT_LOWAT")
def test_the_kernel_takes_little_for_a_client_that_reads_nothing() -> None:
    taken = []
    for bounded in (True, False):
        (sock,) = listen_for_each(1, "127.0.0.1", 0)
        with sock, socket.socket() as client:
            if not bounded:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 2**31 - 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(sock.getsockname())
            accepted, _ = sock.accept()
            with accepted:
                accepted.setblocking(False)
                taken.append(accepted.send(bytes(3_000_000)))
    assert taken[0] <= 2 * UNSENT < taken[1]


@pytest.mark.parametrize("count", [1, 2])
def test_an_address_that_is_taken_is_refused_with_the_setting_that_chooses_another(count: int) -> None:
    (taken,) = listen_for_each(1, "127.0.0.1", 0)
    with taken, pytest.raises(ListenError, match=r"cannot listen on 127\.0\.0\.1:\d+: .*`port`.* GATEWAY_PORT"):
        listen_for_each(count, "127.0.0.1", taken.getsockname()[1])


def test_no_answer_in_two_pieces_waits_for_its_client_to_acknowledge_the_first() -> None:
    (sock,) = listen_for_each(1, "127.0.0.1", 0)
    with sock, socket.create_connection(sock.getsockname()):
        accepted, _ = sock.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_two_gateways_never_share_an_address_unknown_to_each_other() -> None:
    first = listen_for_each(2, "127.0.0.1", 0)
    try:
        with pytest.raises(ListenError):
            listen_for_each(2, "127.0.0.1", first[0].getsockname()[1])
    finally:
        for sock in first:
            sock.close()


def test_the_admin_listener_is_an_address_a_file_or_nothing(tmp_path: Path) -> None:
    assert listen_admin("none") is None
    for address in ("127.0.0.1:0", f"unix:{tmp_path}/admin"):
        sock = listen_admin(address)
        assert sock is not None
        with socket.socket(sock.family) as client:
            client.connect(sock.getsockname())
        forget(sock)
    assert not (tmp_path / "admin").exists()


def test_a_file_that_a_dead_gateway_left_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "admin"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    sock = listen_admin(f"unix:{path}")
    assert sock is not None
    path.unlink()
    forget(sock)  # somebody has removed it already


def test_a_file_that_a_living_gateway_listens_on_is_left_to_it(tmp_path: Path) -> None:
    path = tmp_path / "admin"
    sock = listen_admin(f"unix:{path}")
    assert sock is not None
    with pytest.raises(ListenError, match=f"cannot listen on {path}: .*set another `admin_listen`"):
        listen_admin(f"unix:{path}")
    assert stat.S_ISSOCK(path.stat().st_mode)
    forget(sock)


def test_a_url_has_an_ipv6_address_in_brackets() -> None:
    with listen("127.0.0.1", 0, "port") as sock:
        assert url_of(sock) == f"http://127.0.0.1:{sock.getsockname()[1]}"
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    try:
        sock = listen("::1", 0, "port")
    except ListenError:
        pytest.skip("this machine has no IPv6 address")
    with sock:
        assert url_of(sock) == f"http://[::1]:{sock.getsockname()[1]}"
