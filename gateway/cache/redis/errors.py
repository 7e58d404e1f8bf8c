"""Why Redis is not used: the class of an error, what to do about it, and one log line for each change of state."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from gateway.observability.log import ONCE, at_most_every, state

logger = logging.getLogger("gateway")
POLICY_SECONDS = 1.0

NETWORK: tuple[type[Exception], ...] = (RedisError, RedisClusterException, OSError, TimeoutError)
MALFORMED: tuple[type[Exception], ...] = (RuntimeError, LookupError, ValueError, TypeError, AttributeError)
UNANSWERED: tuple[type[Exception], ...] = (*NETWORK, *MALFORMED)
"""All errors of a command. Those in `MALFORMED` are raised by redis-py, and by us, for a malformed reply, such as one
with a flipped bit; or they are bugs. They don't mean that Redis is unavailable, and each is logged (`is_unanswered`,
`unanswered`). A cluster's errors (RedisClusterException) are not RedisErrors in redis-py 8.1."""

REPORT_EVERY = 60.0
"""Seconds between two log lines about errors of one type."""

_ADVICE = {
    "address": "check the host in `redis_url`",
    "refused": "check host and port in `redis_url`, and that Redis runs",
    "timeout": "check the network; rediss:// is for a port with TLS, redis:// for one without",
    "password": "check user and password in `redis_url`",
    "permission": "give the user the rights that docs/redis.md lists",
    "certificate": "name the CA by ssl_ca_certs=/path/to/ca.pem in `redis_url`",
    "tls": "rediss:// is for a port with TLS, redis:// for one without",
    "file": "check the paths in `redis_url`",
    "loading": "it will be used once its data is loaded",
    "sentinel": "check the Sentinels' addresses and the service's name in `redis_url`",
    "cluster": "check the nodes in `redis_url`; redis:// is for a single server",
    "closed": "check that Redis runs, its limit of clients, and whether its port uses TLS (rediss://)",
}


_PLAIN = {
    "password": "wrong or missing user or password (authentication failed)",
    "timeout": "timed out",
    "refused": "connection refused",
}


@dataclass(frozen=True, slots=True)
class Reason:
    """`kind` is one word of a closed set, for `/readyz`; `text` is for the log."""

    kind: str
    text: str

    @property
    def advice(self) -> str:
        return _ADVICE.get(self.kind, "check `redis_url`")


def reason_of(error: BaseException) -> Reason:
    """The reason of an error; that of its cause if redis-py wraps one."""
    chain = list(_chain(error))
    kind = next((kind for kind in map(_kind, chain) if kind is not None), None) or _kind_by_text(error) or "error"
    if isinstance(error, MasterNotFoundError):
        return Reason(kind, str(error).partition(" : ")[0])  # what follows is the connection pools
    if kind in _PLAIN:
        return Reason(kind, _PLAIN[kind])
    return Reason(kind, " ".join(str(error).split())[:300] or type(error).__name__)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _kind_by_text(error: BaseException) -> str | None:
    """That of an error of redis-py without its cause, by the system's error in its text."""
    number = _CONNECTING.match(str(error)) if isinstance(error, RedisConnectionError) else None
    return _kind(OSError(int(number[1]), "")) if number is not None and "[SSL" not in str(error) else None


def _kind(error: BaseException) -> str | None:
    for types, kind in _KINDS:
        if isinstance(error, types):
            return kind
    if isinstance(error, ResponseError):
        text = str(error).upper()
        return next((kind for word, kind in _WORDS if word in text), "error")
    return "malformed" if isinstance(error, MALFORMED) and not _is_of_the_network(error) else None


_CONNECTING = re.compile(r"Error (\d+) connecting to ")
"""How redis-py begins the text of a connection that failed, with the number of the system's error."""
_WORDS = (
    ("NOAUTH", "password"), ("WRONGPASS", "password"), ("NOPERM", "permission"), ("CLUSTER", "cluster"),
    ("LOADING", "loading"), ("MASTERDOWN", "loading"),
)  # fmt: skip
_KINDS: tuple[tuple[type[BaseException], str], ...] = (
    (AuthenticationError, "password"),
    (NoPermissionError, "permission"),
    (BusyLoadingError, "loading"),
    (MasterNotFoundError, "sentinel"),
    (ssl.SSLCertVerificationError, "certificate"),
    (ssl.SSLError, "tls"),
    (socket.gaierror, "address"),
    (ConnectionRefusedError, "refused"),
    (FileNotFoundError, "file"),
    (PermissionError, "file"),
    (TimeoutError, "timeout"),
    (ConnectionResetError, "closed"),
    (BrokenPipeError, "closed"),
)


def _is_of_the_network(error: BaseException) -> bool:
    # uvloop's, where redis-py writes to a connection that was reset a moment ago (uvloop 0.23, redis-py 8.1).
    return isinstance(error, NETWORK) or (isinstance(error, RuntimeError) and "clos" in str(error))


