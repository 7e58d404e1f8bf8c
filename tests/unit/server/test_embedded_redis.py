"""embedded_redis: with `redis_dir` a restart loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from gateway.server.embedded_redis import Embedded, EmbeddedError


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
