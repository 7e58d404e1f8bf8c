"""What is measured, and the bar for each: the table of docs/performance.md."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks import peers, tokens
from benchmarks.load import Pattern
from benchmarks.traffic import path, uncached_path


@dataclass(frozen=True, slots=True)
class Bar:
    """The ratio of the first column to `peer`'s: at least `bound`, or at most where `lower` is better. Where it is a
    `difference`, how much more it is, in the row's unit."""

    peer: str
    bound: float
    ambition: float
    lower: bool = False
    difference: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """`columns` are peers, ours first. `latency` rows are open-loop, at half of each peer's saturation, or at
    half of the second column's for both (`same_rate`). A row of `cost` is about the server's processor time for each
    request. Where a row `stores`, a response to a new key must be a hit after the run. Where it `renews`, each request
    has another of the user's tokens than the one before."""

    key: str
    title: str
    pattern: Pattern
    columns: tuple[str, ...]
    bars: tuple[Bar, ...]
    latency: bool = False
    same_rate: bool = False
    cost: bool = False
    stores: bool = False
    renews: bool = False
    connections: int = 32

    def pattern_of(self, peer: str) -> Pattern:
        """What is asked of `peer`: with a token, where it wants one; a search by POST, where it reads those."""
        if peer == peers.SEARCHED:
            return replace(self.pattern, content=SEARCH)
        if peer not in peers.WITH_TOKENS:
            return self.pattern
        if self.renews:
            return replace(self.pattern, turns=tokens.many())
        return replace(self.pattern, headers=(*self.pattern.headers, tokens.authorization()))


_CACHES = (peers.NGINX, peers.VARNISH, peers.HAPROXY, peers.TRAFFIC_SERVER)
_SERVERS = (peers.GATEWAY, *_CACHES, peers.ENVOY)
_PYTHON = (peers.CACHE2, peers.CACHEX, peers.HISHEL)
_HOT = path("1KiB", 0)
SEARCH = '{"q":"shoes","filters":{"size":[42,43],"colour":"black"}}   '


