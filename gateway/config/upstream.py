"""The configuration of an upstream: addresses, timeouts, limits, retries and circuit breaker. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_serializer, model_validator

from gateway.config.field_changes import OF_REQUESTS, HeadersConfig, RequestFields
from gateway.config.names import misspelt
from gateway.config.types import (
    Duration,
    Model,
    Size,
    Url,
    check_url,
    is_address,
    is_public,
    split_commas,
)

_HOST_MODES = ("upstream", "preserve")
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?\.?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


def check_host(value: str, modes: tuple[str, ...] = _HOST_MODES) -> str:
    """A value of `Host`, in lower case, or one of `modes`. Raises ValueError."""
    if value in modes:
        return value
    if not _HOST.fullmatch(value):
        raise ValueError(f"must be {', '.join((*modes, 'a host name such as shop.example.com'))}, not a URL or a list")
    if "." not in value and ":" not in value and (hint := misspelt(value, _HOST_MODES)):
        raise ValueError(f"{value!r} is neither a mode nor a full host name{hint}")
    return value.lower()


def check_tls_name(value: str) -> str:
    """Raises ValueError."""
    if not _HOST.fullmatch(value) or ":" in value.partition("]")[2] or value.count(":") == 1:
        raise ValueError(f"{value!r} isn't a host name, such as api.example.com")
    return value.lower().strip("[]")


class UpstreamRequestFields(RequestFields):
    """Fields of requests to the upstream: constants, the same for every client. `Host` under `set` is the setting
    `host`. `${NAME}` in a value stands for the environment variable NAME, or for what is in the file that NAME_FILE
    names."""

    reserved = {name: reason for name, reason in OF_REQUESTS.items() if name != "host"}

    def _problems(self) -> Iterable[tuple[tuple[str, ...], str]]:
        yield from super()._problems()
        for name, value in self.set.items():
            if name.lower() == "host":
                try:
                    check_host(value, ())
                except ValueError as error:
                    yield ("set", name), str(error)
        for place in ("add", "remove"):
            for name in getattr(self, place):
                if name.lower() == "host":
                    yield (place,), f"{name} can't be changed: it {OF_REQUESTS['host']}"


class UpstreamHeaders(HeadersConfig):
    """Fields that are set, added and removed on all routes of the upstream. `headers: {NAME: value}` is short for
    `headers: {request: {set: {NAME: value}}}`."""

    flat: ClassVar[bool] = True
    """Whether names beside those of the members are those of constant request fields."""

    request: UpstreamRequestFields = UpstreamRequestFields()
    """Fields of requests to the upstream."""

    @model_validator(mode="before")
    @classmethod
    def _in_full(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        members = {name: given[name] for name in ("request", "response") if not isinstance(given.get(name, ""), str)}
        short = {name: value for name, value in given.items() if name not in members}
        request = members.get("request", {})
        if not short or not isinstance(request, dict):
            return given
        return {**members, "request": {**request, "set": {**(request.get("set") or {}), **short}}}

    @model_serializer(mode="plain")
    def _as_short_as_written(self) -> dict[str, Any]:
        request, response = self.request.model_dump(), self.response.model_dump()
        if not response and not request.keys() - {"set"}:
            return dict(request.get("set", {}))
        return {name: value for name, value in (("request", request), ("response", response)) if value}

    @property
    def sent(self) -> dict[str, str]:
        """The constant request fields, by their names in lower case."""
        return {name.lower(): value for name, value in self.request.set.items()}


_WEIGHT = re.compile(r"(\S+)\s+weight=([0-9]{1,3})")


def split_weight(text: str) -> tuple[str, int]:
    """A base URL and its weight, from `URL` or `URL weight=N`."""
    found = _WEIGHT.fullmatch(text)
    return (found[1], int(found[2])) if found else (text, 1)


def check_weighted_url(text: str) -> str:
    """Raises ValueError."""
    url, weight = split_weight(text.strip())
    if len(url.split()) > 1 or weight > 100:
        raise ValueError("must be a URL, or a URL and a weight from 0 to 100, such as `http://canary:8080 weight=5`")
    check_url(url)
    return text.strip()


class HealthConfig(Model):
    """An active check: each host is asked for a path by each worker, and gets no requests while that fails."""

    path: str
    """The path to request, below the path of the URL. A status from 200 to 399 is a success."""
    every: Annotated[Duration, Field(ge=timedelta(milliseconds=100))] = timedelta(seconds=5)
    """The time between two checks of a host."""
    timeout: Annotated[Duration, Field(gt=timedelta())] = timedelta(seconds=1)
    """Timeout for the response."""
    healthy_after: Annotated[int, Field(ge=1, le=100)] = 2
    """How many successes in a row bring a host back."""
    unhealthy_after: Annotated[int, Field(ge=1, le=100)] = 3
    """How many failures in a row take a host out."""

    @field_validator("path")
    @classmethod
    def _path(cls, path: str) -> str:
        segments = path.partition("?")[0].split("/")
        if not _CHECKED_PATH.fullmatch(path) or "." in segments or ".." in segments:
            raise ValueError("must be a path such as /health, percent-encoded if need be")
        return path


_CHECKED_PATH = re.compile(r"/[!$-\[\]-~]*")


class UpstreamConfig(Model):
    """An HTTP API behind the gateway."""

    url: Url | None = None
    """The base URL: scheme, host, port and path prefix. Request targets can't leave it."""
    urls: Annotated[list[Annotated[str, AfterValidator(check_weighted_url)]], BeforeValidator(split_commas)] = []
    """Several base URLs of the same API, used in turn, instead of `url`. `http://canary:8080 weight=5` gets 5 requests
    for each request of a URL with `weight=1`, the default; `weight=0` gets none. At most
    100."""
    host: Annotated[str, AfterValidator(check_host)] = "upstream"
    """The `Host` field of requests: `upstream` (that of the URL), `preserve` (the client's, which is then part of the
    cache key), or a name such as shop.example.com. TLS uses the name in the URL."""
    timeout: Duration = timedelta(seconds=5)
    """Timeout for a complete response. For a streamed response: until its head, then between two chunks."""
    connect_timeout: Duration = timedelta(seconds=1)
    """Timeout for opening a connection."""
    resolve_every: Annotated[Duration, Field(ge=timedelta(milliseconds=100))] = timedelta(seconds=10)
    """How often the host's name is looked up again. Connections to addresses that it no longer has are drained; several
    addresses are used in turn. If a look-up fails, the last addresses stay in use. At least 100 ms."""
    max_connections: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Maximum concurrent connections per worker. Further requests are queued."""
    max_queue: Annotated[int, Field(ge=0, le=100_000)] = 200
    """Maximum number of queued requests. Requests beyond it, and those that would be queued for half of `timeout`, get
    a 503 at once. Background refreshes are never queued."""
    max_websockets: Annotated[int, Field(ge=0, le=100_000)] = 1000
    """Maximum concurrent WebSockets per worker, besides `max_connections`; one more gets a 503."""
    max_connections_without_redis: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Maximum concurrent connections per worker while Redis is down and fetches collapse only within a worker. Default:
    half of `max_connections`."""
    retry_budget: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Maximum share of requests that are retried. Only idempotent requests are retried, once, if no byte of the
    response was received. `0` disables retries."""
    breaker_failures: Annotated[int, Field(ge=0, le=1_000_000)] = 20
    """Failures within 10 s (connection errors, timeouts, 5xx) that open a host's circuit breaker, if they are at least
    half of its requests. `0` disables the breaker."""
    breaker_open_for: Duration = timedelta(seconds=2)
    """How long a circuit breaker stays open before one request probes the host."""
    health: HealthConfig | None = None
    """An active check of the hosts."""
    slow_start: Duration = timedelta(seconds=10)
    """How long a host that comes back, by its check or its circuit breaker, gets a growing share of its requests while
    another host can be used; `0s` gives it all at once."""
    stream_timeout: Duration = timedelta(hours=1)
    """Maximum duration of a streamed response. The gateway then aborts it. It doesn't apply to endless content types:
    `text/event-stream`, `application/x-ndjson`, `multipart/x-mixed-replace`."""
    stream_idle_timeout: Annotated[Duration, Field(gt=timedelta())] | None = None
    """Maximum time between two chunks of a streamed response. Default: `timeout`, and 60s for endless content types."""
    addresses: Literal["any", "public"] = "any"
    """`public` refuses hosts that are, or resolve to, addresses that are not public (loopback, link-local, private)."""
    headers: UpstreamHeaders = UpstreamHeaders()
    """Headers that are set, added and removed, in requests and in responses. `{NAME: value}` sets constant request
    headers, such as an API key; they replace the client's headers of the same name. `Host` is the same as `host`."""
    max_response_headers: Size = 64 * 1024
    """Maximum size of a response head; a larger one is a 502."""
    max_response_fields: Annotated[int, Field(ge=1, le=10_000)] = 256
    """Maximum number of header fields in a response; more are a 502."""
    transport: Literal["aiohttp", "httpx"] = "aiohttp"
    """The httpx transport. `aiohttp` is several times faster and survives cancellation; `httpx` opens a new connection
    for each request."""
    verify: bool = True
    """Whether to verify the certificate of an https upstream."""
    ca_file: str | None = None
    """A file of trusted certificate authorities (PEM), instead of the default ones: those of `SSL_CERT_FILE` or
    `SSL_CERT_DIR` in the environment, otherwise Mozilla's list."""
    client_cert: str | None = None
    """A file with the certificate that the gateway presents to the upstream (PEM), followed by intermediate ones."""
    client_key: str | None = None
    """A file with the unencrypted private key of `client_cert` (PEM). Default: the file of `client_cert`."""
    tls_reload: Annotated[Duration, Field(ge=timedelta(seconds=1))] = timedelta(seconds=60)
    """How often `gateway serve` looks whether `ca_file`, `client_cert` and `client_key` have changed, besides on
    SIGHUP. New connections use changed ones; files that can't be used leave the previous ones in use."""
    tls_name: Annotated[str, AfterValidator(check_tls_name)] | None = None
    """The name in the upstream's certificate, also sent as SNI. Default: the host in the URL."""

    @property
    def uses_tls(self) -> bool:
        return any(url.lower().startswith("https:") for url in self.bases)

    @model_validator(mode="after")
    def _tls_settings(self) -> UpstreamConfig:
        given = [name for name in ("ca_file", "client_cert", "client_key", "tls_name") if getattr(self, name)]
        if given and not self.uses_tls:
            raise ValueError(f"{given[0]} requires a URL with https")
        if self.ca_file and not self.verify:
            raise ValueError("ca_file has no effect with `verify: false`; remove one of them")
        if self.client_key and not self.client_cert:
            raise ValueError("client_key requires client_cert")
        return self

    @property
    def bases(self) -> list[str]:
        return [split_weight(each)[0] for each in self.urls] or ([self.url] if self.url else [])

    @property
    def weights(self) -> list[int]:
        """The share of each base, in their order."""
        return [split_weight(each)[1] for each in self.urls] or [1]

    @property
    def connections_alone(self) -> int:
        given = self.max_connections_without_redis
        return max(1, self.max_connections // 2) if given is None else given

    @model_validator(mode="after")
    def _no_inside_address(self) -> UpstreamConfig:
        if self.addresses == "public":
            for base in self.bases:
                host = urlsplit(base).hostname or ""
                if host == "localhost" or (is_address(host) and not is_public(host)):
                    raise ValueError(f"addresses: public, but {host} isn't a public address")
        return self

    @property
    def preserves_host(self) -> bool:
        """Whether requests have the client's `Host`."""
        return self.host == "preserve"

    @property
    def host_sent(self) -> str | None:
        """The name that all requests have as their `Host`; None where it is the URL's or the client's."""
        return self.headers.sent.get("host") or (None if self.host in _HOST_MODES else self.host)

    @property
    def named_bases(self) -> list[str]:
        """The bases as the upstream names itself: with the `Host` that it is sent."""
        if self.host_sent is None:
            return self.bases
        return [*self.bases, *(urlsplit(base)._replace(netloc=self.host_sent).geturl() for base in self.bases)]

    @model_validator(mode="after")
    def _one_host(self) -> UpstreamConfig:
        if "host" in self.headers.sent and "host" in self.model_fields_set:
            raise ValueError("host is set twice, by `host` and in `headers`; leave out the one in `headers`")
        return self

    @model_validator(mode="after")
    def _some_weight(self) -> UpstreamConfig:
        if not any(self.weights):
            raise ValueError("urls: all weights are 0, so that no host gets a request")
        return self

    @model_validator(mode="after")
    def _one_of_url_and_urls(self) -> UpstreamConfig:
        if bool(self.url) == bool(self.urls):
            raise ValueError("needs exactly one of `url` and `urls`")
        return self