_reported: dict[tuple[type[BaseException], str], float] = {}


def is_unanswered(error: BaseException) -> bool:
    """Whether the error means that Redis did not respond. Any other is logged with its traceback, at most once a
    minute."""
    if _is_of_the_network(error):
        return True
    key, now = (type(error), str(error)[:100]), time.monotonic()
    if now - _reported.get(key, float("-inf")) >= REPORT_EVERY:
        if len(_reported) > 100:
            _reported.clear()
        _reported[key] = now
        extra = at_most_every(REPORT_EVERY, f"Redis {key}")
        logger.error("a reply of Redis could not be used: %r", error, exc_info=error, extra=extra)
    return False


class unanswered:  # noqa: N801 - used as contextlib.suppress is
    """Suppresses a command's error if Redis did not respond, and logs any other."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, UNANSWERED):
            return False
        is_unanswered(error)
        return True


class RedisState:
    """Logs each change between used and not used once. `place` is the URL, without credentials."""

    def __init__(self, place: str) -> None:
        self.reason: Reason | None = None
        self._place = place
        self._logged: set[str] = set()
        self._known = False
        self._slow_at = float("-inf")

    @property
    def why(self) -> str | None:
        return f"{self.reason.text.rstrip('.')}; {self.reason.advice}" if self.reason is not None else None

    def away(self, error: BaseException) -> None:
        """It is not used, for this reason; each kind of reason is logged once until it is used again."""
        self.reason = reason_of(error)
        self._known = True
        if self.reason.kind not in self._logged:
            self._logged.add(self.reason.kind)
            logger.warning(
                "Redis at %s is not used: %s; %s. Responses are cached in memory only until then.",
                self._place,
                self.reason.text.rstrip("."),
                self.reason.advice,
                extra=state(self._place, self.reason.kind),
            )

    def here(self) -> None:
        """It is used."""
        if self._logged:
            logger.info("Redis at %s is used again", self._place, extra=state(self._place))
        elif not self._known:
            logger.debug("Redis at %s is used", self._place)  # the start message says so
        self._known = True
        self.reason = None
        self._logged.clear()

    def slow(self, budget: float) -> None:
        """It answers, but not within `budget` seconds."""
        now = time.monotonic()
        if now - self._slow_at >= REPORT_EVERY:
            self._slow_at = now
            logger.warning(
                "Redis at %s timed out several times in a row (%d ms); see `redis_budget`",
                self._place,
                round(budget * 1000),
                extra=at_most_every(REPORT_EVERY, f"slow {self._place}"),
            )


def complaint_about(policy: str, maxmemory: int) -> tuple[int, str] | None:
    """The problem with Redis's `maxmemory-policy`, and its log level; None if there is none."""
    if not policy or policy == "noeviction" or policy.startswith("volatile-"):
        return None
    advice = "set it to noeviction or one of volatile-…, as by CONFIG SET maxmemory-policy volatile-lru"
    if not maxmemory:
        return logging.WARNING, f"Redis's maxmemory-policy is {policy}, without a maxmemory; {advice}"
    return logging.ERROR, f"Redis's maxmemory-policy is {policy}: it may evict purge records; {advice}"


async def complain_about_policy(client: Any) -> None:
    """Log if Redis may evict keys that never expire: the purge stream and the workers' names."""
    with unanswered():  # a user without the permission to read it
        async with asyncio.timeout(POLICY_SECONDS):
            found = await client.info("memory")
        nodes = _nodes(found, "maxmemory")
        policies = [(str(each.get("maxmemory_policy", "")), int(each.get("maxmemory", 0))) for each in nodes]
        for complaint in filter(None, (complaint_about(*each) for each in policies)):
            logger.log(*complaint, extra=ONCE)


async def risks_of_loss(client: Any) -> list[str]:
    """Why this Redis may lose keys without an expiry, such as API keys: what is wrong, and what to do. Raises what
    UNANSWERED lists."""
    async with asyncio.timeout(POLICY_SECONDS):
        memory, saved = await client.info("memory"), await client.info("persistence")
        found = [said for node in _nodes(memory, "maxmemory") if (said := _evicts(node)) is not None]
        if all(int(node.get("aof_enabled", 0)) for node in _nodes(saved, "aof_enabled")):
            return found
        try:
            snapshots = (await client.config_get("save")).get("save")
        except ResponseError:  # a user without the permission to read it
            return [*found, "appendonly is off, and whether it saves snapshots can't be read: see to it that it does"]
    return found if snapshots else [*found, "it writes nothing to disk: set appendonly yes"]


def _nodes(found: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """What each node says; a single server is one."""
    return [found] if name in found else [each for each in found.values() if isinstance(each, dict)]


def _evicts(memory: dict[str, Any]) -> str | None:
    policy = str(memory.get("maxmemory_policy", ""))
    if complaint_about(policy, 1) is None:
        return None
    return f"its maxmemory-policy is {policy}, which may evict them: set noeviction or one of volatile-…"
