"""The settings `headers` of routes and upstreams: which fields of requests and responses are set, added and removed,
and which can't be changed. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, ValidationError, model_serializer, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from gateway.config.names import no_modes
from gateway.config.types import FIELD_NAME, Model, TextList
from gateway.http.field_changes import FieldChanges
from gateway.http.headers import HOP_BY_HOP

_OF_THE_HOP = dict.fromkeys(
    (name.decode("ascii") for name in HOP_BY_HOP), "belongs to one connection, not to a message"
)
_FRAMING = {"content-length": "says where the message ends; the gateway writes it"}
OF_REQUESTS = {
    **_OF_THE_HOP,
    **_FRAMING,
    "host": "is the upstream's setting `host`",
    "expect": "is answered by the gateway itself",
    "x-request-id": "is made for each request",
    "via": "says by which gateways a message came",
    **dict.fromkeys(("range", "if-range"), "requests a part of a response that is stored complete"),
    **dict.fromkeys(
        ("if-match", "if-none-match", "if-modified-since", "if-unmodified-since"), "is a condition on what is stored"
    ),
}
_OF_RESPONSES = {
    **_OF_THE_HOP,
    **_FRAMING,
    "age": "says how old the entry is, which the gateway counts",
    "date": "says when the response was made",
    "content-encoding": "says how the body is compressed",
    "content-range": "says which part of the body this is",
    **dict.fromkeys(("content-digest", "repr-digest", "digest", "content-md5"), "is a digest of the body"),
    **dict.fromkeys(
        ("x-request-id", "x-process-time", "server-timing", "cache-status", "gateway-explained"),
        "is made by the gateway for each response",
    ),
    **dict.fromkeys(("gateway-parts", "gateway-complete"), "says what became of an aggregate's parts"),
}
_VALIDATORS = dict.fromkeys(("etag", "last-modified"), "distinguishes representations; it can be removed, not set")
_SINGLE = frozenset(
    ("content-type", "location", "content-location", "retry-after", "expires", "server", "authorization", "user-agent")
)
"""Fields that stand once in a message."""

OneOrMore = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]


class _Changes(Model):
    """Common to all changes. `reserved` are the names that can't be changed, each with its reason."""

    reserved: ClassVar[Mapping[str, str]] = {}
    only_removed: ClassVar[Mapping[str, str]] = {}

    set: dict[str, str] = {}
    """Fields with these values, in place of those of the same names."""
    add: dict[str, OneOrMore] = {}
    """Fields with these values, beside those of the same names; a list adds several."""
    remove: Annotated[TextList, BeforeValidator(no_modes("remove"))] = []
    """Names of fields that are taken out."""

    @model_validator(mode="after")
    def _checked(self) -> _Changes:
        problems = [*self._problems()]
        if problems:
            found = [
                InitErrorDetails(
                    type=PydanticCustomError("value_error", "{message}", {"message": message}), loc=loc, input=None
                )
                for loc, message in problems
            ]
            raise ValidationError.from_exception_data("headers", found)
        return self

    def _problems(self) -> Iterable[tuple[tuple[str, ...], str]]:
        seen: dict[str, str] = {}
        for place in ("set", "add", "remove"):
            for written in getattr(self, place):
                name = written.lower()
                loc = (place,) if place == "remove" else (place, written)
                if not FIELD_NAME.fullmatch(written):
                    yield loc, f"{written!r} isn't a valid header name"
                elif reason := self.reserved.get(name) or (place != "remove" and self.only_removed.get(name)):
                    yield loc, f"{written} can't be changed: it {reason}"
                elif place == "add" and name in _SINGLE:
                    yield loc, f"{written} stands once in a message; write it under `set`"
                elif seen.get(name) == place or (name in seen and "remove" in (place, seen[name])):
                    yield loc, f"{written} is there twice: under `{seen[name]}` and `{place}`"
                seen[name] = place
        for place, name, value in self._values():
            if not value.isprintable() or any(ord(char) > 255 for char in value) or value != value.strip():
                yield (
                    (place, name),
                    f"the value of {name} has a character that isn't allowed in a header, or spaces around it",
                )

    def _values(self) -> Iterable[tuple[str, str, str]]:
        yield from (("set", name, value) for name, value in self.set.items())
        yield from (("add", name, value) for name, values in self.add.items() for value in values)

    @cached_property
    def changes(self) -> FieldChanges:
        put = {name.lower(): value for name, value in self.set.items()}
        added = {name.lower(): values for name, values in self.add.items()}
        return FieldChanges.of(put, added, [name.lower() for name in self.remove])

    @model_serializer(mode="plain")
    def _only_what_is_there(self) -> dict[str, Any]:
        put = {name.lower(): value for name, value in self.set.items()}
        added = {name.lower(): values for name, values in self.add.items()}
        members = {"set": put, "add": added, "remove": [name.lower() for name in self.remove]}
        return {name: value for name, value in members.items() if value}


class RequestFields(_Changes):
    """Fields of requests to the upstream: constants, the same for every client. They are part of the cache key of a
    route. `${NAME}` in a value stands for the environment variable NAME, or for what is in the file that NAME_FILE
    names."""

    reserved = OF_REQUESTS


class ResponseFields(_Changes):
    """Fields of responses to clients: of hits, misses, 304s, errors and aggregates alike. `Vary`, `private` and
    `no-store` stay where they protect what caches behind the gateway hold."""

    reserved = _OF_RESPONSES
    only_removed = _VALIDATORS


class HeadersConfig(Model):
    """Fields that are set, added and removed: those of an upstream first, then those of the route."""

    request: RequestFields = RequestFields()
    """Fields of requests to the upstream."""
    response: ResponseFields = ResponseFields()
    """Fields of responses to clients."""

    @model_serializer(mode="plain")
    def _only_what_is_there(self) -> dict[str, Any]:
        members = {"request": self.request.model_dump(), "response": self.response.model_dump()}
        return {name: value for name, value in members.items() if value}
