"""The edge's state between requests: request lines, header blocks, and responses prepared for sending.

Decides which parts of a response are the same from one hit to the next, and so are made once: the effect of a header
block (`HeaderBlock`), how the app served a request line (`KnownTarget`), when an entry is fresh (`PreparedResponse`),
and the bytes of one form of it, by coding, status and Origin (`ResponseForm`); its age and remaining freshness are
updated once a second. It must not know how an entry is found or which request gets it (`hits`, `response_memos`).
"""

from __future__ import annotations

import asyncio
import math
import time

import msgspec

from gateway.advisor.ttl_ladder import Recorder, Sight
from gateway.cache.memory import Node
from gateway.cache.request import Route
from gateway.context import Outcome, RequestContext, Result
from gateway.edge.head_template import CLOSES, KEEPS, TICKS, Ending, HitHeads, with_last
from gateway.edge.splice_state import Splice
from gateway.http.headers import connection_options, has, values
from gateway.http.target import Target
from gateway.identity.admission import Admitted, Epoch
from gateway.identity.principal import Principal
from gateway.observability.metrics import Tally
from gateway.observability.trace_context import TRACEPARENT
from gateway.policy import freshness
from gateway.policy.content import DECIDING
from gateway.policy.entry import Entry
from gateway.policy.epochs import EVERYTHING, Epochs, key_name, route_name, tag_name
from gateway.policy.identity_key import UNKEYED, IdentityKey
from gateway.policy.keys import PlannedFields, key_hash, primary_and_stem
from gateway.policy.rules import CachePolicy
from gateway.policy.vary import Suffixes, VaryIndex
from gateway.routing.fast_path import Admit, FastPath, PartFields, Planned

# The fields that make a request more than a plain one; the app handles those.
NOT_PLAIN = frozenset(
    (
        *(b"cache-control", b"content-length", b"expect", b"if-match", b"if-range", b"if-unmodified-since", b"pragma"),
        *(b"range", b"transfer-encoding", b"upgrade", b"x-request-id", b"gateway-explain"),
    )
)
# The fields used by uvicorn's ProxyHeadersMiddleware, if it wraps the app.
_PROXIED = frozenset((b"x-forwarded-for", b"x-forwarded-proto"))
_LENGTH = b"content-length"
_FORMING = frozenset((b"accept-encoding", b"if-none-match", b"if-modified-since", b"origin"))


class HeaderBlock:
    """A request's parsed header block: whether the edge may serve it, and which of its fields select a response.

    `headers` are without X-Request-ID. `plain` is False if the app must handle it. `form` is what may change the form
    of a response: the codings, the preconditions, the Origin. `takes_content` is `plain` for a request with content of
    a known length, and `described` what decides the form of that. `proxied` is True if it has forwarding fields,
    `prefixed` if these may set a trusted path prefix. `admitted` is None but for a view, whose fields are those after
    admission to a route; `views` has a block's own.
    """

    __slots__ = (
        *("bases", "clients", "close", "form", "headers", "host", "keep", "memos", "origin", "plain", "proxied"),
        *("admitted", "credential", "described", "for_parts", "planned", "prefixed", "takes_content", "traced"),
        *("vary", "views"),
    )

    def __init__(self, headers: list[tuple[bytes, bytes]], identity_key: IdentityKey = UNKEYED) -> None:
        self.proxied = any(name in _PROXIED for name, _ in headers)
        self.prefixed = False
        self.form = b"\n".join(name + b":" + value for name, value in headers if name in _FORMING)
        origins = values(headers, b"origin")
        self.origin = origins[0].decode("latin-1") if origins else None
        hosts = values(headers, b"host")
        self.host = hosts[0].decode("latin-1").lower() if hosts else ""
        # Without a Host it is one of HTTP/1.0; with a line of HTTP/1.1 it would be refused.
        self.plain = bool(hosts) and not any(name in NOT_PLAIN for name, _ in headers)
        self.takes_content = bool(hosts) and not any(name in NOT_PLAIN and name != _LENGTH for name, _ in headers)
        self.described = b"".join(b"\n" + name + b":" + value for name, value in headers if name in DECIDING) + b"\n\n"
        options = connection_options(headers)
        self.traced = has(headers, TRACEPARENT)
        self.close = b"close" in options
        self.keep = b"keep-alive" in options
        self.admitted: Admitted | None = None
        self.credential: int | None = None
        self._begin(headers, identity_key)

    def _begin(self, headers: list[tuple[bytes, bytes]], identity_key: IdentityKey) -> None:
        """Set what depends on all fields."""
        self.headers = headers
        self.for_parts: PartFields | None = None
        self.bases: dict[KnownRoute, str | None] = {}
        self.vary = Suffixes(headers, _is_unseen, identity_key)
        self.clients: dict[str, bytes] = {}
        self.planned = Planned(headers)
        self.memos: dict[bytes, Memo] = {}
        self.views: dict[KnownRoute, HeaderBlock] = {}

    def with_headers(self, headers: list[tuple[bytes, bytes]], identity_key: IdentityKey) -> HeaderBlock:
        """A block of other fields, which differ in none that are judged here."""
        block = HeaderBlock.__new__(HeaderBlock)
        block.form, block.host, block.origin, block.traced = self.form, self.host, self.origin, self.traced
        block.close, block.keep, block.plain = self.close, self.keep, self.plain
        block.takes_content, block.described = self.takes_content, self.described
        block.prefixed, block.proxied, block.admitted, block.credential = self.prefixed, self.proxied, None, None
        block._begin(headers, identity_key)
        return block

    def base(self, known: KnownRoute) -> str | None:
        """What the keyed inputs add to a primary key on a route; None for a bypass, and if a keyed field is not in the
        block."""
        planned = PlannedFields.of(known.route.keying, self.headers)
        open_to_upstream = known.route.follows_origin and known.route.keying.authorization == "pass"
        unshared = open_to_upstream and has(self.headers, b"authorization")
        unseen = any(map(_is_unseen, known.route.keying.vary or ()))
        base = None if planned.bypass is not None or unshared or unseen else planned.suffix
        self.bases[known] = base
        return base


