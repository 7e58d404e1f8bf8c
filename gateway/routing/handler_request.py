"""The request that a `@cached` handler and its dependencies are handed: it shows what a key can hold, and notes what of
it is read.

A cache must know all inputs of the answers whose life it decides. Those that a handler declares are in its key; those
that it reads from the Request are noted here while it runs, and select among its answers as an upstream's `Vary` would
(RFC 9111 §4.1). What can be in no key (every field at once, the scope itself, the client's address, what a middleware
left there) is noted as unknown: such an answer is not shared.

FastAPI makes one Request for a request and hands it to the endpoint and all dependencies. Each of them is handed a
`SeenRequest` of its own in its place (`handler_tree`), so that a read is known by its reader, and what FastAPI and
Starlette read for themselves is not taken for a handler's. What is shown is made of the same values as the key
(`headers.sent_value`): requests with one key look the same to a handler.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.dependencies.models import Dependant
from starlette.datastructures import URL, Headers, QueryParams, State
from starlette.requests import cookie_parser
from starlette.types import Message, Scope

from gateway.http.headers import HOP_BY_HOP, connection_named, end_to_end, in_one_line, sent_value, split_list, without
from gateway.http.headers import Headers as Fields
from gateway.policy.keys import Keying, Plan
from gateway.policy.vary import variant_suffix
from gateway.routing.handler_inputs import covered_readers

READING = "_gateway_reading"
"""The attribute of FastAPI's Request that is the Reading of its `@cached` handler; or why nothing of it is stored."""

HOST, SCHEME, ROOT = ":host", ":scheme", ":root"
KEY = "key="
"""Who reads what `key=` is made of."""
MOST_FIELDS = 32
"""How many fields a handler's answers may vary on: one that reads fields by names of a client's choosing has no end."""

_FIELD = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+")
_UNSEEN = frozenset(
    (b"if-none-match", b"if-modified-since", b"if-match", b"if-unmodified-since", b"range", b"if-range")
) | frozenset((b"host", b"authorization", b"cookie", b"content-length", b"expect"))
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
_CONSTANT = frozenset(("type", "asgi", "app", "router", "route", "endpoint", "path_params", "path"))
_OF_FRAMEWORKS = frozenset(
    ("fastapi", "fastapi_inner_astack", "fastapi_function_astack", "fastapi_middleware_astack")
) | frozenset(("fastapi_async_cleanup_scopes", "starlette.exception_handlers"))
_OF_MIDDLEWARE = frozenset(("state", "session", "user", "auth", "client"))
"""The kinds of what a function `key=` may read by name, so that it is in the key."""


# --- what is shown -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Public:
    """Where clients find the gateway, by `public_url`, whatever their requests say: what links are made of."""

    url: str
    host: str
    scheme: str

    @classmethod
    def of(cls, url: str | None) -> Public | None:
        parts = urlsplit(url) if url else None
        return cls(url, parts.netloc, parts.scheme) if url and parts is not None else None


class View:
    """What a handler whose key is `keying` sees of a request: every field in one line, the query parameters that count,
    and the place. Fields are worked out when they are looked at: of a hit few are."""

    def __init__(self, scope: Scope, plan: Plan, keying: Keying, query: str, public: Public | None) -> None:
        self._given: Fields = scope["headers"]
        self._keying = keying
        self.query, self.public = query, public
        self.host, self.scheme, self.root = _place(scope)
        self.cookies = [pair for pair in plan.forward if pair[0] == b"cookie"] if keying.cookies else []

    @cached_property
    def headers(self) -> list[tuple[bytes, bytes]]:
        shown = [pair for pair in end_to_end(self._given) if not self._is_hidden(pair[0])]
        return [*self._of_its_own, *in_one_line(shown)]

    @cached_property
    def _of_its_own(self) -> list[tuple[bytes, bytes]]:
        """The fields that are not as they came."""
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
        key = name.encode("latin-1")
        for own, value in self._of_its_own:
            if own == key:
                return value.decode("latin-1")
        return None if self._is_hidden(key) or key in self._ending_here else sent_value(self._given, name)


def _place(scope: Scope) -> tuple[str, str, str]:
    return _host(scope), scope.get("scheme", "http"), scope.get("app_root_path", scope.get("root_path", ""))


def places_of(scope: Scope) -> list[tuple[bytes, bytes]]:
    """The pseudo-fields by which answers vary on the place."""
    pairs = zip((b":host", b":scheme", b":root"), _place(scope), strict=True)
    return [(name, value.encode("latin-1", "backslashreplace")) for name, value in pairs]


def _names_a_place(name: bytes) -> bool:
    return name in _PLACES or (name.startswith(b"x-forwarded-") and name != b"x-forwarded-for")


