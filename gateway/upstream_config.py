"""The configuration of an upstream: what may be set, what it means, what its default is. Pure."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_validator, model_validator

from .config_types import (
    NEVER_CONSTANT,
    Duration,
    Model,
    Size,
    Url,
    check_field_names,
    is_address,
    is_public,
    split_commas,
)


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
