"""The inputs of a `@cached` handler's response: what the handler may see of its request, and what it read.

Decides which fields and values a handler sees (`View`: those that a key can hold, with the values in the key, by
`headers.sent_value`), and which of the fields it read become part of the variant, as with an upstream's `Vary` (RFC
9111 §4.1). An input that no key can hold (every field at once, the scope itself, the client's address, values that a
middleware stored on the request) is recorded as unknown, and the response is then not shared.

Handlers access their request through `handler_request`, whose Request records here; `handler_tree` injects it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any
from urllib.parse import urlsplit

from fastapi.dependencies.models import Dependant
from starlette.types import Scope

from gateway.context import HOST_KEY
from gateway.http.headers import HOP_BY_HOP, Headers, connection_named, end_to_end, in_one_line, sent_value
from gateway.policy.keys import PRINCIPAL, Keying, Plan
from gateway.policy.vary import variant_suffix
from gateway.routing.handler_inputs import covered_readers

READING = "_gateway_reading"
"""The attribute of FastAPI's Request that is the Reading of its `@cached` handler; or why nothing of it is stored."""

HOST, SCHEME, ROOT = ":host", ":scheme", ":root"
KEY = "key="
"""The reader of the inputs of `key=`."""
MOST_FIELDS = 32
"""Maximum number of fields on which a handler's responses may vary: a handler that reads fields by client-chosen names
would have no limit."""

_FIELD = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+")
_UNSEEN = frozenset(
    (b"if-none-match", b"if-modified-since", b"if-match", b"if-unmodified-since", b"range", b"if-range")
) | frozenset((b"host", b"authorization", b"cookie", b"content-length", b"expect", PRINCIPAL))
"""Conditions and ranges are the cache's to answer; host, authorization and cookies are shown by rules of their own."""
_ADDRESSES = frozenset(
    ("forwarded", "x-forwarded-for", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "true-client-ip")
) | frozenset(("cf-connecting-ip", "fastly-client-ip", "x-original-forwarded-for", "x-envoy-external-address"))
_OF_ONE_REQUEST = frozenset(
    ("x-request-id", "x-correlation-id", "traceparent", "tracestate", "idempotency-key", "b3", "x-b3-traceid")
)
_PLACES = frozenset(
    (b"forwarded", b"x-host", b"x-original-host", b"x-scheme", b"x-url-scheme", b"front-end-https", b"x-original-url")
)
"""Fields beside `X-Forwarded-*` that name a host, a scheme or a URL: where `public_url` is set, they are not shown."""
_OF_MIDDLEWARE = frozenset(("state", "session", "user", "auth", "client"))
"""The kinds of inputs that a function `key=` may read by name, so that they are in the key."""


# --- the view ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Public:
    """The gateway's public address, by `public_url`, whatever the request says: the base of links."""

    url: str
    host: str
    scheme: str

    @classmethod
    def of(cls, url: str | None) -> Public | None:
        """`url` is without the path: that is the root path of each request."""
        parts = urlsplit(url) if url else None
        return cls(f"{parts.scheme}://{parts.netloc}", parts.netloc, parts.scheme) if parts is not None else None


Place = tuple[str, str, str]


