"""What the edge remembers of requests: how the app answered a request line, and what a header block asks for.

Each is remembered for itself, as pairs of them would be many; what was answered to a pair last is its own affair
(`memos`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from .answers import Answer
from .engine import Ask, Route
from .epochs import EVERYTHING, key_name, route_name, tag_name
from .exchange import Exchange
from .headers import has, values
from .identity_key import UNKEYED, IdentityKey
from .joints import Joinable, Joint
from .keys import Plan, plan, primary_key, stem_of
from .ladder import Recorder
from .outcome import Result
from .policy import Facts, facts_of
from .targets import Target
from .vary import Suffixes

if TYPE_CHECKING:
    from .memos import Memo
    from .shapes import Endings, Ready

# What makes a request more than a plain one: the app knows what to do.
_NOT_PLAIN = frozenset(
    (
        *(b"cache-control", b"content-length", b"expect", b"if-match", b"if-range", b"if-unmodified-since", b"pragma"),
        *(b"range", b"transfer-encoding", b"upgrade", b"x-request-id", b"gateway-explain"),
    )
)
# What uvicorn's ProxyHeadersMiddleware, where it wraps the app, goes by.
_PROXIED = frozenset((b"x-forwarded-for", b"x-forwarded-proto"))
_FORMING = frozenset((b"accept-encoding", b"if-none-match", b"if-modified-since", b"origin"))


@dataclass(frozen=True, slots=True)
class Recall:
    """How the app answered a request, for the edge to do the same. `ask` is the request as the engine takes it, to
    refresh a stale answer; None leaves stale answers to the app."""

    route: Route
    origin: str
    target: str
    tags: tuple[str, ...]
    public: Callable[[Answer], Answer]
    ask: Callable[[Exchange], Ask] | None
    joinable: Callable[[Exchange], Joinable | None] | None = None
    """How the answer can be joined of what lies in memory; of aggregates."""


class Asked(msgspec.Struct, frozen=True):
    """What a header block asks of a route, whatever the target: what it adds to the primary key, the fields that
    travel on, why it goes by the cache."""

    suffix: str
    forward: tuple[tuple[bytes, bytes], ...]
    bypass: str | None
    facts: Facts
    keyed: tuple[str, ...]
    unkeyed: tuple[str, ...]


class Block:
    """A request's header block, judged: whether the edge may answer it, and what of it selects an answer.

    `headers` are without X-Request-ID. `plain` is False for whatever the app must see. `form` is what may change the
    form of an answer: the codings, the conditions, the Origin. `proxied` is True where a proxy tells of the client.
    """

    __slots__ = (
        *("bases", "clients", "close", "form", "headers", "host", "memos", "origin", "plain", "proxied"),
        *("asked", "vary"),
    )

    def __init__(self, headers: list[tuple[bytes, bytes]], identity_key: IdentityKey = UNKEYED) -> None:
        self.headers = headers
        self.plain = not any(name in _NOT_PLAIN for name, _ in headers)
        self.proxied = any(name in _PROXIED for name, _ in headers)
        self.form = b"\n".join(name + b":" + value for name, value in headers if name in _FORMING)
        origins = values(headers, b"origin")
        self.origin = origins[0].decode("latin-1") if origins else None
        hosts = values(headers, b"host")
        self.host = hosts[0].decode("latin-1").lower() if hosts else ""
        self.close = any(
            item.strip(b" \t").lower() == b"close"
            for value in values(headers, b"connection")
            for item in value.split(b",")
        )
        self.bases: dict[Known, str | None] = {}
        self.vary = Suffixes(headers, _is_unseen, identity_key)
        self.clients: dict[str, bytes] = {}
        self.asked: dict[tuple[str, str], Asked] = {}
        self.memos: dict[bytes, Memo] = {}

    def base(self, known: Known) -> str | None:
        """What the counted inputs add to a primary key on a route; None where the request goes by the cache, and
        where a field counts that the block lacks."""
        asked = plan(known.route.keying, "", "", self.headers)
        open_to_upstream = known.route.follows_origin and known.route.keying.authorization == "pass"
        unshared = open_to_upstream and has(self.headers, b"authorization")
        unseen = any(map(_is_unseen, known.route.keying.vary or ()))
        base = None if asked.bypass is not None or unshared or unseen else asked.base[len(primary_key("", "")) :]
        self.bases[known] = base
        return base

    def plan(self, route: Route, method: str, origin: str, target: str) -> tuple[Plan, Facts]:
        """The plan and the facts of a request for `target` with this block, as `keys.plan` and `facts_of` have them."""
        primary, stem = primary_key(origin, target), stem_of(origin, target, route.keying.identity_key)
        asked = self.asked.get((route.name, method))
        if asked is None:
            made = plan(route.keying, origin, target, self.headers)
            facts = facts_of(method, self.headers, route.rules)
            asked = Asked(made.base[len(stem) :], made.forward, made.bypass, facts, made.keyed, made.unkeyed)
            self.asked[route.name, method] = asked
        base = stem + asked.suffix
        return Plan(primary, base, asked.forward, asked.bypass, asked.keyed, asked.unkeyed), asked.facts


def _is_unseen(name: str) -> bool:
    """Whether a block lacks this field that a response may vary on."""
    return name == "x-request-id" or name.startswith(":")


class Known:
    """A route as the edge knows it, and what is ready of its stored responses, by their keys."""

    __slots__ = ("endings", "ready", "recorder", "route")

    def __init__(self, route: Route, recorder: Recorder) -> None:
        self.route = route
        self.recorder = recorder
        self.ready: dict[str, Ready] = {}
        self.endings: dict[Result, Endings] = {}


class Spot:
    """A request line that the app has answered before."""

    __slots__ = ("head", "joints", "known", "line", "modern", "names", "primary", "recall", "stem", "target")

    def __init__(self, line: bytes, recall: Recall, known: Known, target: Target | None) -> None:
        self.line = line
        self.recall = recall
        self.known = known
        self.target = target
        self.head = line.startswith(b"HEAD ")
        self.modern = line.endswith(b"HTTP/1.1")
        self.primary = primary_key(recall.origin, recall.target)
        self.stem = stem_of(recall.origin, recall.target, recall.route.keying.identity_key)
        tags = (tag_name(tag) for tag in recall.tags)
        self.names = (EVERYTHING, key_name(self.primary), route_name(recall.route.name), *tags)
        self.joints: dict[str, Joint | None] = {}
