"""The configuration's models: settings, meanings, defaults.

Upstreams, routes and parts are in `config.upstream`, `config.route` and `config.part`. The reference page in the
documentation is generated from the models, and a test compares them. Pure: nothing here reads a file or the
environment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
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

from gateway.config.admin import AdminIdentityConfig, AdminTokenConfig
from gateway.config.field_changes import HeadersConfig
from gateway.config.identity import IssuerConfig, needs_of_issuers
from gateway.config.names import no_modes
from gateway.config.part_graph import PartProblem, cross_problems
from gateway.config.part_identity import admin_problems, identity_problems, issuer_problems
from gateway.config.rate_limits import RateLimitConfig, rate_limit_problems
from gateway.config.route import RouteConfig, refuse
from gateway.config.types import (
    Duration,
    Model,
    Networks,
    Size,
    TextList,
    Url,
    check_redis_url,
    checked_names,
    is_address,
    show_duration,
    show_size,
    split_commas,
)
from gateway.config.upstream import UpstreamConfig
from gateway.http.forwarding import normalised_prefix
from gateway.http.target import TRACKING_PARAMETERS

_METHOD = re.compile(r"[!#$%&'+\-.^_`|~0-9A-Za-z]+")
_ORIGIN = re.compile(r"null|[a-z][a-z0-9+.\-]*://[^\s/*?#@,\\A-Z]+")
"""An origin as browsers serialise it (RFC 6454 §6.2)."""


class CorsConfig(Model):
    """Which web pages may read responses (CORS, Fetch standard)."""

    allow_origins: TextList = []
    """Allowed origins, such as https://app.example.com; `*` for all."""
    allow_origin_regex: str | None = None
    """A regular expression that must match the whole origin."""
    allow_methods: Annotated[TextList, BeforeValidator(no_modes("allow_methods"))] = ["GET", "HEAD", "OPTIONS"]
    """Allowed methods. By default those that routes read with a body (QUERY, `reads`) are allowed as well."""
    allow_headers: Annotated[TextList, BeforeValidator(no_modes("allow_headers"))] = []
    """Allowed request headers, besides the safelisted ones; `*` for all."""
    allow_credentials: bool = False
    """Whether pages may send cookies and Authorization."""
    expose_headers: Annotated[TextList, BeforeValidator(no_modes("expose_headers"))] = [
        *("Age", "Cache-Status", "Server-Timing", "X-Request-ID", "X-Process-Time")
    ]
    """Response headers that pages may read, besides the safelisted ones."""
    max_age: Duration = timedelta(minutes=10)
    """How long browsers may cache a preflight response."""

    @model_validator(mode="after")
    def _no_wildcard_with_credentials(self) -> CorsConfig:
        if self.allow_credentials and "*" in self.allow_origins:
            raise ValueError(
                "allow_origins `*` with allow_credentials lets every web page act as the user; list the origins"
            )
        if self.allow_origin_regex is not None:
            try:
                re.compile(self.allow_origin_regex)
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"allow_origin_regex isn't a valid regular expression: {error}") from None
        return self

    @field_validator("allow_methods")
    @classmethod
    def _methods_in_capitals(cls, methods: list[str]) -> list[str]:
        for method in methods:
            if not _METHOD.fullmatch(method):
                raise ValueError(f"{method!r} isn't a valid method; expected a list such as [GET, HEAD, POST]")
            if method != method.upper():
                raise ValueError(
                    f"{method!r} never matches: browsers send methods in upper case; write {method.upper()}"
                )
        return methods

    @field_validator("allow_origins")
    @classmethod
    def _as_browsers_write_them(cls, origins: list[str]) -> list[str]:
        for origin in origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} isn't a valid origin; expected a lower-case scheme and host without a path, such as "
                    "https://app.example.com; for patterns use allow_origin_regex"
                )
        return origins

    @model_validator(mode="after")
    def _no_pattern_for_all_with_credentials(self) -> CorsConfig:
        pattern = self.allow_origin_regex
        if self.allow_credentials and pattern and re.fullmatch(pattern, "https://any-page.invalid"):
            raise ValueError(
                "allow_origin_regex matches any origin; with allow_credentials every web page can act as the user"
            )
        return self

    @property
    def enabled(self) -> bool:
        return bool(self.allow_origins or self.allow_origin_regex)