class View:
    """A request as seen by a handler with `keying`: every field in one line, the keyed query parameters, and the public
    address. Fields are computed on access: a hit needs few."""

    def __init__(
        self, given: Headers, place: Place, plan: Plan, keying: Keying, query: str, public: Public | None
    ) -> None:
        self._given = given
        self._values: dict[str, str | None] = {}
        self._keying = keying
        self.query, self.public = query, public
        self.host, self.scheme, self.root = place
        self.cookies = [pair for pair in plan.forward if pair[0] == b"cookie"] if keying.cookies else []

    @cached_property
    def headers(self) -> list[tuple[bytes, bytes]]:
        shown = [pair for pair in end_to_end(self._given) if not self._is_hidden(pair[0])]
        return [*self._of_its_own, *in_one_line(shown)]

    @cached_property
    def _of_its_own(self) -> list[tuple[bytes, bytes]]:
        """The changed fields."""
        fields = [(b"host", self.host.encode("latin-1")), *self.cookies]
        if self.public:
            fields += [(b"x-forwarded-host", self.public.host.encode())]
            fields += [(b"x-forwarded-proto", self.public.scheme.encode())]
        return fields

    def _is_hidden(self, name: bytes) -> bool:
        if name == b"authorization":
            return self._keying.authorization == "ignore"
        return name in _UNSEEN or (self.public is not None and _names_a_place(name))

    @cached_property
    def _ending_here(self) -> frozenset[bytes]:
        return HOP_BY_HOP | connection_named(self._given)

    def value(self, name: str) -> str | None:
        if name not in self._values:
            self._values[name] = self._found(name)
        return self._values[name]

    def _found(self, name: str) -> str | None:
        key = name.encode("latin-1")
        for own, value in self._of_its_own:
            if own == key:
                return value.decode("latin-1")
        return None if self._is_hidden(key) or key in self._ending_here else sent_value(self._given, name)


def place_of(scope: Scope) -> Place:
    """Host, scheme and root path, as clients reach the app."""
    return _host(scope), scope.get("scheme", "http"), scope.get("app_root_path", scope.get("root_path", ""))


def places(place: Place) -> list[tuple[bytes, bytes]]:
    """The pseudo-fields by which answers vary on the place."""
    pairs = zip((b":host", b":scheme", b":root"), place, strict=True)
    return [(name, value.encode("latin-1", "backslashreplace")) for name, value in pairs]


def _names_a_place(name: bytes) -> bool:
    return name in _PLACES or (name.startswith(b"x-forwarded-") and name != b"x-forwarded-for")


def _host(scope: Scope) -> str:
    given = scope.get(HOST_KEY)
    if given is None:
        given = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1").lower()
    if given or not scope.get("server"):
        return given
    server, port = scope["server"]
    return f"{server}:{port}" if port else str(server)


# --- recorded reads -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Unknown:
    """An input that can't be in a key: its kind, a word for `Cache-Status`, what was read, and its reader."""

    kind: str
    what: str
    reader: str


def by_model(parameter: str) -> Unknown:
    """A header parameter whose model can see every field."""
    return Unknown("headers", f"all request fields, by the model of {parameter}", "a parameter")


@dataclass
class SoFar:
    """The fields that one handler's responses have read so far, and the inputs reported about it."""

    names: set[str] = field(default_factory=set)
    told: set[tuple[str, str]] = field(default_factory=set)
    """The kinds and readers of inputs: their names may be client-chosen."""

    def is_news(self, unknown: Unknown) -> bool:
        """Whether this was not reported before; it counts as reported now."""
        news = (unknown.kind, unknown.reader) not in self.told
        self.told.add((unknown.kind, unknown.reader))
        return news


