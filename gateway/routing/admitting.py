"""Admission of a request, for every kind of route: who sent it, or the answer to one that is not let in."""

from __future__ import annotations

import re

from gateway.cache.respond import Answer, problem
from gateway.context import RequestContext
from gateway.http.headers import has
from gateway.identity.admission import Admission, NotAdmitted
from gateway.observability.metrics import Metrics
from gateway.policy.identity_key import IdentityKey

_NOT_IN_QUOTES = re.compile(r"[^ !#-\[\]-~]")


def is_preflight(exchange: RequestContext) -> bool:
    """Whether a request is a CORS preflight (Fetch standard), which never has credentials."""
    headers = exchange.headers
    return exchange.method == "OPTIONS" and has(headers, b"origin") and has(headers, b"access-control-request-method")


async def admitted(
    admission: Admission, exchange: RequestContext, identity_key: IdentityKey, metrics: Metrics
) -> Answer | None:
    """The answer to a request that is not admitted; None for one that is, whose fields are then those after admission.
    A preflight has no credential; a PURGE needs none, as `purge_from` says who may send it."""
    if is_preflight(exchange) or exchange.method == "PURGE":
        exchange.headers = admission.anonymous(exchange.headers)
        return None
    try:
        exchange.headers, exchange.principal = await admission.admit(exchange.headers, identity_key)
    except NotAdmitted as refused:
        metrics.refused(f"identity-{refused.reason}")
        return not_admitted(exchange, refused)
    return None


def not_admitted(exchange: RequestContext, refused: NotAdmitted) -> Answer:
    """The answer to a request that is not admitted (RFC 6750 §3)."""
    answer = problem(exchange, refused.status, refused.detail)
    if refused.retry_after is not None:
        answer.headers.append((b"retry-after", b"%d" % refused.retry_after))
    if refused.status != 503:
        parameters = {"error": refused.error, "error_description": refused.detail if refused.error else ""}
        parameters["scope"] = " ".join(refused.scopes)
        given = ", ".join(f'{name}="{_in_quotes(value)}"' for name, value in parameters.items() if value)
        answer.headers.append((b"www-authenticate", f"Bearer {given}".strip().encode("ascii")))
    return answer


def _in_quotes(text: str) -> str:
    """`text` in the characters that RFC 6750 §3 allows: a claim or scope of the configuration may have others."""
    return _NOT_IN_QUOTES.sub("?", text)
