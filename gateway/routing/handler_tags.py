"""The tags of `@cached` handlers: made of the values of path parameters, as the handler has them, not of their spelling
in the URL."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any

from fastapi.dependencies.models import Dependant
from pydantic_core import PydanticSerializationError, to_jsonable_python

from gateway.policy.claim_tags import render_tags
from gateway.policy.identity_key import IdentityKey


def rendered(
    tags: Iterable[str],
    dependant: Dependant,
    parameters: Mapping[str, Any],
    identity_key: IdentityKey,
    claims: Mapping[str, str] = MappingProxyType({}),
) -> tuple[str, ...]:
    """The tags of a request with these path parameters, whose types `dependant` and its dependencies declare, and of a
    principal with these claims."""
    tags = tuple(tags)
    if not tags:
        return ()
    values = {name: text_of(value) for name, value in {**parameters, **_typed(dependant, parameters)}.items()}
    return render_tags(tags, values, claims, identity_key)


def _typed(dependant: Dependant, parameters: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for child in dependant.dependencies:
        values.update(_typed(child, parameters))
    for each in dependant.path_params:  # what the handler itself declares counts before its dependencies
        if each.alias in parameters:
            value, errors = each.validate(parameters[each.alias], values={}, loc=())
            if not errors:
                values[each.alias] = value
    return values


def text_of(value: object) -> str:
    """A value as tags have it: equal values have one text. As in JSON: `true`, ISO 8601; times with a zone in UTC,
    numbers without zeros that mean nothing, an enumeration's value."""
    if isinstance(value, enum.Enum):
        return text_of(value.value)
    if isinstance(value, datetime) and value.tzinfo is not None:
        value = value.astimezone(UTC)
    if isinstance(value, Decimal) and value.is_finite():
        return f"{value.normalize() or Decimal(0):f}"
    try:
        value = to_jsonable_python(value)
    except PydanticSerializationError:
        return str(value)
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
