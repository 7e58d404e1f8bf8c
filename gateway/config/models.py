"""The configuration of what clients may do: which web pages read the answers, and what anyone may send. Pure.

The configuration of an upstream: what may be set, what it means, what its default is. Pure.

The configuration's models: what may be set, what it means, what its default is.

Those of upstreams, routes, parts and clients stand in `upstream_config`, `route_config`, `part_config` and
`clients_config`, and are imported from here. The documentation's reference is made from them, and a test holds it.
Pure: nothing here reads a file or the environment (`settings` does).
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_address
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from gateway.config.names import no_modes
from gateway.config.part_graph import cross_problems
from gateway.config.route import RouteConfig, refuse
from gateway.config.types import (
    NEVER_CONSTANT,
    Duration,
    Model,
    Networks,
    Size,
    TextList,
    Url,
    check_field_names,
    check_redis_url,
    checked_names,
    is_address,
    is_public,
    split_commas,
)
from gateway.http.target import TRACKING_PARAMETERS

_METHOD = re.compile(r"[!#$%&'+\-.^_`|~0-9A-Za-z]+")
_ORIGIN = re.compile(r"null|[a-z][a-z0-9+.\-]*://[^\s/*?#@,\\A-Z]+")
"""An origin as browsers serialise it (RFC 6454 §6.2)."""


class CorsConfig(Model):
    """Which web pages may read the answers (the Fetch standard's CORS)."""

    allow_origins: TextList = []
    """Origins such as https://app.example.com, or `*` for all."""
    allow_origin_regex: str | None = None
    """A regular expression that an allowed origin matches whole."""
    allow_methods: Annotated[TextList, BeforeValidator(no_modes("allow_methods"))] = ["GET", "HEAD", "OPTIONS"]
    """Methods a page may use."""
    allow_headers: Annotated[TextList, BeforeValidator(no_modes("allow_headers"))] = []
    """Request headers a page may set besides the safelisted ones; `*` for all."""
    allow_credentials: bool = False
    """Whether a page may send cookies and Authorization."""
    expose_headers: Annotated[TextList, BeforeValidator(no_modes("expose_headers"))] = [
        *("Age", "Cache-Status", "Server-Timing", "X-Request-ID", "X-Process-Time")
    ]
    """Response headers a page may read besides the safelisted ones."""
    max_age: Duration = timedelta(minutes=10)
    """How long a browser may keep the answer to a preflight."""

    @model_validator(mode="after")
    def _no_wildcard_with_credentials(self) -> CorsConfig:
        if self.allow_credentials and "*" in self.allow_origins:
            raise ValueError(
                "allow_origins `*` with allow_credentials lets every web page act as your user; list the origins"
            )
        if self.allow_origin_regex is not None:
            try:
                re.compile(self.allow_origin_regex)
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"allow_origin_regex is no regular expression: {error}") from None
        return self

    @field_validator("allow_methods")
    @classmethod
    def _methods_in_capitals(cls, methods: list[str]) -> list[str]:
        for method in methods:
            if not _METHOD.fullmatch(method):
                raise ValueError(f"{method!r} is no method; list them, such as [GET, HEAD, POST]")
            if method != method.upper():
                raise ValueError(f"{method!r} is no method that browsers ask for: write {method.upper()}")
        return methods

    @field_validator("allow_origins")
    @classmethod
    def _as_browsers_write_them(cls, origins: list[str]) -> list[str]:
        for origin in origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"no browser sends the origin {origin!r}: write a scheme and a host in lower case, without a path, "
                    "such as https://app.example.com; for patterns there is allow_origin_regex"
                )
        return origins

    @model_validator(mode="after")
    def _no_pattern_for_all_with_credentials(self) -> CorsConfig:
        pattern = self.allow_origin_regex
        if self.allow_credentials and pattern and re.fullmatch(pattern, "https://any-page.invalid"):
            raise ValueError(
                "allow_origin_regex matches any origin; with allow_credentials every web page acts as your user"
            )
        return self

    @property
    def enabled(self) -> bool:
        return bool(self.allow_origins or self.allow_origin_regex)