class Reading:
    """The inputs of one request read by a handler and its dependencies.

    `pristine` is the state from the app's lifespan, the same for every
    request. `known` are fields that the key has already, or that are hidden.
    """

    def __init__(
        self,
        scope: Scope,
        plan: Plan,
        query: str,
        keying: Keying,
        so_far: SoFar,
        pristine: Mapping[str, Any],
        public: Public | None,
        path: str,
        dependant: Dependant,
    ) -> None:
        self.scope = scope
        self.plan = plan
        self.query = query
        self.keying = keying
        self.public = public
        self.path = path
        self.tree = dependant
        self._given: Headers = scope["headers"]
        self._place = place_of(scope)
        self.fields: set[str] = set()
        self.unknown: dict[Unknown, None] = {}
        self._excused: set[Unknown] = set()
        self._covered: frozenset[str] = frozenset()
        self.pristine = pristine
        self.own_state: dict[str, str] = {}
        self.own_scope: dict[str, tuple[Any, str]] = {}
        """The writes to the scope, with their authors."""
        self._so_far = so_far
        self._known = _known(keying, public)

    @property
    def target(self) -> str:
        return f"{self.path}?{self.query}" if self.query else self.path

    @cached_property
    def headers(self) -> Headers:
        """The fields by which responses are selected: the request's, and those of its place."""
        return [*self._given, *places(self._place)]

    @cached_property
    def view(self) -> View:
        """The view; a hit uses little of it."""
        return View(self._given, self._place, self.plan, self.keying, self.query, self.public)

    def read(self, name: str, reader: str) -> str | None:
        """The value of a request field, read by its name in lower case."""
        if not _FIELD.fullmatch(name):
            return None
        if name == "host":
            self.place(HOST)
        elif name not in self._known:
            self._note_field(name, reader)
        return self.view.value(name)

    def _note_field(self, name: str, reader: str) -> None:
        if name in _ADDRESSES:
            self.note("client", f"the field {name}", reader)
        elif name in _OF_ONE_REQUEST:
            self.note("request-id", f"the field {name}", reader)
        else:
            self.fields.add(name)

    def place(self, *names: str) -> None:
        self.fields.update(name for name in names if name not in self._known)

    def note(self, kind: str, what: str, reader: str) -> None:
        found = Unknown(kind, what, reader)
        self.unknown[found] = None
        self._excused.discard(found)

    @contextmanager
    def covering(self, takes: frozenset[str]) -> Iterator[None]:
        """While `key=` is evaluated, with the parameters `takes`: what it reads is in the key from then on, and so is
        what dependencies that reach the handler only through those have read."""
        readers = covered_readers(self.tree, takes) | {KEY}
        yield
        self._covered = frozenset(
            each.what for each in self.unknown if each.reader == KEY and each.kind in _OF_MIDDLEWARE
        )
        self._excused = {each for each in self.unknown if each.reader in readers}

    def inherit(self, writer: str, what: str, reader: str) -> None:
        """Note that `reader` takes what `writer` made, with all unknown inputs of that."""
        if writer != reader:
            for each in [each for each in self.unknown if each.reader == writer]:
                self.note(each.kind, what, reader)

    # --- for the engine -----------------------------------------------------------------------------------

    @property
    def names_so_far(self) -> frozenset[str]:
        """The fields that the handler's answers have read until now."""
        return frozenset(self._so_far.names | self.fields)

    def names(self) -> tuple[str, ...]:
        """The fields that the answer varies on: all that the handler's answers have read so far."""
        self._so_far.names |= self.fields
        return tuple(sorted(self._so_far.names))

    def unshared(self) -> Unknown | None:
        """The first input of the response that is in no key; None if all are."""
        for each in self.unknown:
            if each not in self._excused and each.what not in self._covered:
                return each
        if len(self._so_far.names | self.fields) > MOST_FIELDS:
            return Unknown("fields", f"more than {MOST_FIELDS} request fields", "it")
        return None

    def reason(self) -> str | None:
        found = self.unshared()
        return None if found is None else f"reads-{found.kind}"

    def agrees(self, headers: Headers) -> bool:
        """Whether the fields that were read have the same values in `headers`, by which the answer is stored."""
        names = self.names()
        return self.headers == headers or variant_suffix(names, self.headers) == variant_suffix(names, headers)

    def untold(self) -> Unknown | None:
        """The reason why the response is not shared, if it was not reported before."""
        found = self.unshared()
        return found if found is not None and self._so_far.is_news(found) else None


@lru_cache(maxsize=1024)
def _known(keying: Keying, public: Public | None) -> frozenset[str]:
    known = {name.decode() for name in _UNSEEN - {b"authorization"}} | set(keying.vary or ())
    if keying.vary is not None or keying.authorization != "pass":
        known.add("authorization")  # in the key, or hidden, or a bypass for all requests with it
    if public is not None:
        known |= {"x-forwarded-host", "x-forwarded-proto"}
    return frozenset(known)
