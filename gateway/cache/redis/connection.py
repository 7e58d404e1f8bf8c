"""Connections to Redis: one server, Sentinel or a cluster; bounded replies, and a timeout for each batch.

Others with write access to Redis can store 512 MB under a key. So a value is read by `GETRANGE`, up to one byte more
than the largest record, which reveals a larger one; other replies are bounded by their connection, which is closed if
one exceeds `MOST_REPLY`. Two `GETRANGE` cost 0.5 µs more than one `MGET` of both names, here and at Redis each (32
reads in one round trip; unix socket, uvloop).

A client never retries by itself, and no command takes longer than its timeout: redis-py's own ten retries would cost 8
s per request. `Deadline` differs from `asyncio.timeout` after the event loop was blocked: it lets the loop read once
more before it times out, so that a pause of this process doesn't count as a failure of Redis.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import hiredis
import redis.asyncio as redis
from redis._parsers import _AsyncHiredisParser
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import RedisSSLContext, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool, SentinelManagedSSLConnection
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.maint_notifications import MaintNotificationsConfig

from gateway.config.types import (
    TRUE,
    credentials_of,
    database_of,
    hosts_of,
    options_of,
    split_redis_url,
    without_ignored_options,
)
from gateway.internals import require

Reply = list[bytes | None] | None
"""The values, or None where Redis did not answer in time, or not with values."""
Command = tuple[str | bytes | int, ...]
"""A command's name and arguments."""
LARGEST = 16 * 1024 * 1024
"""Bytes of a record, unless the configuration's `max_body` makes larger ones (`Config.largest_record`)."""
MOST_REPLY = 64 * 1024 * 1024
"""Maximum size of a reply on redis-py's connections: twice that of a thousand purges, or two thousand deliveries."""
_BAD_TYPE = "WRONGTYPE"
_TEXTS = frozenset((bytes,))


def reading(names: Sequence[str], largest: int) -> bytes:
    """The commands that read the values of `names`, at most `largest` bytes and one more of each."""
    end = b"%d" % largest
    tail = b"$1\r\n0\r\n$%d\r\n%b\r\n" % (len(end), end)
    raw = [name.encode() for name in names]
    return b"".join([b"*4\r\n$8\r\nGETRANGE\r\n$%d\r\n%b\r\n%b" % (len(name), name, tail) for name in raw])


@lru_cache(maxsize=256)
def milliseconds(seconds: float) -> int:
    """A lifetime as commands take it; there are few different ones."""
    return max(1, int(seconds * 1000))


def marking(mark: bytes) -> bytes:
    """The command whose reply is `mark`: replies belong to commands only by their order, and so it shows where one of
    those before it is missing or too many."""
    return b"*2\r\n$4\r\nPING\r\n$%d\r\n%b\r\n" % (len(mark), mark)


def values_of(replies: object, number: int) -> Reply:
    """The values that replies to so many `GETRANGE` hold, None for each that is empty, as one that does not exist is,
    or no string; None in all where one is an error, or no value, or their number is another."""
    if not isinstance(replies, list) or len(replies) != number:
        return None
    if _TEXTS.issuperset(map(type, replies)):
        return [reply or None for reply in replies]
    values: list[bytes | None] = []
    for reply in replies:
        if isinstance(reply, bytes):
            values.append(reply or None)
        elif _is_error(reply) and not is_refusal(reply):
            values.append(None)
        else:
            return None
    return values


def any_refusal(replies: Sequence[object]) -> bool:
    """Whether one of the replies on a Pipe is a refusal; most times none is even an error."""
    return hiredis.ReplyError in map(type, replies) and any(map(is_refusal, replies))


def is_refusal(reply: object) -> bool:
    """Whether a reply is an error other than that a key has another type, which anyone who writes there can cause."""
    return _is_error(reply) and _BAD_TYPE not in str(reply)


def _is_error(reply: object) -> bool:
    return isinstance(reply, hiredis.ReplyError | RedisError)


