"""The configuration of what clients may do: which web pages read the answers, and what anyone may send. Pure."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator, model_validator

from .config_types import Duration, Model, Size, TextList
from .mode_words import no_modes

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