def _is_unseen(name: str) -> bool:
    """Whether a block lacks this field that a response may vary on."""
    return name == "x-request-id" or name.startswith(":")


class KnownRoute:
    """A route in the edge, and its prepared responses, by key."""

    __slots__ = ("endings", "heads", "ready", "recorder", "route")

    def __init__(self, route: Route, recorder: Recorder) -> None:
        self.route = route
        self.recorder = recorder
        self.ready: dict[str, PreparedResponse] = {}
        self.endings: dict[Result, Endings] = {}
        self.heads = HitHeads()


class KnownTarget:
    """A request line that the app has answered before; of a read with content, the line, what describes the content,
    and that itself."""

    __slots__ = (
        *("guarded", "head", "known", "line", "method", "modern", "primary", "recall", "splices", "stem", "target"),
    )

    def __init__(self, line: bytes, recall: FastPath, known: KnownRoute, target: Target | None) -> None:
        self.line = line
        self.recall = recall
        self.known = known
        self.target = target
        self.head = line.startswith(b"HEAD ")
        self.method = recall.method or ("HEAD" if self.head else "GET")
        self.modern = bool(recall.content) or line.endswith(b"HTTP/1.1")
        self.primary, self.stem = primary_and_stem(recall.origin, recall.target, recall.route.keying.identity_key)
        self.stem += recall.content
        self.splices: dict[str, Splice | None] = {}
        self.guarded = recall.admission is not None or recall.admit is not None
        """Whether its requests are answered by a view of their block."""

    @property
    def names(self) -> tuple[str, ...]:
        """By which purges apply to its responses; made when a purge is looked for."""
        recall = self.recall
        return (EVERYTHING, key_name(self.primary), route_name(recall.route.name), *map(tag_name, recall.tags))

    def connection(self, block: HeaderBlock) -> bytes:
        """The `Connection` field line of a response; empty if the connection stays open by default."""
        if block.close:
            return CLOSES
        if self.modern:
            return b""
        return KEEPS if block.keep else CLOSES


JOINED = 16 * 1024
"""Up to this size a body is copied behind its head, for one write; larger ones are handed over as they are."""
SHAPES = 32
"""Maximum number of forms per stored response: by GET or HEAD, by coding, by 200 or 304, by Origin."""


class Endings:
    """The ends of heads of one route's hits of one kind: from memory (`plain`), and after a read of the shared tier
    (`looked`)."""

    __slots__ = ("looked", "plain")

    def __init__(self, route: str, result: Result) -> None:
        exchange = RequestContext("", 0.0, "", "", "", route=route, outcome=Outcome(result, ttl=0))
        self.plain = Ending(exchange)
        exchange.spent["cache"] = 0.0
        self.looked = Ending(exchange)


