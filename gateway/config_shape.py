"""The shape of the configuration's models: what may be set where, read from their annotations.

A shape is an annotation: a model, a dict, or anything else, which is a leaf.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Literal, TypeGuard, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from .config import Config
from .document import Key, Value


def is_model(shape: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(shape, type) and issubclass(shape, BaseModel)


def is_container(shape: object) -> bool:
    return is_model(shape) or get_origin(shape) is dict


def _members(annotation: object) -> Iterator[object]:
    """What a value of `annotation` may be, without Annotated and Union."""
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
        return _shape(field.annotation) if field else None
    return _shape(get_args(shape)[1]) if get_origin(shape) is dict else None


def shape_at(key: Key) -> object | None:
    shape: object | None = Config
    for name in key:
        shape = _child(shape, name)
    return shape


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
