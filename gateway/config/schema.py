"""The shape of the configuration's models, read from their annotations, and how a value is shown.

A shape is an annotation: a model, a dict, or anything else, which is a leaf. A value is shown as in YAML, shortened,
and without secrets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from types import UnionType
from typing import Annotated, Literal, TypeGuard, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gateway.config.models import Config
from gateway.config.names import current_name
from gateway.config.yaml_document import Key, Value, shortened
from gateway.http.target import HIDDEN, is_credential


def is_model(shape: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(shape, type) and issubclass(shape, BaseModel)


def is_container(shape: object) -> bool:
    return is_model(shape) or get_origin(shape) is dict


def _members(annotation: object) -> Iterator[object]:
    """The possible types of `annotation`, without Annotated and Union."""
    if get_origin(annotation) is Annotated:
        yield from _members(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for arg in get_args(annotation):
            yield from _members(arg)
    else:
        yield annotation


def _shape(annotation: object) -> object:
    return next((member for member in _members(annotation) if is_container(member)), annotation)


def _child(shape: object, name: str) -> object | None:
    if is_model(shape):
        field = shape.model_fields.get(name)
        if field is None and getattr(shape, "flat", False):
            return str
        return _shape(field.annotation) if field else None
    return _shape(get_args(shape)[1]) if get_origin(shape) is dict else None


def shape_at(key: Key) -> object | None:
    shape: object | None = Config
    for name in key:
        shape = _child(shape, name)
    return shape


def current_key(key: Key) -> Key:
    """`key` with the current name of its setting, where its last word is a former one."""
    shape = shape_at(key[:-1])
    return (*key[:-1], current_name(key[-1], shape.model_fields)) if key and is_model(shape) else key


def field_at(key: Key) -> FieldInfo | None:
    """The field of a model that a key names."""
    shape = shape_at(key[:-1])
    return shape.model_fields.get(key[-1]) if is_model(shape) else None


def takes_list(shape: object) -> bool:
    return any(get_origin(member) is list for member in _members(shape))


def choices(shape: object) -> tuple[str, ...]:
    literals = [member for member in _members(shape) if get_origin(member) is Literal]
    return tuple(str(choice) for literal in literals for choice in get_args(literal))


def filled(value: Value, shape: object) -> Value:
    """A copy in which a mapping with nothing under it (`cors:`) is an empty one."""
    if not is_container(shape):
        return value
    if isinstance(value, dict):
        return {name: filled(item, _child(shape, name)) for name, item in value.items()}
    return {} if value is None else value


def leaves(value: Value, shape: object, key: Key) -> Iterator[tuple[Key, Value]]:
    if isinstance(value, dict) and value and is_container(shape):
        for name, item in value.items():
            yield from leaves(item, _child(shape, name), (*key, name))
    else:
        yield key, value


def known_keys(shape: object, value: Value, key: Key) -> Iterator[Key]:
    """All that may be set: the models' fields, and those of the entries that there are."""
    entries = value if isinstance(value, dict) else {}
    for name in shape.model_fields if is_model(shape) else entries:
        inner = (*key, name)
        yield inner
        if is_container(shape_at(inner)):
            yield from known_keys(shape_at(inner), entries.get(name), inner)


_SECRET_NAME = re.compile("token|secret|password|authorization", re.IGNORECASE)
_NO_SECRETS = frozenset(("tokens", "forward_token", "max_token_age"))
"""Settings with a word for a secret in their name whose values are none."""
# A word that may be meant as one of a setting's choices (`authorization: forward`), not a credential.
_MODE = re.compile("[a-z_]{1,12}")
# Up to the last @: a password with a slash makes an invalid URL, but is still a password.
_USER_INFO = re.compile(r"://\S*@")
_PARAMETER = re.compile(r"([?&]([^=&\s?]+)=)[^&\s]*")


def redact(key: Key, text: str) -> str:
    """`text`, a value of `key`, with `***` for secrets: headers of upstreams, tokens, passwords, credentials in a
    URL."""
    if _is_secret(key) and text not in ("{}", "null") and not (choices(shape_at(key)) and _MODE.fullmatch(text)):
        return "***"
    return without_credentials(text)


def without_credentials(text: str) -> str:
    """`text` with `***` for the passwords and for the credentials in the queries of the URLs in it."""
    return _PARAMETER.sub(_hidden, _USER_INFO.sub("://***@", text))


def _hidden(parameter: re.Match[str]) -> str:
    return parameter[1] + HIDDEN if is_credential(parameter[2]) else parameter[0]


def _is_secret(key: Key) -> bool:
    if bool(key and _SECRET_NAME.search(key[-1])) and key[2:3] != ("headers",) and key[-1] not in _NO_SECRETS:
        return True
    of_fields = key[:1] in (("upstreams",), ("routes",)) and key[2:3] == ("headers",)
    return of_fields and key[3:4] != ("response",) and key[4:5] != ("remove",)


def takes_variables(key: Key) -> bool:
    """Whether `${NAME}` in a value of `key` stands for a variable: in the headers of routes and upstreams."""
    return key[:1] in (("upstreams",), ("routes",)) and key[2:3] == ("headers",) and len(key) > 3


def in_short(key: Key) -> Key:
    """The key of an upstream's constant request header as it is written in short: `upstreams.NAME.headers.X-KEY`."""
    whole = ("headers", "request", "set")
    return (*key[:3], *key[5:]) if key[:1] == ("upstreams",) and key[2:5] == whole and len(key) > 5 else key


def as_yaml(value: Value) -> str:
    """As YAML writes it in one line."""
    if isinstance(value, dict | list):
        return _dumped(value) if value else str(value)
    return _scalar(type(value).__name__, value)


@lru_cache(maxsize=10_000)
def _scalar(_: str, value: str | float | None) -> str:  # by type too: 1, 1.0 and True are equal
    return _dumped(value)


def _dumped(value: Value) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def shown(key: Key, value: Value) -> str:
    short = clipped(value)
    return redact(key, short if isinstance(short, str) and short.isprintable() else as_yaml(short))


def clipped(value: Value) -> Value:
    match value:
        case str():
            return shortened(value)
        case list():
            return [_clipped_item(item) for item in value[:20]] + (["…"] if len(value) > 20 else [])
        case dict():
            return {name: _clipped_item(item) for name, item in list(value.items())[:20]}
    return value


def _clipped_item(item: Value) -> Value:
    return "…" if isinstance(item, list | dict) else clipped(item)