class PreparedResponse:
    """A prepared stored response: its windows after the known purges, and its forms.

    It holds the stored headers, by whose identity it recognises its response, but not the body (`Records` recognises
    one that is read again each time). Forms are keyed by use (hits of GET and HEAD, stale responses to GET and HEAD: 0
    to 3) and by the request's properties that change the form.
    """

    __slots__ = ("flight", "fresh", "headers", "key", "revalidate", "shapes", "softened", "version")

    def __init__(self, stored: Entry, route: Route, epochs: Epochs, *, base: str, flight: str) -> None:
        self.key = key_hash(base)
        self.headers = stored.headers
        self.version = epochs.version
        self.softened = stored.softened
        self.flight = flight
        windows = freshness.windows(stored, route.rules)  # as the purges leave it
        self.fresh = windows.fresh
        self.revalidate = windows.revalidate
        self.shapes: dict[tuple[int, bytes], ResponseForm] = {}


class ResponseForm:
    """One form of a stored response: all bytes of a response except those that differ with each request.

    `head` ends before the request ID, and has the age `at` an index; `end` follows the time taken. Both hold until the
    instant `until`, at which the age or the remaining freshness changes next, or trust ends. `coded` is the memory key
    of the body, if it is not the stored response's own.
    """

    __slots__ = (
        *("_at", "_digits", "coded", "end", "ending", "head", "length", "lines", "result"),
        *("status", "tally", "timing", "until", "volatile"),
    )

    def __init__(
        self, status: int, before: bytes, after: bytes, ending: Endings, result: Result, tally: Tally, *, length: int
    ) -> None:
        """`before` ends before the age; `after` begins there, and ends with the response's own fields."""
        self.status = status
        self.head = before + after + ending.plain.start
        self._at = len(before)
        self._digits = 0
        self.result = result
        self.tally = tally
        self.ending = ending
        self.timing = ending.plain.ticks
        self.length = length
        self.coded = ""
        self.lines: dict[tuple[KnownTarget, str], tuple[bytes, ...]] | None = None
        self.volatile = False
        self.until = -math.inf
        self.end = b""

    def render(self, stored: Entry, ready: PreparedResponse, rules: CachePolicy, now: float, trusted: float) -> None:
        """Write the age and the remaining freshness at `now`; `trusted` is until when memory is trusted (seconds)."""
        age = freshness.age_for(stored, rules, now)
        left = ready.fresh - now
        text = b"%d" % age
        self.head = self.head[: self._at] + text + self.head[self._at + self._digits :]
        self._digits = len(text)
        self.end = self.ending.plain.status(left)
        self.until = min(now + min(1.0 - age % 1.0, left % 1.0), trusted)
        if self.result is Result.HIT:
            self.until = min(self.until, ready.fresh)

    def write(
        self,
        transport: asyncio.Transport,
        body: bytes,
        request_id: bytes,
        began: float,
        *,
        connection: bytes = b"",
        looked: float | None = None,
    ) -> float:
        """Write a response, and return its duration in seconds; `began` is a value of the performance counter.
        `connection` is the field line of that name. `looked` is the time in seconds that the shared tier took, if it
        was read."""
        elapsed = time.perf_counter() - began
        ticks = int(elapsed * 1_000_000 + 0.5)
        if looked is not None:
            timing = self.ending.looked.timing(elapsed, looked)
        else:
            timing = self.timing[ticks] if ticks < TICKS else self.ending.plain.timing(elapsed)
        end = with_last(self.end, connection) if connection else self.end
        if not self.length:
            transport.write(b"".join((self.head, request_id, timing, end)))
        elif self.length <= JOINED:
            transport.write(b"".join((self.head, request_id, timing, end, body)))
        else:
            transport.writelines((b"".join((self.head, request_id, timing, end)), body))
        return elapsed


class Memo(msgspec.Struct, gc=False):
    """A response, and everything that it depends on. `node` is the stored response's, `source` that of the sent body,
    which differs if it is compressed. It holds neither; once they leave memory they are gone."""

    node: Node[Entry]
    turn: int
    selector: Node[VaryIndex]
    selector_turn: int
    source: Node[Entry]
    source_turn: int
    version: int
    shape: ResponseForm
    sight: Sight
    recorder: Recorder
    ready: PreparedResponse
    known_target: KnownTarget
    guard: tuple[float, Epoch, int, Principal | None, Admit | None] | None
    """Of a guarded target: the terms of who was let in, and what counts its hits. One tuple, as it is read by each
    repeated request."""
