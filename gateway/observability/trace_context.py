"""The client's trace, forwarded with every upstream request made for its request.

Of W3C's Trace Context (Recommendation of 23 November 2021) only `traceparent` is forwarded on a route with its own
duration: its form is fixed, so an upstream can't vary its response on it. `tracestate`, which has free content, is
handled like any other field. Work in the same task, and in tasks that it starts, belongs to the trace too: parts,
hedges, a handler's own calls.
"""

from __future__ import annotations

import re
from contextvars import ContextVar

from gateway.http.headers import Headers, values, without

TRACEPARENT = b"traceparent"
# §3.2.2: version 00 has this form to the letter; ids of zeros alone are invalid.
_FORM = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

PASSED_ON: ContextVar[bytes] = ContextVar("traceparent", default=b"")
"""The value for upstream requests; empty if the request belongs to no trace."""


def traceparent_of(headers: Headers) -> bytes:
    """The client's `traceparent`; empty if there is none, several, or a malformed one (§3.3: it is then ignored)."""
    given = values(headers, TRACEPARENT)
    return given[0] if len(given) == 1 and _FORM.fullmatch(given[0]) else b""


def traced(headers: Headers, traceparent: bytes) -> Headers:
    """The header fields of a request to an upstream that belongs to this trace."""
    return [*without(headers, TRACEPARENT), (TRACEPARENT, traceparent)] if traceparent else headers


BEHIND: ContextVar[bool] = ContextVar("behind", default=False)
"""Whether the current work is a background refresh, for which no client waits: the first to be shed."""