class LimitsConfig(Model):
    """What clients may send and hold, in each worker; more is refused, and the connection closed."""

    head_timeout: Duration = timedelta(seconds=8)
    """How long the head of a request may take (408): the first one's from the connection on, another's from its first
    byte."""
    body_timeout: Duration = timedelta(seconds=8)
    """How long a request's body may make no progress, which is 500 bytes a second at least (408)."""
    write_timeout: Duration = timedelta(seconds=8)
    """How long a client may take less than 500 bytes a second of what it is sent; then the connection is cut."""
    keep_alive: Duration = timedelta(seconds=75)
    """How long a connection may lie idle between two requests."""
    request_line: Annotated[Size, Field(ge=64, le=65_536)] = 8 * 1024
    """The longest request line (414)."""
    request_head: Annotated[Size, Field(ge=1024, le=1_048_576)] = 32 * 1024
    """The largest head: request line and headers (431)."""
    request_headers: Annotated[int, Field(ge=1, le=10_000)] = 100
    """The most header fields (431)."""
    connections: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    """Connections at once (503)."""
    connections_per_client: Annotated[int, Field(ge=1, le=1_000_000)] = 2048
    """Connections at once from one address that is no trusted proxy's (503)."""
    requests: Annotated[int, Field(ge=1, le=1_000_000)] = 4096
    """Requests at once that memory does not answer (503)."""
    requests_per_client: Annotated[int, Field(ge=1, le=1_000_000)] = 2048
    """The same, from one address that is no trusted proxy's (503)."""