def _host(scope: Scope) -> str:
    given = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1").lower()
    if given or not scope.get("server"):
        return given
    server, port = scope["server"]
    return f"{server}:{port}" if port else str(server)


# --- what is read ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Unknown:
    """An input that can be in no key: its kind, a word that `Cache-Status` shows, what was read, and who read it."""

    kind: str
    what: str
    reader: str


def by_model(parameter: str) -> Unknown:
    """What a header parameter reads whose model can see every field."""
    return Unknown("headers", f"all request fields, by the model of {parameter}", "a parameter")


@dataclass
class SoFar:
    """The fields that the answers of one handler have read so far, and what was told of it."""

    names: set[str] = field(default_factory=set)
    told: set[tuple[str, str]] = field(default_factory=set)
    """Of which kinds and readers: what was read may have a name of a client's choosing."""

    def is_news(self, unknown: Unknown) -> bool:
        """Whether this was not told before; from now on it was."""
        news = (unknown.kind, unknown.reader) not in self.told
        self.told.add((unknown.kind, unknown.reader))
        return news


class Reading:
    """What is read of one request by a handler and its dependencies.

    `headers` are those by which its answers are selected; `pristine` is the state that the app's lifespan gave, the
    same for every request. `known` are fields that the key has already, or that nobody is shown.
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
        self.headers: Fields = [*scope["headers"], *places_of(scope)]
        self.fields: set[str] = set()
        self.unknown: dict[Unknown, None] = {}
        self._excused: set[Unknown] = set()
        self._covered: frozenset[str] = frozenset()
        self.pristine = pristine
        self.own_state: dict[str, str] = {}
        self.own_scope: dict[str, tuple[Any, str]] = {}
        """What was written to the scope, and by whom."""
        self._so_far = so_far
        self._known = _known(keying, public)

    @property
    def target(self) -> str:
        return f"{self.path}?{self.query}" if self.query else self.path

    @cached_property
    def view(self) -> View:
        """What is shown; of a hit, little of it is looked at."""
        return View(self.scope, self.plan, self.keying, self.query, self.public)

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
    def covering(self, takes: frozenset[str]) -> Iterator[SeenRequest]:
        """While `key=` is worked out, of the parameters `takes`: what it reads is in the key from then on, and so is
        what the dependencies that reach the handler by those alone have read until now."""
        readers = covered_readers(self.tree, takes) | {KEY}
        yield SeenRequest(self, KEY)
        self._covered = frozenset(
            each.what for each in self.unknown if each.reader == KEY and each.kind in _OF_MIDDLEWARE
        )
        self._excused = {each for each in self.unknown if each.reader in readers}

    def inherit(self, writer: str, what: str, reader: str) -> None:
        """Note that `reader` takes what `writer` made, with all unknown inputs of that."""
        if writer != reader:
            for each in [each for each in self.unknown if each.reader == writer]:
                self.note(each.kind, what, reader)

    # --- as the engine asks ----------------------------------------------------------------------------

    @property
    def names_so_far(self) -> frozenset[str]:
        """The fields that the handler's answers have read until now."""
        return frozenset(self._so_far.names | self.fields)

    def names(self) -> tuple[str, ...]:
        """The fields that the answer varies on: all that the handler's answers have read so far."""
        self._so_far.names |= self.fields
        return tuple(sorted(self._so_far.names))

    def unshared(self) -> Unknown | None:
        """The first input of the answer that is in no key; None where all are."""
        for each in self.unknown:
            if each not in self._excused and each.what not in self._covered:
                return each
        if len(self._so_far.names | self.fields) > MOST_FIELDS:
            return Unknown("fields", f"more than {MOST_FIELDS} request fields", "it")
        return None

    def reason(self) -> str | None:
        found = self.unshared()
        return None if found is None else f"reads-{found.kind}"

    def agrees(self, headers: Fields) -> bool:
        """Whether the fields that were read have the same values in `headers`, by which the answer is stored."""
        names = self.names()
        return self.headers == headers or variant_suffix(names, self.headers) == variant_suffix(names, headers)

    def untold(self) -> Unknown | None:
        """What is not shared for, where that was not told before."""
        found = self.unshared()
        return found if found is not None and self._so_far.is_news(found) else None


@lru_cache(maxsize=1024)
def _known(keying: Keying, public: Public | None) -> frozenset[str]:
    known = {name.decode() for name in _UNSEEN - {b"authorization"}} | set(keying.vary or ())
    if keying.vary is not None or keying.authorization != "pass":
        known.add("authorization")  # in the key, or not shown, or all who send it pass by
    if public is not None:
        known |= {"x-forwarded-host", "x-forwarded-proto"}
    return frozenset(known)


# --- as handlers see it ------------------------------------------------------------------------------------


