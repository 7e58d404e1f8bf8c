"""Redis as it is run: one server, with TLS or on a unix socket, behind Sentinel, or a cluster.

Only how to connect stands here. Whatever the topology, a client never tries again by itself, and no command takes
longer than its timeout: redis-py's own ten retries would cost 8 s a request.
"""

from __future__ import annotations

from typing import Any

import redis.asyncio as redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from .redis_urls import (
    TRUE,
    credentials_of,
    database_of,
    hosts_of,
    options_of,
    split_redis_url,
    without_ignored_options,
)
from .redis_values import BoundedParser

MOST_CONNECTIONS = 64
"""Of one client. What goes on at once is bounded elsewhere (`shared`), to less."""


def connect(url: str, timeout: float) -> Any:
    """A client for `url` whose commands take at most `timeout` seconds each; `is_cluster` tells what it is."""
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
    return redis.Redis.from_url(
        without_ignored_options(url), max_connections=MOST_CONNECTIONS, parser_class=BoundedParser, **settings
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
    return sentinel.master_for(service, **master)


def _typed(options: dict[str, str]) -> dict[str, Any]:
    """Options as redis-py takes them as arguments; from a URL of one server it reads them itself."""
    numbers = ("socket_timeout", "socket_connect_timeout")
    truths = ("socket_keepalive", "ssl_check_hostname")
    return {
        name: float(text) if name in numbers else text.lower() in TRUE if name in truths else text
        for name, text in options.items()
    }


def _bounded(cluster: RedisCluster) -> RedisCluster:
    """Its nodes' connections read by our parser, which a cluster takes as no argument."""
    for settings in (cluster.connection_kwargs, *(node.connection_kwargs for node in cluster.startup_nodes)):
        settings["parser_class"] = BoundedParser
    return cluster


def is_cluster(client: Any) -> bool:
    return isinstance(client, RedisCluster)
