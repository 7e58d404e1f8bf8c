"""The Request that a `@cached` handler or one of its dependencies gets: it shows only inputs that a key can hold, and
records reads.

FastAPI makes one Request and passes it to the endpoint and to all dependencies. Each of them gets its own `SeenRequest`
instead (`handler_tree` injects it), so that each read is recorded with its reader, and reads by FastAPI and Starlette
themselves are not. `handler_reading` decides what a read means for the key, and whether the response may be shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.datastructures import URL, Headers, QueryParams, State
from starlette.requests import cookie_parser
from starlette.types import Message, Scope

from gateway.http.headers import split_list, without
from gateway.policy.keys import Keying
from gateway.routing.handler_reading import HOST, ROOT, SCHEME, Reading, View

_CONSTANT = frozenset(("type", "asgi", "app", "router", "route", "endpoint", "path_params", "path"))
_OF_FRAMEWORKS = frozenset(
    ("fastapi", "fastapi_inner_astack", "fastapi_function_astack", "fastapi_middleware_astack")
) | frozenset(("fastapi_async_cleanup_scopes", "starlette.exception_handlers"))


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
        """The elements of a list, from all its lines: the key has them in one (RFC 9110 §5.3)."""
        value = self._reading.read(key.lower(), self._reader)
        return [] if value is None else split_list(value)


def declared_view(request: Request, reading: Reading) -> None:
    """Make FastAPI extract declared parameters from the view. Its Request caches parsed values in these attributes."""
    place: Any = request
    place._headers = DeclaredHeaders(reading, "a parameter")
    place._query_params = QueryParams(reading.query) if reading.query else _NO_QUERY
    place._cookies = _cookies(reading.view)


def without_ignored(request: Request, keying: Keying) -> None:
    """Hide the credentials that the handler ignores from a request that bypasses the cache, too."""
    place: Any = request
    if keying.authorization == "ignore":
        place._headers = Headers(raw=without(request.headers.raw, b"authorization"))
    if keying.cookies is not None:
        kept = {name: value for name, value in request.cookies.items() if name in keying.cookies}
        line = "; ".join(f"{name}={value}" for name, value in kept.items()).encode("latin-1")
        others = without(request.headers.raw, b"cookie")
        place._cookies, place._headers = kept, Headers(raw=[*others, *([(b"cookie", line)] if kept else [])])


_NO_QUERY = QueryParams("")


def _cookies(view: View) -> dict[str, str]:
    return cookie_parser(view.cookies[0][1].decode("latin-1")) if view.cookies else {}


class SeenScope(MutableMapping[str, Any]):
    """A scope that records reads. Writes go to the request's own scope as well."""

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
    """Values that a middleware left on a request, each read recorded by name: `request.session['user']`."""

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
    """`request.state`: the lifespan's values are the same for all, values of the handler and its dependencies follow
    from what they read; the rest comes from a middleware."""

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
    """The receive channel of a request without a body; a request with one bypasses the cache."""

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
        """False: the response is for all waiting requests."""
        return False

    async def send_push_promise(self, path: str) -> None:
        """None: a push would be this client's alone."""


def response_scope(reading: Reading) -> Scope:
    """The scope for a response that runs as ASGI: nothing in it is one client's."""
    raw = reading.scope
    constant = {key: raw[key] for key in _CONSTANT if key in raw}
    target = {"raw_path": reading.path.encode("ascii"), "query_string": reading.view.query.encode("ascii")}
    return {**constant, **target, "method": "GET", "headers": [], "scheme": "http", "extensions": {}}
