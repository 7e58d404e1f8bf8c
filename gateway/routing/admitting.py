"""Admission of a request, for every kind of route: who sent it, or the answer to one that is not let in."""

from __future__ import annotations

import re

from gateway.cache.respond import Answer, limit_reached, problem
from gateway.context import RequestContext
from gateway.errors import LimitReached
from gateway.http.headers import first, has
from gateway.identity.admission import Admission, NotAdmitted
from gateway.limits.route_limits import RouteLimits
from gateway.observability.metrics import Metrics
from gateway.policy.identity_key import IdentityKey

WELL_KNOWN = "/.well-known/oauth-protected-resource"
"""Where the metadata of protected resources are (RFC 9728 §3.1)."""
_NOT_IN_QUOTES = re.compile(r"[^ !#-\[\]-~]")


def is_preflight(exchange: RequestContext) -> bool:
    """Whether a request is a CORS preflight (Fetch standard), which never has credentials."""
    headers = exchange.headers
    return exchange.method == "OPTIONS" and has(headers, b"origin") and has(headers, b"access-control-request-method")


async def let_in(
    admission: Admission | None,
    limits: RouteLimits | None,
    exchange: RequestContext,
    identity_key: IdentityKey,
    metrics: Metrics,
) -> Answer | None:
    """The answer to a request that is not admitted, or is over a limit that counts all; None for one that may go on,
    whose fields are then those after admission. A preflight has no credential; a PURGE needs none, as `purge_from` says
    who may send it; neither is counted."""
    if is_preflight(exchange) or exchange.method == "PURGE":
        if admission is not None:
            exchange.headers = admission.anonymous(exchange.headers)
        return None
    if admission is not None:
        refusal = await _verified(admission, limits, exchange, identity_key, metrics)
        if refusal is not None:
            return refusal
    reached = None if limits is None else await limits.before_cache(exchange)
    return None if reached is None else over_limit(exchange, reached, metrics)


async def _verified(
    admission: Admission,
    limits: RouteLimits | None,
    exchange: RequestContext,
    identity_key: IdentityKey,
    metrics: Metrics,
) -> Answer | None:
    """The answer to a request that is not admitted, or whose client has sent too many that were not."""
    counted = False
    many = limits is not None and limits.refuses_many(exchange.client)
    if limits is not None and many and admission.known(exchange.headers, identity_key) is None:
        counted = True
        if (reached := await limits.before_verifying(exchange)) is not None:
            return over_limit(exchange, reached, metrics)
    counts = False
    try:
        exchange.headers, exchange.principal = await admission.admit(exchange.headers, identity_key)
    except NotAdmitted as refused:
        counts = refused.status != 503 and refused.reason != "missing"
        metrics.refused(f"identity-{refused.reason}")
        return not_admitted(exchange, refused)
    finally:
        if limits is not None and counts != counted:
            await limits.correct_refused(exchange, counts=counts)
    return None


def over_limit(exchange: RequestContext, reached: LimitReached, metrics: Metrics) -> Answer:
    """The answer to a request that has reached a limit, which is counted as a refusal."""
    metrics.refused("rate-limit")
    exchange.failure = reached.why
    return limit_reached(exchange, reached)


def not_admitted(exchange: RequestContext, refused: NotAdmitted, *, described: bool = True) -> Answer:
    """The answer to a request that is not admitted (RFC 6750 §3); a 401 says where the metadata of the resource are
    (RFC 9728 §5.1), if there are some (`described`)."""
    answer = problem(exchange, refused.status, refused.detail)
    if refused.retry_after is not None:
        answer.headers.append((b"retry-after", b"%d" % refused.retry_after))
    if refused.status != 503:
        parameters = {"error": refused.error, "error_description": refused.detail if refused.error else ""}
        parameters["scope"] = " ".join(refused.scopes)
        parameters["resource_metadata"] = _metadata_url(exchange) if described and refused.status == 401 else ""
        given = ", ".join(f'{name}="{_in_quotes(value)}"' for name, value in parameters.items() if value)
        answer.headers.append((b"www-authenticate", f"Bearer {given}".strip().encode("ascii")))
    return answer


def url_below(scheme: str, host: str, root: str, path: str) -> str:
    """The URL by which clients request `path` of the gateway, which is below `root`."""
    return f"{scheme}://{host}{root}{path}"


def _metadata_url(exchange: RequestContext) -> str:
    """The URL of the metadata of what was requested; empty if it isn't known by which URL that was."""
    scope = exchange.scope
    host = first(scope.get("headers", ()), b"host")
    if host is None or "raw_path" not in scope:
        return ""
    path = scope["raw_path"].decode("ascii").removeprefix(exchange.root)
    return url_below(scope["scheme"], host.lower(), exchange.root, WELL_KNOWN + ("" if path == "/" else path))


def _in_quotes(text: str) -> str:
    """`text` in the characters that RFC 6750 §3 allows: a claim or scope of the configuration may have others."""
    return _NOT_IN_QUOTES.sub("?", text)
