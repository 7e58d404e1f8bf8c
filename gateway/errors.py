"""Errors: what can go wrong, who can fix it, and the client's response.

Pure: no I/O. The tree:

    GatewayError
    ├── ConfigError              the operator's: an invalid setting (the start or a reload is refused)
    ├── OrderError               the operator's: invalid arguments of a command
    ├── RequestRefused           the client's: an ambiguous or malformed request target or Host (400)
    └── UpstreamError            the upstream's
        ├── UpstreamUnreachable  connection failed or lost before the response was complete (502)
        ├── UpstreamMalformed    an invalid or unsolicited response (502)
        │   └── UpstreamHeadTooLarge   a response head larger than the settings allow (502)
        ├── UpstreamBusy         all connections in use and the queue full (503)
        ├── UpstreamResting      circuit breaker open (503)
        ├── Overloaded           no request sent: the gateway is overloaded (503)
        ├── LimitReached         no request sent: the client has reached one of `rate_limits` (429)
        ├── UpstreamTimeout      timed out (504)
        └── PartFailed           an aggregate's required part failed (502), timed out (504) or does not exist (404)

Every error response is Problem Details (RFC 9457). The `type` is a stable relative URI; no response contains an
address, a path of this machine or a stack trace.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any


class GatewayError(Exception):
    """The root of every error this package raises on purpose."""


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One invalid setting: its place, what is wrong, and what is expected."""

    source: str
    key: str
    message: str

    def __str__(self) -> str:
        place = f"{self.source}: " if self.source else ""
        return f"{place}{self.key}: {self.message}" if self.key else f"{place}{self.message}"


class ConfigError(GatewayError):
    """The configuration is refused; `problems` lists all that is wrong with it, not just the first; `warnings` what
    would be a warning besides."""

    def __init__(self, problems: list[ConfigProblem], warnings: tuple[str, ...] = ()) -> None:
        self.problems = problems
        self.warnings = warnings
        super().__init__("\n".join(str(problem) for problem in problems))


class OrderError(GatewayError):
    """Invalid arguments of a command; the message says what is expected."""


class RequestRefused(GatewayError):
    """The request gets the response status `status` (default 400) and is not processed; it is counted under `reason`, a
    word of a closed set."""

    def __init__(self, detail: str, status: int = 400, reason: str = "target") -> None:
        self.detail = detail
        self.status = status
        self.reason = reason
        super().__init__(detail)


class UpstreamError(GatewayError):
    """An upstream failed. `status` is the client's response status, `kind` the label of the metric; `retry_after` is
    the delay in seconds before a retry is worthwhile, if known. `cause` is one word of a closed set, more exact than
    `kind`, and `text` its details; both are for the log, as they may name addresses."""

    status = 502
    kind = "error"
    cause = "error"
    title = "Upstream failed"

    def __init__(self, upstream: str, reason: str, retry_after: float | None = None) -> None:
        self.upstream = upstream
        self.reason = reason
        self.retry_after = retry_after
        self.text = reason
        super().__init__(f"{upstream}: {reason}")

    @property
    def why(self) -> tuple[str, str]:
        """`cause` and `text`."""
        return self.cause, self.text


class UpstreamUnreachable(UpstreamError):
    kind = "unreachable"
    cause = "reset"
    title = "Upstream unreachable"


class UpstreamMalformed(UpstreamError):
    kind = cause = "malformed"
    title = "Upstream sent an invalid response"


class UpstreamHeadTooLarge(UpstreamMalformed):
    """`reason` names the setting that bounds it."""

    kind = cause = "large-head"
    title = "Upstream sent a response head that is too large"


class UpstreamTooLarge(UpstreamError):
    """A response is larger than its route allows."""

    kind = cause = "too-large"
    title = "Upstream response too large"


class UpstreamBusy(UpstreamError):
    status = 503
    kind = cause = "busy"
    title = "Upstream busy (connection queue full)"


class UpstreamCircuitOpen(UpstreamError):
    status = 503
    kind = cause = "resting"
    title = "Upstream temporarily disabled (circuit breaker open)"


class Overloaded(UpstreamError):
    """The gateway is overloaded: no request was sent to the upstream."""

    status = 503
    kind = cause = "overloaded"
    title = "Gateway overloaded"


class LimitReached(UpstreamError):
    """A client has reached limits of `rate_limits`, `policies` by name: no request was sent. A request passes after
    `retry_after` seconds."""

    status = 429
    kind = cause = "limit"
    title = "Request cannot be satisfied as assigned quota has been exceeded"

    def __init__(self, policies: tuple[str, ...], retry_after: float) -> None:
        super().__init__("rate limit", ", ".join(policies), retry_after)
        self.policies = policies


class UpstreamTimeout(UpstreamError):
    status = 504
    kind = cause = "timeout"
    title = "Upstream timed out"


class PartFailed(UpstreamError):
    """A part that an aggregate can't be answered without."""

    title = "A required part failed"
    kind = cause = "part"

    def __init__(self, part: str, reason: str, status: int = 502) -> None:
        super().__init__(f"{part}: {reason}", reason)
        self.status = status


PROBLEM_MEDIA_TYPE = b"application/problem+json"


def problem_type(status: int) -> str:
    """The stable `type` of a problem: `/problems/` and the status phrase, in kebab case."""
    return "/problems/" + problem_title(status).lower().replace(" ", "-").replace("'", "")


def problem_document(status: int, detail: Any, request_id: str, title: str | None = None) -> dict[str, Any]:
    """The members of an `application/problem+json` answer (RFC 9457 §3)."""
    document = {
        "type": problem_type(status),
        "title": title or problem_title(status),
        "status": status,
        "detail": detail,
    }
    return document | {"request_id": request_id} if request_id else document


QUOTA_EXCEEDED = "https://iana.org/assignments/http-problem-types#quota-exceeded"
"""The problem type of a 429 (draft-ietf-httpapi-ratelimit-headers-10 §5)."""


def quota_body(reached: LimitReached, seconds: int, request_id: str) -> bytes:
    """The Problem Details of a 429, as JSON: which limits are reached, and that a request passes after `seconds`."""
    names = ", ".join(reached.policies)
    detail = f"The rate limit {names} is reached. A request passes in {seconds} s."
    document = problem_document(reached.status, detail, request_id, reached.title)
    document |= {"type": QUOTA_EXCEEDED, "violated-policies": list(reached.policies)}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


# RFC 9110 renamed these; Python's own table follows it from 3.13 on.
_RENAMED = {413: "Content Too Large", 414: "URI Too Long", 416: "Range Not Satisfiable", 422: "Unprocessable Content"}


def problem_title(status: int) -> str:
    """The phrase of a status."""
    if status in _RENAMED:
        return _RENAMED[status]
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"Status {status}"


def problem_body(status: int, detail: str, request_id: str, title: str | None = None) -> bytes:
    """`problem_document` as JSON."""
    document = problem_document(status, detail, request_id, title)
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
