"""redis_reasons: why Redis is not used is logged once at each change, and no defect counts as Redis being away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import redis.asyncio as redis
from redis.exceptions import NoPermissionError

from gateway import create_app
from gateway.cache.redis.errors import complaint_about, reason_of, risks_of_loss, unanswered
from gateway.cache.redis.store import RedisStore
from gateway.config.loader import load
from gateway.server.embedded_redis import Embedded
from tests.support.gateways import contact
from tests.support.processes import Valkey, free_port


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "Redis at" in record.getMessage()]


async def away(url: str) -> RedisStore:
    """A store that was started, and has looked for Redis a few times since. On a loaded machine a connection with TLS
    takes longer than the default budget, which would then be the reason."""
    store = RedisStore(url, prefix=f"{uuid4().hex}:", budget=10.0)
    await store.start()
    for _ in range(3):
        await store._ping()
        store.state.away(store._reason)
    await store.aclose()
    return store


@contextlib.asynccontextmanager
async def listening(context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A port on which connections are closed at once."""

    async def closed(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(closed, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_a_port_where_nobody_listens_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gateway"):
        store = await away(f"redis://user:hidden@127.0.0.1:{free_port()}/0")
    (line,) = told(caplog)
    assert "connection refused" in line
    assert "hidden" not in line
    assert store.reason == "refused"


@pytest.mark.parametrize("user", ["", ":wrong@"])
async def test_a_wrong_or_missing_password_is_the_reason(
    user: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    valkey = Valkey(tmp_path, "--requirepass", "right", unix=False)
    valkey.start()
    try:
        for scheme in ("redis", "redis+cluster"):
            caplog.clear()
            with caplog.at_level(logging.INFO, "gateway"):
                store = await away(f"{scheme}://{user}127.0.0.1:{valkey.port}")
            (line,) = told(caplog)
            assert "password" in line
            assert "wrong@" not in line
            assert store.reason == "password"
    finally:
        valkey.end()


def self_signed(tmp_path: Path) -> ssl.SSLContext:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    where = ["-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost"]
    subprocess.run([*made, *where], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


async def test_a_certificate_that_is_not_trusted_is_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(self_signed(tmp_path)) as port:
        for scheme in ("rediss", "rediss+cluster"):
            caplog.clear()
            with caplog.at_level(logging.INFO, "gateway"):
                store = await away(f"{scheme}://127.0.0.1:{port}")
            assert store.reason == "certificate"
            assert "ssl_ca_certs" in told(caplog)[0]


async def test_readyz_names_the_reason_and_each_change_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    valkey = Valkey(tmp_path)
    app = create_app({"redis_url": valkey.url, "access_log": False})
    transport = httpx.ASGITransport(app)
    with caplog.at_level(logging.INFO, "gateway"):
        await app.start()
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway.test") as client:
                ready = (await client.get("/readyz")).json()
                assert (ready["redis"], ready["redis_reason"]) == ("away", "file")
                valkey.start()
                async with asyncio.timeout(10):
                    while not app.shared.available:
                        await asyncio.sleep(0.01)
                ready = (await client.get("/readyz")).json()
                assert (ready["redis"], "redis_reason" in ready) == ("available", False)
        finally:
            await app.stop()
            valkey.end()
    first, second = (line for line in told(caplog) if "file" not in line or "not used" in line)
    assert "is not used" in first
    assert second.endswith("is used again")


async def test_what_is_no_failure_to_answer_does_not_count_as_one(
    valkey: Embedded, caplog: pytest.LogCaptureFixture
) -> None:
    store = RedisStore(valkey.url, prefix=f"{uuid4().hex}:")

    async def broken() -> None:
        raise TypeError("a defect of this test")

    for _ in range(10):
        assert await store._guarded(broken()) is None
    assert store.available
    assert [record.exc_info is not None for record in caplog.records if "could not be used" in record.message] == [True]
    await store.aclose()


def test_a_defect_is_logged_where_errors_of_redis_are_suppressed(caplog: pytest.LogCaptureFixture) -> None:
    with unanswered():
        raise KeyError("another defect of this test")
    with unanswered():
        raise ConnectionResetError("not told here")
    assert ["another defect" in record.message for record in caplog.records] == [True]
    with pytest.raises(ZeroDivisionError), unanswered():
        _ = 1 / 0


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TimeoutError(), "timeout"),
        (redis.ConnectionError("Error 111 connecting to cache:6379. Connection refused."), "refused"),
        (redis.ConnectionError("Error 2 connecting to /run/r.sock. No such file or directory."), "file"),
        (redis.ConnectionError("Error 22 connecting to cache:6379. Invalid argument."), "error"),
        (redis.ConnectionError("Error 1 connecting to cache:6379. [SSL: WRONG_VERSION_NUMBER] (_ssl.c:1)."), "error"),
        (redis.ConnectionError("Connection closed by server."), "error"),
        (RuntimeError("unable to perform operation; the handler is closed"), "error"),
        (RuntimeError("dictionary changed size during iteration"), "malformed"),
        (ValueError("x"), "malformed"),
    ],
)
def test_an_error_has_a_reason_of_one_word(error: Exception, kind: str) -> None:
    assert reason_of(error).kind == kind


def test_check_warns_of_what_can_be_seen_without_redis(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("redis_url: rediss://cache?ssl_ca_certs=/nowhere/ca.pem&timeout=1\n")
    unknown, file = load(path, environ={}, dotenv=None).warnings
    assert "line 1: redis_url: the option timeout is unknown" in unknown
    assert "ssl_ca_certs=/nowhere/ca.pem can't be read" in file


@pytest.mark.parametrize(
    "policy", ["noeviction", "volatile-lru", "volatile-lfu", "volatile-ttl", "volatile-random", ""]
)
def test_a_policy_that_keeps_what_does_not_expire_is_well(policy: str) -> None:
    assert complaint_about(policy, 1024) is None


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random"])
@pytest.mark.parametrize(("maxmemory", "level"), [(0, logging.WARNING), (1024, logging.ERROR)])
def test_a_policy_that_evicts_anything_is_complained_about(policy: str, maxmemory: int, level: int) -> None:
    complaint = complaint_about(policy, maxmemory)
    assert complaint is not None
    assert complaint[0] == level
    assert policy in complaint[1]
    assert "volatile-lru" in complaint[1]


async def test_the_policy_is_looked_at_when_the_gateway_starts(
    redis_store: RedisStore, valkey: Embedded, caplog: pytest.LogCaptureFixture
) -> None:
    await contact(redis_store)
    assert caplog.records == []
    await redis_store._client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        await contact(redis_store)
    finally:
        await redis_store._client.config_set("maxmemory-policy", "volatile-lru")
    assert [record.levelname for record in caplog.records] == ["ERROR"]


# --- keys without an expiry ----------------------------------------------------------------------------------


class Server:
    """What a Redis says of itself."""

    def __init__(self, policy: str = "noeviction", aof: int = 1, save: str | None = "") -> None:
        self.policy, self.aof, self.save = policy, aof, save

    async def info(self, section: str) -> dict[str, Any]:
        memory = {"maxmemory": 0, "maxmemory_policy": self.policy}
        return memory if section == "memory" else {"aof_enabled": self.aof}

    async def config_get(self, name: str) -> dict[str, str]:
        if self.save is None:
            raise NoPermissionError("NOPERM")
        return {name: self.save}


@pytest.mark.parametrize(
    ("server", "said"),
    [
        (Server(), []),
        (Server("volatile-lru"), []),
        (Server(aof=0, save="3600 1"), []),
        (Server(aof=0), ["writes nothing to disk"]),
        (Server(aof=0, save=None), ["can't be read"]),
        (Server("allkeys-lru"), ["may evict them"]),
        (Server("allkeys-lru", aof=0), ["may evict them", "writes nothing to disk"]),
    ],
)
async def test_what_may_lose_keys_that_never_expire_is_said_with_what_to_do(server: Server, said: list[str]) -> None:
    found = await risks_of_loss(server)
    assert len(found) == len(said)
    assert all(part in text for part, text in zip(said, found, strict=True))


async def test_a_real_server_that_writes_nothing_is_told_apart(valkey: Embedded) -> None:
    async with redis.Redis.from_url(valkey.url) as client:
        assert await risks_of_loss(client) == ["it writes nothing to disk: set appendonly yes"]