class SeenHeaders(Headers):
    """A request's fields, each read noted by its name, and any way to see all of them as unknown."""

    def __init__(self, reading: Reading, reader: str) -> None:
        self._reading, self._reader = reading, reader

    @property
    def _list(self) -> list[tuple[bytes, bytes]]:  # type: ignore[override]
        self._reading.note("headers", "all request fields", self._reader)
        return list(self._reading.view.headers)

    def __getitem__(self, key: str) -> str:
        value = self._reading.read(key.lower(), self._reader)
        if value is None:
            raise KeyError(key)
        return value

    def __contains__(self, key: Any) -> bool:
        return self._reading.read(key.lower(), self._reader) is not None

    def getlist(self, key: str) -> list[str]:
        value = self._reading.read(key.lower(), self._reader)
        return [] if value is None else [value]


class DeclaredHeaders(SeenHeaders):
    """The fields of which FastAPI takes what parameters declare. A model takes all and keeps those that it has; one
    that can see others is known as such (`handler_inputs`)."""

    @property
    def _list(self) -> list[tuple[bytes, bytes]]:  # type: ignore[override]
        return list(self._reading.view.headers)

    def getlist(self, key: str) -> list[str]:
        """The elements of a list, however many lines they came in: the key has them in one (RFC 9110 §5.3)."""
        value = self._reading.read(key.lower(), self._reader)
        return [] if value is None else split_list(value)


def declared_view(request: Request, reading: Reading) -> None:
    """Let FastAPI take what is declared from what is shown. Its Request keeps what it has parsed in these places."""
    place: Any = request
    place._headers = DeclaredHeaders(reading, "a parameter")
    place._query_params = QueryParams(reading.view.query)
    place._cookies = _cookies(reading.view)


def without_ignored(request: Request, keying: Keying) -> None:
    """Let a request that goes by the cache, too, show nothing of the credentials that its handler ignores."""
    place: Any = request
    if keying.authorization == "ignore":
        place._headers = Headers(raw=without(request.headers.raw, b"authorization"))
    if keying.cookies is not None:
        kept = {name: value for name, value in request.cookies.items() if name in keying.cookies}
        line = "; ".join(f"{name}={value}" for name, value in kept.items()).encode("latin-1")
        others = without(request.headers.raw, b"cookie")
        place._cookies, place._headers = kept, Headers(raw=[*others, *([(b"cookie", line)] if kept else [])])


def _cookies(view: View) -> dict[str, str]:
    return cookie_parser(view.cookies[0][1].decode("latin-1")) if view.cookies else {}


class SeenScope(MutableMapping[str, Any]):
    """A scope that notes what is read of it. What is written to it is written to the request's own as well."""

    def __init__(self, reading: Reading, reader: str) -> None:
        self._reading, self._reader = reading, reader

    def __getitem__(self, key: str) -> Any:
        reading, raw = self._reading, self._reading.scope
        if key in reading.own_scope:
            value, writer = reading.own_scope[key]
            reading.inherit(writer, f"scope[{key!r}]", self._reader)
            return value
        if key in _CONSTANT or key in _OF_FRAMEWORKS:
            return raw[key]
        if key in _SHOWN:
            return _SHOWN[key](reading)
        if isinstance(key, str) and key.startswith("gateway."):
            raise KeyError(key)
        self._note(key)
        return list(reading.view.headers) if key == "headers" else raw[key]

    def _note(self, key: object) -> None:
        kind = key if key in ("client", "state", "session", "user", "auth", "headers") else "scope"
        self._reading.note(str(kind), f"scope[{key!r}]", self._reader)

    def __setitem__(self, key: str, value: Any) -> None:
        self._reading.own_scope[key] = (value, self._reader)
        if key != "headers":
            self._reading.scope[key] = value

    def __delitem__(self, key: str) -> None:
        self._note(key)
        self._reading.own_scope.pop(key, None)
        self._reading.scope.pop(key, None)

    def __iter__(self) -> Iterator[str]:
        self._reading.note("scope", "the scope as a whole", self._reader)
        keys = [*self._reading.scope, *self._reading.own_scope]
        return iter(dict.fromkeys(key for key in keys if not key.startswith("gateway.")))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def copy(self) -> dict[str, Any]:
        return dict(self)


def _root(reading: Reading) -> str:
    reading.place(ROOT)
    return str(reading.scope.get("root_path", ""))


def _app_root(reading: Reading) -> str:
    reading.place(ROOT)
    return reading.view.root


def _scheme(reading: Reading) -> str:
    reading.place(SCHEME)
    return reading.view.scheme


