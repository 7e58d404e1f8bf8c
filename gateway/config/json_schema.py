"""The JSON Schema of the configuration, for completion and checks in editors: `gateway schema`, and
docs/gateway.schema.json.

It describes what the file may contain, with the meanings and defaults of the models. It accepts more than
`gateway check` does, which also compares settings with one another.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Iterator
from itertools import pairwise
from textwrap import dedent
from typing import Annotated, Any, get_args

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from gateway.config.models import Config
from gateway.config.names import RENAMED
from gateway.config.types import NAME, parse_duration, parse_size, split_commas

Schema = dict[str, Any]
DURATION: Schema = {
    "anyOf": [{"type": "string", "pattern": r"^([0-9]+(\.[0-9]+)?(ms|s|m|h|d)|0)$"}, {"const": 0}],
    "examples": ["250ms", "30s", "5m", "1h"],
}
SIZE: Schema = {
    "anyOf": [
        {"type": "string", "pattern": r"^([0-9]+(\.[0-9]+)?(B|KiB|MiB|GiB)|0)$"},
        {"type": "integer", "minimum": 0},
    ],
    "examples": ["64KiB", "256MiB", "1GiB"],
}
SWITCH: Schema = {"anyOf": [{"type": "boolean"}, {"enum": ["on", "off", "yes", "no"]}]}
"""YAML 1.1, in which the gateway reads, has four words for a boolean that are text to an editor's YAML 1.2."""


def config_schema() -> Schema:
    """The schema, a new one at each call."""
    schema = Config.model_json_schema(schema_generator=_AsWritten)
    for model in all_models():
        of_model = schema if model is Config else schema["$defs"][model.__name__]
        _complete(of_model, model)
    _without_noise(schema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "gateway.yaml",
        **schema,
    }


class _AsWritten(GenerateJsonSchema):
    """Durations, sizes, lists and booleans as the file has them, not as Python does."""

    def timedelta_schema(self, schema: core_schema.TimedeltaSchema) -> JsonSchemaValue:
        return dict(DURATION)

    def bool_schema(self, schema: core_schema.BoolSchema) -> JsonSchemaValue:
        return dict(SWITCH)

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        reads = schema["function"]["function"]
        if reads is parse_size:
            return dict(SIZE)
        inner = super().function_before_schema(schema)
        if reads is split_commas:
            return {"anyOf": [inner, {"type": "string"}]}
        return dict(DURATION) if reads is parse_duration else inner


def all_models() -> list[type[BaseModel]]:
    """The models of the configuration, each once."""
    found: list[type[BaseModel]] = [Config]
    for model in found:  # grows while it is walked
        for field in model.model_fields.values():
            found += [inner for inner in models_in(field.annotation) if inner not in found]
    return found


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models_in(inner)


def _complete(schema: Schema, model: type[BaseModel]) -> None:
    """Add meanings, defaults as they are written, and deprecated names; names of entries have a form."""
    properties, said = schema["properties"], meanings(model)
    for name, field in model.model_fields.items():
        described = properties[name] = {**properties[name], "description": said.get(name, "")}
        if "default" in described:
            described["default"] = default_of(field)
        if described.get("type") == "object" and "$ref" in described.get("additionalProperties", {}):
            described["propertyNames"] = {"pattern": f"^{NAME.pattern}$"}
    for old, new in RENAMED.items():
        if new in properties:
            properties[old] = {**properties[new], "deprecated": True, "description": f"Deprecated: use {new}."}
    if getattr(model, "flat", False):
        schema["additionalProperties"] = {"type": "string"}


def default_of(field: FieldInfo) -> Any:
    """A field's default as the file has it."""
    declared: Any = field.annotation
    for each in field.metadata:
        declared = Annotated[declared, each]
    return TypeAdapter(declared).dump_python(field.get_default(call_default_factory=True), mode="json")


def _without_noise(schema: Any) -> None:
    """pydantic's titles repeat the names, and JSON Schema does not compare durations."""
    for each in _objects(schema):
        for word in ("title", "ge", "gt", "le", "lt"):
            if isinstance(each.get(word), str):
                del each[word]


def _objects(value: Any) -> Iterator[Schema]:
    if isinstance(value, dict):
        yield value
    inner: Iterable[Any] = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in inner:
        yield from _objects(each)


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """What the docstring below each field says. Read here and not by pydantic, which would read the sources whenever
    the gateway starts (0.15 s)."""
    described = {name: field.description for name, field in model.model_fields.items() if field.description}
    found: dict[str, str] = {}
    for each in (base for base in reversed(model.__mro__) if issubclass(base, BaseModel) and base is not BaseModel):
        try:
            source = inspect.getsource(each)
        except OSError:
            continue  # a model that no class statement makes has its fields described
        [declared] = ast.parse(dedent(source)).body
        assert isinstance(declared, ast.ClassDef)
        for field, said in pairwise(declared.body):
            match field, said:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                    found[name] = " ".join(text.split())
    return found | described