class LimitsConfig(Model):
    """Limits on client connections and requests, per worker. The gateway refuses what exceeds them and closes the
    connection."""

    head_timeout: Duration = timedelta(seconds=8)
    """Timeout for a request head (408). It starts when the connection opens; on a kept-alive connection, with the
    head's first byte."""
    body_timeout: Duration = timedelta(seconds=8)
    """How long a request body may arrive at less than 500 bytes per second (408)."""
    write_timeout: Duration = timedelta(seconds=8)
    """How long a client may read a response at less than 500 bytes per second. The gateway then closes the
    connection."""
    keep_alive: Duration = timedelta(seconds=75)
    """Idle timeout of kept-alive connections."""
    request_line: Annotated[Size, Field(ge=64, le=65_536)] = 8 * 1024
    """Maximum length of the request line (414)."""
    request_head: Annotated[Size, Field(ge=1024, le=1_048_576)] = 32 * 1024
    """Maximum size of the request head: request line and header fields (431)."""
    request_headers: Annotated[int, Field(ge=1, le=10_000)] = 100
    """Maximum number of header fields (431)."""
    connections: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    """Maximum concurrent connections (503)."""
    connections_per_client: Annotated[int, Field(ge=1, le=1_000_000)] = 2048
    """Maximum concurrent connections per client address (503). Addresses of trusted proxies are exempt."""
    requests: Annotated[int, Field(ge=1, le=1_000_000)] = 4096
    """Maximum concurrent requests, hits from memory not counted (503)."""
    requests_per_client: Annotated[int, Field(ge=1, le=1_000_000)] = 2048
    """Maximum concurrent requests per client address (503). Addresses of trusted proxies are exempt."""


class ListenTlsConfig(Model):
    """TLS on the public listener. Clients speak HTTP/1.1 on it (ALPN `http/1.1`)."""

    cert: str
    """A file with the certificate (PEM), followed by intermediate ones."""
    key: str | None = None
    """A file with the unencrypted private key of `cert` (PEM). Default: the file of `cert`."""
    min: Annotated[Literal["1.2", "1.3"], BeforeValidator(lambda value: str(value))] = "1.2"
    """The lowest version of TLS."""
    reload: Annotated[Duration, Field(ge=timedelta(seconds=1))] = timedelta(seconds=60)
    """How often to look whether the files have changed, besides on SIGHUP. New connections get a new certificate; one
    that can't be used leaves the previous one in use."""

    @property
    def key_file(self) -> str:
        return self.key or self.cert


class ListenConfig(Model):
    """What the public listener speaks; its address is `host` and `port`."""

    tls: ListenTlsConfig | None = None
    """A certificate to speak TLS with. Default: plain HTTP. Adding or removing it requires a restart; its settings can
    be reloaded."""


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


def _root_path(value: object) -> object:
    if not isinstance(value, str) or not (value.startswith("/") or not value):
        raise ValueError("must be a path such as /shop")
    return normalised_prefix(value)


PageUrl = Annotated[str, BeforeValidator(_off_or_path)]
RootPath = Annotated[str, BeforeValidator(_root_path)]


RECORD_REST = 256 * 1024
"""Bytes that a record may have beside body and upstream's head: its keys, tags, lifetimes, and headers of ours."""