_SHOWN: Mapping[str, Callable[[Reading], Any]] = {
    "method": lambda reading: "GET",  # a HEAD is answered from the same answer
    "query_string": lambda reading: reading.view.query.encode("ascii"),
    "raw_path": lambda reading: reading.path.encode("ascii"),
    "extensions": lambda reading: {},
    "scheme": _scheme,
    "root_path": _root,
    "app_root_path": _app_root,
}


class _Items(MutableMapping[str, Any]):
    """What a middleware left at a request, each item noted by its name: `request.session['user']`."""

    kind = "session"
    shown = "request.session[{!r}]"

    def __init__(self, reading: Reading, reader: str, items: MutableMapping[str, Any]) -> None:
        self._reading, self._reader, self._items = reading, reader, items

    def _note(self, key: str) -> None:
        self._reading.note(self.kind, self.shown.format(key), self._reader)

    def __getitem__(self, key: str) -> Any:
        self._note(key)
        return self._items[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._note(key)
        self._items[key] = value

    def __delitem__(self, key: str) -> None:
        self._note(key)
        del self._items[key]

    def __iter__(self) -> Iterator[str]:
        self._reading.note(self.kind, f"request.{self.kind}", self._reader)
        return iter(list(self._items))

    def __len__(self) -> int:
        return len(list(iter(self)))


class _StateItems(_Items):
    """`request.state`: the lifespan's is the same for all, what handler and dependencies put there follows from what
    they read; the rest a middleware put there."""

    kind = "state"
    shown = "request.state.{}"

    def _note(self, key: str) -> None:
        reading, what = self._reading, self.shown.format(key)
        if key in reading.own_state:
            reading.inherit(reading.own_state[key], what, self._reader)
        elif key not in reading.pristine or self._items.get(key) is not reading.pristine[key]:
            reading.note(self.kind, what, self._reader)

    def __setitem__(self, key: str, value: Any) -> None:
        self._reading.own_state[key] = self._reader
        self._items[key] = value


@dataclass(frozen=True)
class _NoBody:
    """What a request that has no body receives; one that has one goes by the cache."""

    reading: Reading
    reader: str

    async def __call__(self) -> Message:
        self.reading.note("body", "the body", self.reader)
        return {"type": "http.request", "body": b"", "more_body": False}


class SeenRequest(Request):
    """A request as one handler or dependency, its `reader`, is handed it."""

    def __init__(self, reading: Reading, reader: str) -> None:
        super().__init__(SeenScope(reading, reader), _NoBody(reading, reader))
        self.reading, self._reader = reading, reader

    def _unknown(self, kind: str) -> None:
        self.reading.note(kind, f"request.{kind}", self._reader)

    @property
    def headers(self) -> Headers:
        return SeenHeaders(self.reading, self._reader)

    @property
    def query_params(self) -> QueryParams:
        return QueryParams(self.reading.view.query)

    @property
    def cookies(self) -> dict[str, str]:
        return _cookies(self.reading.view)

    @property
    def url(self) -> URL:
        return self._url_at(self.scope["path"], self.reading.view.query)

    @property
    def base_url(self) -> URL:
        view = self.reading.view
        path = view.root.rstrip("/") + "/"
        if view.public is not None:
            self.reading.place(ROOT)
            return URL(view.public.url.rstrip("/") + path)
        return self._url_at(path, "")

    def _url_at(self, path: str, query: str) -> URL:
        view = self.reading.view
        self.reading.place(HOST, SCHEME, ROOT)
        host = [(b"host", view.host.encode("latin-1"))] if view.host else []
        plain = {"scheme": view.scheme, "path": path, "query_string": query.encode("ascii"), "headers": host}
        return URL(scope=plain)

    @property
    def client(self) -> Any:
        self._unknown("client")
        return Request(self.reading.scope).client

    @property
    def session(self) -> Any:
        return _Items(self.reading, self._reader, Request(self.reading.scope).session)

    @property
    def auth(self) -> Any:
        self._unknown("auth")
        return Request(self.reading.scope).auth

    @property
    def user(self) -> Any:
        self._unknown("user")
        return Request(self.reading.scope).user

    @property
    def state(self) -> State:
        items: Any = _StateItems(self.reading, self._reader, self.reading.scope.setdefault("state", {}))
        return State(items)

    async def is_disconnected(self) -> bool:
        """False: the answer is for all who wait for it."""
        return False

    async def send_push_promise(self, path: str) -> None:
        """None: a push would be this client's alone."""


def response_scope(reading: Reading) -> Scope:
    """The scope for a response that runs as ASGI: nothing in it is one client's."""
    raw = reading.scope
    constant = {key: raw[key] for key in _CONSTANT if key in raw}
    target = {"raw_path": reading.path.encode("ascii"), "query_string": reading.view.query.encode("ascii")}
    return {**constant, **target, "method": "GET", "headers": [], "scheme": "http", "extensions": {}}