class UpstreamConfig(Model):
    """An API that the gateway stands in front of."""

    url: Url | None = None
    """Its base: scheme, host, port and prefix. Nothing a client sends can leave it."""
    urls: Annotated[list[Url], BeforeValidator(split_commas)] = []
    """Several bases of the same API, taken in turn; instead of `url`."""
    timeout: Duration = timedelta(seconds=5)
    """The deadline for a whole answer; for a streamed one, until its head and then between two pieces."""
    connect_timeout: Duration = timedelta(seconds=1)
    """The deadline for a connection."""
    max_connections: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Connections, and so requests, at once in each worker; who finds them all taken waits."""
    max_waiting: Annotated[int, Field(ge=0, le=100_000)] = 200
    """How many requests may wait for a connection; the next one, and any that would wait for half of `timeout`, is told
    503 at once. Refreshes behind stale answers never wait."""
    max_connections_without_redis: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Connections at once, in each worker, while Redis is away and each worker fetches for itself. Not set: half of
    `max_connections`."""
    retry_budget: Annotated[float, Field(ge=0, le=1)] = 0.1
    """How many requests may be sent a second time, as a share of all: only idempotent ones, only where nothing was
    received, once. `0` repeats none."""
    breaker_failures: Annotated[int, Field(ge=0, le=1_000_000)] = 20
    """How many requests must fail within 10 s (connections, deadlines, 5xx), being half of all, for a host to be left
    alone; `0` never leaves it alone."""
    breaker_rest: Duration = timedelta(seconds=2)
    """How long a host that failed is left alone, before one request tries it again."""
    stream_timeout: Duration = timedelta(hours=1)
    """The longest that an answer may be streamed; then it is broken off."""
    addresses: Literal["any", "public"] = "any"
    """`public` refuses a host that is, or whose name leads to, an address that is not public (loopback, link-local,
    private)."""
    headers: dict[str, str] = {}
    """Constant request headers, such as an API key; they replace the client's of the same name."""
    max_response_headers: Size = 64 * 1024
    """The most that the head of a response may take; more is a 502."""
    transport: Literal["aiohttp", "httpx"] = "aiohttp"
    """Which httpx transport carries the requests; `aiohttp` is several times faster, and survives cancellation;
    `httpx` makes a new connection for each request."""
    verify: bool = True
    """Whether the certificate of an https upstream is checked."""

    @property
    def bases(self) -> list[str]:
        return self.urls or ([self.url] if self.url else [])

    @property
    def connections_alone(self) -> int:
        given = self.max_connections_without_redis
        return max(1, self.max_connections // 2) if given is None else given

    @field_validator("headers")
    @classmethod
    def _headers(cls, headers: dict[str, str]) -> dict[str, str]:
        names = check_field_names(list(headers))
        if len(set(names)) < len(names):
            raise ValueError("has a header twice, in other case")
        for name, value in headers.items():
            if name.lower().encode("latin-1") in NEVER_CONSTANT:
                raise ValueError(f"{name} is made for each request; it can't be constant")
            if not value.isprintable() or any(ord(char) > 255 for char in value):
                raise ValueError(f"the value of {name} has a character that no header may have")
        return {name.lower(): value for name, value in headers.items()}

    @model_validator(mode="after")
    def _no_inside_address(self) -> UpstreamConfig:
        if self.addresses == "public":
            for base in self.bases:
                host = urlsplit(base).hostname or ""
                if host == "localhost" or (is_address(host) and not is_public(host)):
                    raise ValueError(f"addresses: public, but {host} is no public address")
        return self

    @model_validator(mode="after")
    def _one_of_url_and_urls(self) -> UpstreamConfig:
        if bool(self.url) == bool(self.urls):
            raise ValueError("needs `url` or `urls`, and not both")
        return self


def _off_or_path(value: object) -> object:
    if value is False or value in ("off", "none"):
        return "off"
    if not isinstance(value, str) or not value.startswith("/"):
        raise ValueError("must be a path such as /docs, or off")
    return value.rstrip("/") or "/"


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a whole number")
    return value


PageUrl = Annotated[str, BeforeValidator(_off_or_path)]


RECORD_REST = 256 * 1024
"""Bytes that a record may have beside body and upstream's head: its keys, tags, lifetimes, and headers of ours."""


class Config(Model):
    """All of the gateway's settings."""

    public_url: Url | None = None
    """The URL by which clients know the gateway; upstreams are told its host and scheme."""
    host: str = "127.0.0.1"
    """The address to listen on."""
    port: Annotated[int, BeforeValidator(_no_boolean), Field(ge=0, le=65535)] = 8000
    """The port to listen on; 0 takes a free one."""
    watch: bool = True
    """Whether a change of the configuration's file or of `.env` reloads it, as SIGHUP does."""
    workers: Annotated[int, BeforeValidator(_no_boolean), Field(ge=1, le=128)] = 1
    """Processes that answer; as many as the machine has cores is a good choice. They share one cache, so more than one
    needs a `redis_url` other than `none`."""
    stop_delay: Duration = timedelta(seconds=1)
    """How long after SIGTERM connections are still taken while `/readyz` says 503, so that load balancers turn away
    first."""
    stop_timeout: Duration = timedelta(seconds=10)
    """How long requests in flight may take to end after that; then they are cut off."""
    redis_url: str = "embedded"
    """The shared tier: `embedded` (a Valkey that the gateway starts), `redis://user:password@host:port/db`, `rediss://…`
    (TLS), `unix:///path`, `redis+cluster://host:port,host:port`, `redis+sentinel://host:port,host:port/service/db`, or
    `none` (memory only)."""
    redis_prefix: str = "gw:"
    """What the names of all keys in Redis begin with."""
    redis_secret: SecretStr | None = None
    """With a secret of 16 characters or more, every record in Redis is sealed with it (HMAC-SHA-256), and one that is
    not is a miss: whoever can write to Redis then can plant no answer. The same in all replicas; set it by
    GATEWAY_REDIS_SECRET. Changing it empties the shared tier. Digests of credentials in keys are made with it, too;
    without it, with a random key that lies in Redis."""
    redis_budget: Duration = timedelta(milliseconds=50)
    """What all Redis commands of one request may take together; then the gateway does without."""
    redis_memory: Size = 256 * 1024**2
    """The embedded Valkey's `maxmemory`."""
    memory: Size = 256 * 1024**2
    """The cache in the process, in all: keys, headers and bodies."""
    max_body: Size = 2 * 1024**2
    """The largest body that is stored; larger ones are streamed through."""
    max_request_body: Size = 16 * 1024**2
    """The largest body that a client may send (413)."""
    admin_listen: str = "127.0.0.1:9000"
    """Where metrics and health are served: `host:port`, `unix:/path`, or `none`."""
    compression: Annotated[list[Literal["zstd", "br", "gzip"]], BeforeValidator(split_commas)] = ["zstd", "br", "gzip"]
    """The content codings that stored text is given in, the preferred first: made once for each stored answer of 1 KiB
    and more, on routes with a `ttl` of their own; an empty list for none."""
    drop_query: Annotated[TextList, BeforeValidator(no_modes("drop_query"))] = list(TRACKING_PARAMETERS)
    """Patterns of query parameters that no answer depends on: not forwarded, not part of the key. Not of those that a
    route's `query` lists, and not of requests that pass by the cache."""
    trusted_proxies: Networks = []
    """Networks whose `X-Forwarded-*` is believed, such as 10.0.0.0/8."""
    retry_after: Duration = timedelta(seconds=1)
    """How long a key whose fetch failed is not asked for again while a stale answer can be given; longer where a 429 or
    503 says so by `Retry-After`, up to 10 minutes."""
    overload_lag: Duration = timedelta(milliseconds=50)
    """How late the event loop may be, for 0.3 s on end, before refreshes and then misses are given up (503);
    `0s` gives up none. Hits are always served."""
    warm_start: Annotated[int, Field(ge=0, le=100_000)] = 1000
    """How many of the fleet's hottest responses a worker takes from Redis into its memory as it starts, in small
    batches and up to half of it; 0 for none."""
    purge_blind: Literal["forever"] | Duration = timedelta(seconds=30)
    """How long a worker that is cut off from Redis, and so hears of no purge, trusts its memory: a duration, or
    `forever`."""
    uncacheable_for: Duration = timedelta(seconds=5)
    """How long requests for a key whose answer could not be shared do not wait for each other (hit-for-miss)."""
    upstreams: dict[str, UpstreamConfig] = {}
    """The APIs behind the gateway, by name."""
    routes: dict[str, RouteConfig] = {}
    """What is served, by name."""
    include: TextList = []
    """Routers written in Python, as `module:attribute`, such as shop.routes:router."""
    cors: CorsConfig = CorsConfig()
    """Which web pages may read the answers."""
    limits: LimitsConfig = LimitsConfig()
    """What clients may send and hold."""
    docs: PageUrl = "/docs"
    """The path of the Swagger UI, or `off` for no documentation pages at all."""
    redoc: PageUrl = "/redoc"
    """The path of ReDoc, or `off`."""
    validation_errors: Literal["fastapi", "problem"] = "fastapi"
    """What handlers written in Python answer to a request that does not validate (422): `fastapi`, FastAPI's own body,
    a list of errors under `detail`; `problem`, Problem Details (RFC 9457) with that list under `errors`. The OpenAPI
    document says the same."""
    access_log: bool = True
    """Whether each request is logged as a line of JSON on standard output."""
    log_hits: Annotated[float, Field(ge=0, le=1)] = 1.0
    """The share of hits that are logged, drawn by chance; all else is logged always. Below 1, `gateway ttl advise
    --log` can't count by the log."""

    @property
    def record_secret(self) -> bytes:
        """What records in Redis are sealed with; empty for a checksum alone."""
        return self.redis_secret.get_secret_value().encode() if self.redis_secret is not None else b""

    @property
    def largest_record(self) -> int:
        """The bytes of the largest record in Redis that this configuration makes: its largest body, and what else a
        record holds."""
        bodies = [self.max_body, *(route.max_body for route in self.routes.values() if route.max_body is not None)]
        heads = [upstream.max_response_headers for upstream in self.upstreams.values()]
        return max(bodies) + max(heads, default=0) + RECORD_REST

    @model_validator(mode="after")
    def _parts_are_known(self) -> Config:
        several = frozenset(name for name, upstream in self.upstreams.items() if len(upstream.bases) > 1)
        plain = {name: route.template for name, route in self.routes.items() if not route.parts}
        problems = [
            replace(problem, key=("routes", name, *problem.key))
            for name, route in self.routes.items()
            for problem in cross_problems(route.parts, route.template, frozenset(self.upstreams), several, plain)
        ]
        refuse(problems)
        return self

    @property
    def admin_is_private(self) -> bool:
        """Whether nobody but this machine can reach the admin listener."""
        if self.admin_listen == "none" or self.admin_listen.startswith("unix:"):
            return True
        host = self.admin_listen.rpartition(":")[0].strip("[]")
        try:
            return host == "localhost" or ip_address(host).is_loopback
        except ValueError:
            return False

    @model_validator(mode="after")
    def _workers_share(self) -> Config:
        if self.workers > 1 and self.redis_url == "none":
            raise ValueError(
                f"workers: {self.workers} processes with `redis_url: none` would neither share a cache nor hear of "
                "each other's purges; set redis_url to embedded or to a Redis, or workers to 1"
            )
        return self

    @field_validator("host")
    @classmethod
    def _host(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if host.strip("[]") and port.isdigit() and not is_address(value.strip("[]")):
            raise ValueError(f"must be a host alone: write host: {host.strip('[]')} and port: {port}")
        if "://" in value or "/" in value or any(char.isspace() for char in value):
            raise ValueError("must be a host name or an IP address, such as 127.0.0.1 or 0.0.0.0")
        return value.strip("[]") if is_address(value.strip("[]")) else value

    @field_validator("redis_url")
    @classmethod
    def _redis_url(cls, value: str) -> str:
        if value in ("embedded", "none"):
            return value
        try:
            check_redis_url(value)
        except ValueError as error:
            raise ValueError(f"must be embedded, none, or a Redis: {error}") from None
        return value

    @field_validator("redis_secret")
    @classmethod
    def _redis_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value) < 16:
            raise ValueError("must have 16 characters or more, such as `openssl rand -hex 32` gives")
        return value

    @field_validator("redis_prefix")
    @classmethod
    def _redis_prefix(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9:_.\-]*", value):
            raise ValueError("may have letters, digits and : _ . - only")
        return value

    @field_validator("admin_listen")
    @classmethod
    def _admin_listen(cls, value: str) -> str:
        if value == "none" or value.startswith("unix:/"):
            return value
        host, colon, port = value.rpartition(":")
        if not colon or not host or not port.isdigit() or int(port) > 65535:
            raise ValueError("must be host:port such as 127.0.0.1:9000, unix:/path, or none")
        return value

    @field_validator("upstreams", "routes", mode="before")
    @classmethod
    def _names(cls, value: Any, info: ValidationInfo) -> Any:
        return checked_names(value, info)

    @field_validator("include")
    @classmethod
    def _include(cls, value: list[str]) -> list[str]:
        for place in value:
            if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", place):
                raise ValueError(f"{place!r} must be module:attribute, such as shop.routes:router")
        return value