class BoundedParser(_AsyncHiredisParser):
    """redis-py's, which ends a connection on which one reply grows beyond `MOST_REPLY` bytes."""

    most = MOST_REPLY
    _pending = 0

    async def read_from_socket(self) -> bool:
        assert self._stream is not None
        assert self._reader is not None
        data = await self._stream.read(self._read_size)
        if not data:
            raise RedisConnectionError("Redis has closed the connection")
        self._pending += len(data)
        if self._pending > self.most:
            raise RedisConnectionError(f"a reply of more than {self.most} bytes")
        self._reader.feed(data)
        return True

    async def read_response(self, disable_decoding: bool = False, push_request: bool = False) -> Any:
        self._pending = 0
        return await super().read_response(disable_decoding, push_request)


class SharedTls(SSLConnection):
    """A connection by TLS that has its context from others with the same settings: reading the list of authorities
    takes 45 ms, for which the event loop stands still."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.ssl_context = _shared(self.ssl_context)


class SharedSentinelTls(SentinelManagedSSLConnection):
    """The same to a master that Sentinels name."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)  # type: ignore[no-untyped-call]
        self.ssl_context = _shared(self.ssl_context)


_contexts: dict[tuple[object, ...], RedisSSLContext] = {}
_MOST_CONTEXTS = 32


def _shared(own: RedisSSLContext) -> RedisSSLContext:
    """The context that was made first with these settings and these files."""
    files = (own.certfile, own.keyfile, own.ca_certs, own.ca_path)
    settings = [getattr(own, name) for name in RedisSSLContext.__slots__ if name != "context"]
    key = (*map(str, settings), *map(_changed, files))
    if len(_contexts) >= _MOST_CONTEXTS and key not in _contexts:
        _contexts.clear()
    return _contexts.setdefault(key, own)


def _changed(file: str | None) -> int:
    """When a file was changed last (nanoseconds); 0 where there is none, which the context then says."""
    try:
        return Path(file).stat().st_mtime_ns if file is not None else 0
    except OSError:
        return 0


def _with_shared_tls(client: Any) -> Any:
    """A client, or a Sentinel's, whose further connections are those above."""
    pool = client.connection_pool
    shared = {SSLConnection: SharedTls, SentinelManagedSSLConnection: SharedSentinelTls}
    pool.connection_class = shared.get(pool.connection_class, pool.connection_class)
    return client


MOST_CONNECTIONS = 64
"""Of one client. Concurrency is bounded elsewhere (`store`), at less."""


INTERNALS: dict[type, tuple[str, ...]] = {
    _AsyncHiredisParser: ("_stream", "_reader", "_read_size", "read_from_socket", "read_response"),
    redis.ConnectionPool: ("connection_class",),
    SSLConnection: ("ssl_context",),
    RedisSSLContext: ("ca_certs", "ca_path", "certfile", "context", "get", "keyfile"),
}
"""What is used of redis-py beyond its documentation: by `BoundedParser`, and to share contexts of TLS."""


def connect(url: str, timeout: float) -> Any:
    """A client for `url` whose commands take at most `timeout` seconds each; `is_cluster` is its kind. Raises
    UnknownVersion where redis-py's replies could not be bounded."""
    require("redis", INTERNALS)
    scheme = split_redis_url(url).scheme
    settings: dict[str, Any] = {
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "health_check_interval": 0,
        "protocol": 3,
        "driver_info": None,  # its name and version for CLIENT LIST would cost each new connection a round trip
        # With them, redis-py takes a pooled connection that Redis has closed for an open one, and the command fails.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    if scheme.endswith("+cluster"):
        nodes = [ClusterNode(host, port) for host, port in hosts_of(url)]
        given: dict[str, Any] = {**credentials_of(url), **settings, **_typed(options_of(url))}
        return _bounded(RedisCluster(startup_nodes=nodes, ssl=scheme.startswith("rediss"), **given))
    if scheme.endswith("+sentinel"):
        return _behind_sentinel(url, settings)
    url = without_ignored_options(url)
    return _with_shared_tls(
        redis.Redis.from_url(url, max_connections=MOST_CONNECTIONS, parser_class=BoundedParser, **settings)
    )


def _behind_sentinel(url: str, settings: dict[str, Any]) -> Any:
    """The master of a service, found again by its connections when it changes.

    User and password are the servers'; Sentinel's own go into the query (`sentinel_username`, `sentinel_password`).
    """
    parts = split_redis_url(url)
    options = options_of(url)
    own: dict[str, Any] = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    tls: dict[str, Any] = {"ssl": True} if parts.scheme.startswith("rediss") else {}
    tls |= _typed(options)
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        hosts_of(url), sentinel_kwargs={**settings, **own, **tls}, parser_class=BoundedParser, **settings
    )
    service = parts.path.strip("/").split("/")[0]
    master: dict[str, Any] = {"db": database_of(url), **credentials_of(url), **tls}
    for each in sentinel.sentinels:
        _with_shared_tls(each)
    return _with_shared_tls(sentinel.master_for(service, connection_pool_class=SentinelPool, **master))


