"""`key=` of `@cached`: inputs of a handler's response that can't be read off the request, as text for its key.

It names parameters of the handler, or is a function of them: a current user from a dependency, a middleware's value in
`request.state`. Values are serialised by their content, never by `str`, which two users may share.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import inspect
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from pydantic import BaseModel

from gateway.config.names import did_you_mean
from gateway.policy.identity_key import IdentityKey

_PLAIN = (str, bytes, bool, int, float, complex, type(None), uuid.UUID, decimal.Decimal)
_DATES = (datetime.date, datetime.time, datetime.datetime, datetime.timedelta, datetime.timezone)


class Unwritable(TypeError):
    """A value of which it is not known what makes it equal to another."""


KeyFunction = Callable[..., object]


class Key:
    """The part of a handler's arguments in its key. `takes` are the parameters that it uses."""

    def __init__(self, function: KeyFunction, takes: frozenset[str], request: str | None) -> None:
        self._function = function
        self.takes = takes
        self._request = request

    def line(self, arguments: Mapping[str, Any], request: Any, secret: IdentityKey) -> str:
        """A line for the key of a call with `arguments`. Raises Unwritable."""
        given = {name: arguments[name] for name in self.takes}
        if self._request is not None:
            given[self._request] = request
        text = written(self._function(**given))
        return "\nkey=:" + secret.digest("key=", text)


def key_of(given: Callable[..., Any] | Sequence[str], parameters: Iterable[str]) -> Key:
    """`given` is what was written as `key=`, `parameters` are the handler's. Raises ValueError."""
    known = list(parameters)
    if callable(given):
        return _of_function(given, known)
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        wanted = f"; write key=[{given!r}]" if isinstance(given, str) else ""
        raise ValueError(f"must be a list of the handler's parameters, or a function of them{wanted}")
    for name in given:
        _check_known(name, known)
    names = tuple(given)
    return Key(lambda **values: [values[name] for name in names], frozenset(names), None)


def _of_function(function: KeyFunction, known: list[str]) -> Key:
    if inspect.iscoroutinefunction(function):
        raise ValueError("must not be an async function; compute the value in a dependency and name that")
    takes = []
    for name, each in inspect.signature(function).parameters.items():
        if each.kind in (each.VAR_KEYWORD, each.VAR_POSITIONAL, each.POSITIONAL_ONLY):
            raise ValueError(f"must be a function of named parameters; {each} isn't one")
        if name in known:
            takes.append(name)
        elif name != "request" and each.default is each.empty:
            _check_known(name, known)
    request = "request" if "request" in inspect.signature(function).parameters and "request" not in known else None
    return Key(function, frozenset(takes), request)


def _check_known(name: object, known: list[str]) -> None:
    if name not in known:
        hint = did_you_mean(str(name), known)
        raise ValueError(f"{name!r} isn't a parameter of the handler, which has {', '.join(known) or 'none'}{hint}")


# --- values ------------------------------------------------------------------------------------------------


def written(value: object) -> str:
    """`value` as unique text. Raises Unwritable if its type's content is unknown."""
    if isinstance(value, enum.Enum):
        return f"{_name(value)}.{value.name}"
    if isinstance(value, (*_PLAIN, *_DATES)):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(sorted(f"{written(key)}: {written(each)}" for key, each in value.items())) + "}"
    if isinstance(value, set | frozenset):
        return "set {" + ", ".join(sorted(map(written, value))) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(written, value)) + "]"
    fields = _fields(value)
    if fields is None:
        raise Unwritable(
            f"key= returned a {_name(value)}, which can't be compared by value; return what identifies it, such as "
            "key=lambda user: user.id"
        )
    return f"{_name(value)} {written(fields)}"


def _fields(value: object) -> Mapping[str, object] | None:
    if isinstance(value, BaseModel):
        return {**value.__dict__, **(value.__pydantic_extra__ or {}), **(value.__pydantic_private__ or {})}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    if isinstance(value, msgspec.Struct):
        return {name: getattr(value, name) for name in value.__struct_fields__}
    return None


def _name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