def rows(*, keys: int = 100_000, entries: int = 1_000_000) -> tuple[Row, ...]:
    """All rows; the Zipf row over so many `keys`, the last one with so many `entries`, a multiple of 1,000."""
    return (
        Row(
            "hit",
            "memory hit, 1 KiB",
            Pattern("hot", _HOT),
            (*_SERVERS, *_PYTHON),
            (
                Bar(peers.NGINX, 1.1, 1.5),
                Bar(peers.VARNISH, 1.3, 2),
                Bar(peers.HAPROXY, 0.9, 1.1),
                Bar(peers.CACHE2, 35, 50),
            ),
        ),
        _body_row("16KiB", "16 KiB"),
        _body_row("256KiB", "256 KiB"),
        Row(
            "https",
            "memory hit, 1 KiB, HTTPS",
            Pattern("hot", _HOT),
            (peers.HTTPS, peers.GATEWAY),
            (Bar(peers.GATEWAY, 0.55, 0.65),),
        ),
        Row(
            "post",
            "memory hit by POST with a search of 60 bytes, 1 KiB",
            Pattern("hot", _HOT),
            (peers.SEARCHED, peers.GATEWAY),
            (Bar(peers.GATEWAY, 0.6, 0.7),),
        ),
        Row(
            "zipf",
            f"memory hit, 1 KiB, Zipf over {keys:,} keys",
            Pattern("zipf", path("1KiB", ""), keys),
            (peers.GATEWAY, *_CACHES),
            (Bar(peers.NGINX, 1.1, 1.5), Bar(peers.VARNISH, 1.2, 1.5)),
        ),
        Row(
            "304",
            "304 answer",
            Pattern("hot", _HOT, headers=('If-None-Match: "1KiB-0"',), status=304),
            # wrk waits for a body after HAProxy's 304, which have a Content-Length.
            tuple(name for name in _SERVERS if name != peers.HAPROXY),
            (Bar(peers.NGINX, 1.1, 1.5),),
        ),
        Row(
            "redis",
            "Redis hit (nothing in memory), 1 KiB, 1,000 keys",
            Pattern("spread", path("1KiB", ""), 1000),
            (peers.ON_REDIS, peers.REDIS_GET),
            (Bar(peers.REDIS_GET, 1.5, 2),),
        ),
        Row(
            "uncached",
            "uncached pass-through, 1 KiB",
            Pattern("unique", uncached_path("")),
            (peers.GATEWAY, peers.HTTPX),
            (Bar(peers.HTTPX, 16, 25),),
        ),
        Row(
            "workers",
            "hit of a @cached handler, through FastAPI, on both cores",
            Pattern("hot", _HOT),
            (peers.TWO_WORKERS, peers.ONE_WORKER),
            (Bar(peers.ONE_WORKER, 1.8, 1.9),),
            connections=64,
        ),
        Row(
            "handlers",
            "hit of a @cached handler, 1 KiB",
            Pattern("hot", _HOT),
            (peers.HANDLER, peers.EDGE_HANDLER, peers.FASTAPI),
            (Bar(peers.EDGE_HANDLER, 0.97, 1), Bar(peers.FASTAPI, 1, 1.5)),
        ),
        Row(
            "handlers-dependency",
            "hit of a @cached handler with a dependency, 1 KiB",
            Pattern("hot", _HOT),
            (peers.DEPENDENT, peers.FASTAPI_DEPENDENT),
            (Bar(peers.FASTAPI_DEPENDENT, 1, 1.5),),
        ),
        Row(
            "handlers-uncached",
            "handler without @cached, 1 KiB",
            Pattern("hot", _HOT),
            (peers.UNCACHED_HANDLER, peers.FASTAPI),
            (Bar(peers.FASTAPI, 0.8, 0.95),),
        ),
        Row(
            "latency",
            "p99 of a hit at half of saturation, open loop",
            Pattern("hot", _HOT),
            (peers.GATEWAY, peers.NGINX),
            (Bar(peers.NGINX, 1.5, 1, lower=True),),
            latency=True,
            same_rate=True,  # beyond some 75,000 a second the generator is late itself
        ),
        Row(
            "advisor",
            "memory hit with the advisor, 1 KiB, Zipf over 1,000 keys",
            Pattern("zipf", path("1KiB", ""), 1000),
            (peers.ADVISED, peers.UNADVISED),
            (Bar(peers.UNADVISED, 0.99, 1),),
        ),
        Row(
            "entries",
            f"p99 of a hit with {entries:,} entries, open loop",
            Pattern("spread", path("64B", ""), 1000, step=entries // 1000),
            (peers.MANY, peers.FEW),
            (Bar(peers.FEW, 1.3, 1.1, lower=True),),
            latency=True,
            same_rate=True,
        ),
        _mixed_row("mixed", "memory only", peers.GATEWAY, Bar(peers.VARNISH, 1, 1.3)),
        _mixed_row("mixed-redis", "with Redis", peers.WITH_REDIS, Bar(peers.VARNISH, 0.7, 1)),
        Row(
            "misses",
            "only misses, each stored, memory only, 1 KiB",
            _MISSES,
            (peers.GATEWAY, *_CACHES),
            (Bar(peers.NGINX, 0.6, 1),),
            stores=True,
        ),
        Row(
            "misses-redis",
            "processor time of a miss with Redis, stored",
            _MISSES,
            (peers.WITH_REDIS, peers.GATEWAY),
            (Bar(peers.GATEWAY, 1.6, 1.3, lower=True),),
            cost=True,
            stores=True,
        ),
        Row(
            "identity",
            "processor time of a memory hit with a known token, 1 KiB",
            Pattern("hot", _HOT),
            (peers.PROTECTED, peers.GATEWAY, peers.ENVOY_JWT_CACHED, peers.ENVOY_JWT, peers.ENVOY),
            (Bar(peers.GATEWAY, 1 / 0.95, 1, lower=True), Bar(peers.ENVOY_JWT_CACHED, 0.5, 0.3, lower=True)),
            cost=True,
        ),
        Row(
            "identity-limit",
            "processor time of a memory hit with a known token and a limit that counts all, 1 KiB",
            Pattern("hot", _HOT),
            (peers.LIMITED, peers.GATEWAY, peers.PROTECTED),
            (Bar(peers.GATEWAY, 1 / 0.92, 1 / 0.95, lower=True),),
            cost=True,
        ),
        Row(
            "identity-first",
            "processor time of a connection and its only hit, with a known token",
            Pattern("hot", _HOT, headers=("Connection: close",)),
            (peers.PROTECTED, peers.GATEWAY, peers.ENVOY_JWT_CACHED, peers.ENVOY),
            (Bar(peers.GATEWAY, 1.3, 1.1, lower=True),),
            cost=True,
        ),
        Row(
            "identity-new",
            "processor time of a memory hit, each with a new token (RS256)",
            Pattern("hot", _HOT),
            (peers.VERIFYING, peers.PROTECTED, peers.GATEWAY, peers.ENVOY_JWT),
            (
                Bar(peers.PROTECTED, 60, 55, lower=True, difference=True),
                Bar(peers.GATEWAY, 60, 55, lower=True, difference=True),
            ),
            cost=True,
            renews=True,
        ),
        Row(
            "identity-new-app",
            "processor time of a hit that the app answers, each with a new token (RS256)",
            # By this field the edge leaves a request to the app, whatever its token.
            Pattern("hot", _HOT, headers=("Cache-Control: max-age=86400",)),
            (peers.VERIFYING, peers.PROTECTED),
            (Bar(peers.PROTECTED, 60, 55, lower=True, difference=True),),
            cost=True,
            renews=True,
        ),
    )


_MISSES = Pattern("unique", path("1KiB", ""))


def _mixed_row(key: str, title: str, ours: str, bar: Bar) -> Row:
    return Row(
        key,
        f"nine of ten hit 1,000 keys, each tenth is a new key and stored, {title}",
        Pattern("mixed", path("1KiB", ""), 1000),
        (ours, *_CACHES),
        (bar,),
        stores=True,
    )


def _body_row(size: str, title: str) -> Row:
    return Row(
        size,
        f"memory hit, {title}",
        Pattern("hot", path(size, 0)),
        _SERVERS,
        (Bar(peers.VARNISH, 0.9, 1.1),),
    )