class SentinelPool(SentinelConnectionPool):
    """redis-py's, which closes the connections to the Sentinels, too."""

    async def aclose(self) -> None:
        await super().aclose()
        for sentinel in self.sentinel_manager.sentinels:
            await sentinel.aclose()


def _typed(options: dict[str, str]) -> dict[str, Any]:
    """Options as redis-py takes them as arguments; from a URL of one server it reads them itself."""
    numbers = ("socket_timeout", "socket_connect_timeout")
    truths = ("socket_keepalive", "ssl_check_hostname")
    return {
        name: float(text) if name in numbers else text.lower() in TRUE if name in truths else text
        for name, text in options.items()
    }


def _bounded(cluster: RedisCluster) -> RedisCluster:
    """Its nodes' connections read by our parser, and with shared contexts: a cluster takes neither as an argument."""
    for settings in (cluster.connection_kwargs, *(node.connection_kwargs for node in cluster.startup_nodes)):
        settings["parser_class"] = BoundedParser
    if cluster.connection_kwargs.get("connection_class") is SSLConnection:
        cluster.connection_kwargs["connection_class"] = SharedTls
        for node in cluster.startup_nodes:
            node.connection_class = SharedTls
    return cluster


def is_cluster(client: Any) -> bool:
    return isinstance(client, RedisCluster)


def pipeline(client: Any, commands: Iterable[Command]) -> Any:
    """One round trip; in a cluster one a node."""
    batch = client.pipeline() if is_cluster(client) else client.pipeline(transaction=False)
    for command in commands:
        batch.execute_command(*command)
    return batch


async def by_client(client: Any, commands: Iterable[Command]) -> list[Any]:
    """The replies to commands; raises the first refusal."""
    replies: list[Any] = await pipeline(client, commands).execute(raise_on_error=False)
    for reply in filter(is_refusal, replies):
        raise reply
    return replies


async def values_by_client(client: Any, commands: Sequence[Command]) -> list[bytes | None]:
    """The values that so many `GETRANGE` read; raises RedisError if one reply is none."""
    values = values_of(await pipeline(client, commands).execute(raise_on_error=False), len(commands))
    if values is None:
        raise RedisError("Redis did not answer with values")
    return values


async def time_of(client: Any, key: str) -> float:
    """The time of the server that holds `key`, in seconds since 1970: in a cluster each node has its own."""
    seconds, microseconds = await client.eval("return redis.call('TIME')", 1, key)
    return float(seconds) + float(microseconds) / 1e6


LATE = 0.005
"""Seconds by which a timer comes late where the loop stood still."""
MORE = 0.01
"""Seconds that are given then, once."""


class Deadline:
    """An async context manager; raises TimeoutError if its body takes longer than `seconds`."""

    __slots__ = ("_due", "_handle", "_loop", "_seconds", "_timeout")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def __aenter__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(None)
        await self._timeout.__aenter__()
        self._due = self._loop.time() + self._seconds
        self._handle = self._loop.call_at(self._due, self._comes)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.cancel()
        await self._timeout.__aexit__(kind, error, trace)

    def _comes(self) -> None:
        now = self._loop.time()
        if now - self._due > LATE:
            self._handle = self._loop.call_at(now + MORE, self._ends)
        else:
            self._ends()

    def _ends(self) -> None:
        self._timeout.reschedule(self._loop.time())