class Config(Model):
    """All settings of the gateway."""

    public_url: Url | None = None
    """The URL by which clients reach the gateway. Its host and scheme are sent to upstreams, and links that handlers
    make are made of it."""
    host: str = "127.0.0.1"
    """The address to listen on."""
    port: Annotated[int, BeforeValidator(_no_boolean), Field(ge=0, le=65535)] = 8000
    """The port to listen on; 0 selects a free one."""
    listen: ListenConfig = ListenConfig()
    """What the public listener speaks: TLS, or plain HTTP."""
    root_path: RootPath | None = None
    """The path prefix under which clients reach the gateway, such as /shop, whether the proxy in front takes it off or
    not. Default: the path of `public_url`."""
    watch: bool = True
    """Whether to reload when the configuration file or `.env` changes, as on SIGHUP."""
    workers: Annotated[int, BeforeValidator(_no_boolean), Field(ge=1, le=128)] = 1
    """Number of worker processes; the number of CPU cores is a good choice. They share one cache, so more than one
    requires a `redis_url` other than `none`."""
    worker_unresponsive_after: Annotated[Duration, Field(ge=timedelta(seconds=1))] = timedelta(seconds=5)
    """How long a worker's event loop may be blocked, or its process stopped. Another worker then accepts its
    connections, and it is killed and replaced; the log has the stack of what blocked it."""
    shutdown_delay: Duration = timedelta(seconds=1)
    """How long the gateway accepts connections after SIGTERM, while `/readyz` returns 503 so that load balancers stop
    sending traffic."""
    shutdown_timeout: Duration = timedelta(seconds=10)
    """How long requests in flight may take after `shutdown_delay` before they are aborted."""
    redis_url: str = "embedded"
    """The shared tier: `embedded` (a Valkey that the gateway starts), `redis://user:password@host:port/db`, `rediss://…`
    (TLS), `unix:///path`, `redis+cluster://host:port,host:port`, `redis+sentinel://host:port,host:port/service/db`, or
    `none` (memory only)."""
    redis_prefix: str = "gw:"
    """Prefix of all keys in Redis."""
    redis_secret: SecretStr | None = None
    """A secret of at least 16 characters that signs every record in Redis (HMAC-SHA-256). A record without a valid
    signature is a miss, so write access to Redis is not enough to plant a response. Use the same secret in all
    replicas; set it with GATEWAY_REDIS_SECRET. Changing it empties the shared tier. It is also the secret of the
    credential digests in keys; without it, they use a random key stored in Redis."""
    redis_budget: Duration = timedelta(milliseconds=50)
    """Time limit for all Redis commands of one request. The gateway then continues without Redis."""
    redis_dir: str | None = None
    """A folder in which the embedded Valkey keeps its data on disk, so that a restart loses nothing. Each write waits
    for the disk. Default: nothing is written."""
    redis_memory: Size = 256 * 1024**2
    """`maxmemory` of the embedded Valkey."""
    memory: Size = 256 * 1024**2
    """Size of the memory cache, divided among the workers: keys, headers and bodies."""
    max_body: Size = 2 * 1024**2
    """Maximum size of a stored body. Larger ones are streamed and not stored."""
    max_request_body: Size = 16 * 1024**2
    """Maximum size of a request body (413)."""
    admin_listen: str = "127.0.0.1:9000"
    """Address of the admin listener, for metrics and health: `host:port`, `unix:/path`, or `none`."""
    admin_tokens: dict[str, AdminTokenConfig] = {}
    """Named tokens for the admin listener, beside GATEWAY_ADMIN_TOKEN, which allows everything."""
    admin_identity: AdminIdentityConfig | None = None
    """Signed tokens of an issuer for the admin listener."""
    compression: Annotated[list[Literal["zstd", "br", "gzip"]], BeforeValidator(split_commas)] = ["zstd", "br", "gzip"]
    """Content codings for stored text, in order of preference; an empty list disables compression. Each stored response
    of at least 1 KiB is compressed once, on routes with their own `ttl`."""
    drop_query: Annotated[TextList, BeforeValidator(no_modes("drop_query"))] = list(TRACKING_PARAMETERS)
    """Patterns of query parameters that are neither forwarded nor part of the key. They don't apply to parameters in a
    route's `query`, nor to requests that bypass the cache."""
    trusted_proxies: Networks = []
    """Networks of proxies whose `X-Forwarded-For`, `-Host`, `-Port`, `-Proto` and `-Prefix`, or `Forwarded`, are
    trusted, such as 10.0.0.0/8."""
    retry_after: Duration = timedelta(seconds=1)
    """How long a key backs off after a failed fetch while a stale response is available. A `Retry-After` of a 429 or
    503 extends it, to 10 minutes at most."""
    overload_lag: Duration = timedelta(milliseconds=50)
    """Event loop delay, lasting 0.3 s, at which the gateway sheds load: first refreshes, then misses (503). `0s`
    disables load shedding. Hits are always served."""
    warm_start: Annotated[int, Field(ge=0, le=100_000)] = 1000
    """How many of the fleet's most requested responses a worker loads from Redis when it starts, in small batches and
    up to half of its memory; 0 disables it."""
    purge_disconnect_grace: Literal["forever"] | Duration = timedelta(seconds=30)
    """How long a worker that is disconnected from Redis, and so from purges, serves from its memory: a duration, or
    `forever`."""
    hit_for_miss: Duration = timedelta(seconds=5)
    """Hit-for-miss: after an uncacheable response, how long requests for that key skip collapsing."""
    cache: bool = True
    """The switch for development and tests. `off`: nothing is stored or reused anywhere, and no request waits for
    another; `GATEWAY_CACHE=off` also counts where a configuration is given in Python."""
    upstreams: dict[str, UpstreamConfig] = {}
    """Upstreams by name."""
    identity: dict[str, IssuerConfig] = {}
    """Issuers of credentials by name, for the setting `identity` of routes."""
    max_token_age: Annotated[Duration, Field(ge=timedelta(minutes=1), le=timedelta(days=3650))] = timedelta(days=30)
    """How long after its issue (`iat`) a token is accepted, whatever its own end. Revocations are kept as long."""
    rate_limits: dict[str, RateLimitConfig] = {}
    """Limits on how much each subject may request, by name, for the setting `rate_limits` of routes."""
    routes: dict[str, RouteConfig] = {}
    """Routes by name."""
    include: TextList = []
    """Python routers as `module:attribute`, such as shop.routes:router."""
    cors: CorsConfig = CorsConfig()
    """Which web pages may read responses."""
    limits: LimitsConfig = LimitsConfig()
    """Limits on client connections and requests."""
    docs: PageUrl = "/docs"
    """Path of the Swagger UI; `off` disables all documentation pages."""
    redoc: PageUrl = "/redoc"
    """Path of ReDoc, or `off`."""
    http_errors: Literal["problem", "fastapi"] = "problem"
    """The body of an `HTTPException` of Python handlers, and of a path or method without a route. `problem`: Problem
    Details (RFC 9457). `fastapi`: FastAPI's own, `{"detail": …}`. Errors of upstreams, and requests that the gateway
    refuses, have Problem Details in both."""
    validation_errors: Literal["fastapi", "problem"] = "fastapi"
    """The body of a 422 for Python handlers. `fastapi`: FastAPI's own, a list of errors under `detail`. `problem`:
    Problem Details (RFC 9457) with that list under `errors`. The OpenAPI document describes the selected form."""
    access_log: bool = True
    """Whether to log each request as a line of JSON on standard output."""
    log_hits: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of hits that are logged, sampled at random. All other requests are always logged. Below 1, `gateway ttl
    advise --log` is not available."""
    log_format: Literal["text", "json"] = "text"
    """The form of all other messages, on standard error: lines of text, or of JSON."""

    @property
    def prefix(self) -> str:
        """The path prefix under which clients reach the gateway, encoded; empty for none."""
        if self.root_path is not None:
            return self.root_path
        return normalised_prefix(urlsplit(self.public_url).path) if self.public_url is not None else ""

    @model_validator(mode="after")
    def _one_prefix(self) -> Config:
        path = urlsplit(self.public_url).path if self.public_url is not None else ""
        try:
            public = normalised_prefix(path)
        except ValueError as error:
            raise ValueError(f"public_url: its path {error}") from None
        if self.root_path is not None and public and public != self.root_path:
            raise ValueError(f"root_path is {self.root_path or '/'}, but the path of public_url is {public}")
        return self

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
        upstreams, credentials = frozenset(self.upstreams), self.credential_fields
        problems = [
            replace(problem, key=("routes", name, *problem.key))
            for name, route in self.routes.items()
            for problem in (
                *cross_problems(route.parts, route.template, upstreams, several, plain, self.refusing_for(route)),
                *issuer_problems(route, self.identity),
                *identity_problems(route, self.routes, credentials),
            )
        ]
        needs = needs_of_issuers(self.identity, self.upstreams, self.redis_url, self.redis_dir)
        problems += [*self._limits_beyond(), *self._fields_of_cors(), *(PartProblem(*each) for each in needs)]
        problems += [PartProblem(*each) for each in rate_limit_problems(self.routes, self.rate_limits)]
        refuse([*problems, *admin_problems(self.admin_identity, self.identity)])
        return self

    def refusing_for(self, aggregate: RouteConfig) -> frozenset[str]:
        """The names of routes that an aggregate can't be made of, since it lets anybody in and they don't."""
        routes = self.routes if aggregate.parts else {}
        return frozenset(name for name, route in routes.items() if route.identity and not aggregate.identity)

    @property
    def credential_fields(self) -> dict[str, list[str]]:
        """The request fields, and `cookie:NAME`, in which each issuer's credentials are."""
        return {name: issuer.sources for name, issuer in self.identity.items()}

    def _fields_of_cors(self) -> Iterator[PartProblem]:
        """Response fields that are set by hand although `cors` makes them for each origin."""
        owners: list[tuple[tuple[str, ...], HeadersConfig]] = []
        owners += [(("routes", name), route.headers) for name, route in self.routes.items()]
        owners += [(("upstreams", name), upstream.headers) for name, upstream in self.upstreams.items()]
        for key, headers in owners if self.cors.enabled else ():
            names = sorted(name.decode("latin-1") for name in headers.response.changes.names)
            for name in names:
                if name.startswith("access-control-"):
                    yield PartProblem((*key, "headers", "response"), f"{name} can't be changed: `cors` makes it")

    def _limits_beyond(self) -> Iterator[PartProblem]:
        """Limits of routes and parts that an enclosing limit never lets them reach."""
        for name, route in self.routes.items():
            key, upstream = ("routes", name), self.upstreams.get(route.upstream)
            if (most := route.max_request_body) is not None and most > self.max_request_body:
                conflict = (
                    f"exceeds the gateway's max_request_body ({show_size(self.max_request_body)}), which comes first"
                )
                yield PartProblem((*key, "max_request_body"), conflict, show_size(most))
            if route.timeout is not None and upstream is not None and route.timeout > upstream.stream_timeout:
                conflict = f"exceeds the stream_timeout of {route.upstream} ({show_duration(upstream.stream_timeout)})"
                yield PartProblem((*key, "timeout"), conflict, show_duration(route.timeout))
            largest = self.max_body if route.max_body is None else route.max_body
            if route.max_response_body is not None and route.max_body is not None and largest > route.max_response_body:
                conflict = f"exceeds max_response_body ({show_size(route.max_response_body)}): no body is as large"
                yield PartProblem((*key, "max_body"), conflict, show_size(largest))
            for part, config in route.parts.items():
                if config.max_body is not None and config.max_body > largest:
                    conflict = f"exceeds the aggregate's max_body ({show_size(largest)})"
                    yield PartProblem((*key, "parts", part, "max_body"), conflict, show_size(config.max_body))

    @property
    def admin_is_private(self) -> bool:
        """Whether the admin listener is reachable only from this machine."""
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
                f"workers: {self.workers} processes with `redis_url: none` would share neither a cache nor "
                "purges; set redis_url to embedded or the URL of a Redis, or workers to 1"
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
            raise ValueError("must have at least 16 characters, such as the output of `openssl rand -hex 32`")
        return value

    @field_validator("redis_prefix")
    @classmethod
    def _redis_prefix(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9:_.\-]*", value):
            raise ValueError("may contain only letters, digits and : _ . -")
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

    @field_validator("upstreams", "routes", "identity", "admin_tokens", "rate_limits", mode="before")
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
