"""Another version of uvicorn, redis-py or aiohttp: what lacks is named, and the gateway refuses to start or goes on."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

import gateway.edge
from gateway.cache.redis import connection
from gateway.cache.redis.reader import Keeper
from gateway.cache.redis.store import RedisStore
from gateway.edge import client_connection
from gateway.errors import ConfigError
from gateway.internals import TESTED, UnknownVersion, explained, missing
from gateway.server.embedded_redis import Embedded
from gateway.testing import running
from gateway.upstreams import transport
from tests.support.gateways import gateway as gateway_of
from tests.support.gateways import served
from tests.support.processes import ROOT, clean_environment

SETTINGS = """
port: 0
redis_url: none
admin_listen: none
upstreams: {api: {url: "http://127.0.0.1:9"}}
routes: {all: {path: "/{path:path}", upstream: api}}
"""


class Base:
    def __init__(self) -> None:
        self.inherited = 1


class Kind(Base):
    def begin(self) -> None:
        self.begun = True


def test_what_a_class_has_inherits_or_sets_is_there_and_the_rest_is_named() -> None:
    assert missing({Kind: ("begin", "begun", "inherited")}) == []
    assert missing({Kind: ("begin", "_gone"), Base: ("begun",)}) == ["Kind._gone", "Base.begun"]


def test_the_tested_versions_are_those_of_the_constraints() -> None:
    pinned = dict(re.findall(r"^(\S+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert {package: pinned[package] for package in TESTED} == TESTED


def test_an_import_error_is_explained_where_it_is_of_one_of_the_packages() -> None:
    text = explained(ImportError("cannot import name 'X'", name="redis._parsers"))
    assert text is not None
    assert re.search(r"redis \S+ has no such module or name \(cannot import name 'X'\); .*pip install redis==", text)
    assert explained(ImportError("no", name="numpy")) is None


def test_the_protocol_is_refused_on_another_uvicorn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(client_connection.INTERNALS, HttpToolsProtocol, ("_gone",))
    with pytest.raises(UnknownVersion, match=r"uvicorn \S+ has no HttpToolsProtocol._gone; .*: pip install uvicorn=="):
        _ = gateway.edge.GatewayProtocol


@pytest.mark.parametrize("gone", ["HttpToolsProtocol.on_response_complete", "RequestResponseCycle"])
def test_the_gateway_does_not_start_on_another_uvicorn_and_says_what_to_install(tmp_path: Path, gone: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        f"from uvicorn.protocols.http import httptools_impl as i\ndel i.{gone}\n"
    )
    (tmp_path / "gateway.yaml").write_text(SETTINGS)
    ran = subprocess.run(
        [sys.executable, "-m", "gateway", "serve"],
        cwd=tmp_path,
        env=clean_environment({"PYTHONPATH": f"{tmp_path}:{ROOT}"}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr
    assert re.search(rf"uvicorn \S+ has no .*{gone}.*pip install uvicorn=={TESTED['uvicorn']}", ran.stderr), ran.stderr


def test_redis_is_not_used_with_replies_without_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connection.INTERNALS, connection._AsyncHiredisParser, ("_gone",))
    with pytest.raises(UnknownVersion, match=r"redis \S+ has no _AsyncHiredisParser._gone"):
        RedisStore("redis://127.0.0.1:1", prefix="")


async def test_reads_go_by_redis_pys_client_on_another_redis_py(
    valkey: Embedded, redis_store: RedisStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = connection.connect(valkey.url, 5.0)
    make = client.connection_pool.make_connection

    def of_another_version() -> Any:
        made = make()
        connect = made.connect

        async def connected() -> None:
            await connect()
            made._reader = SimpleNamespace(stream=made._reader)

        monkeypatch.setattr(made, "connect", connected)
        return made

    monkeypatch.setattr(client.connection_pool, "make_connection", of_another_version)
    keeper = Keeper(client, 5.0, lambda *_: None, lambda turns: None)
    with caplog.at_level(logging.WARNING, "gateway"):
        assert keeper.pipe is None
        assert keeper._connecting is not None
        await keeper._connecting
        assert keeper.pipe is None  # and it is not tried again
    assert re.search(r"reads from Redis take more time: redis \S+ has no connection of the known kind", caplog.text)
    await keeper.aclose()
    await client.aclose()


async def test_upstreams_are_reached_by_httpx_on_another_aiohttp(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(transport.INTERNALS, aiohttp.TCPConnector, ("_gone",))

    async def upstream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async with served(upstream) as url:
        with caplog.at_level(logging.WARNING, "gateway"):
            app = gateway_of(upstreams={"api": {"url": url, "timeout": "30s"}})
        async with running(app) as client:
            assert (await client.get("/a")).text == "ok"
    assert re.search(r"httpx's own transport.*aiohttp \S+ has no TCPConnector._gone", caplog.text)


def test_addresses_that_must_be_public_are_refused_on_another_aiohttp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(transport.INTERNALS, aiohttp.TCPConnector, ("_gone",))
    with pytest.raises(ConfigError, match=r"upstreams.api.addresses: public requires aiohttp, and aiohttp"):
        gateway_of(upstreams={"api": {"url": "https://api.example.com", "addresses": "public"}})
