"""What is wrong with the configuration's values: all of it at once, each with the place where it was set."""

from __future__ import annotations

import re

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from .config import Config
from .config_shape import choices, is_container, is_model, shape_at
from .document import Key, Value, shortened
from .errors import ConfigProblem
from .merging import Merge
from .redaction import clipped, shown, without_credentials
from .spelling import did_you_mean
from .templates import TemplateError, compile_path

# Answered before any route is looked for.
OWN_PATHS = ("/healthz", "/readyz")
_WANTED = {
    "string_type": "text", "list_type": "a list", "dict_type": "a mapping", "model_type": "a mapping",
    "int_type": "a whole number", "int_parsing": "a whole number", "int_from_float": "a whole number",
    "float_type": "a number", "float_parsing": "a number",
    "bool_type": "true or false", "bool_parsing": "true or false",
}  # fmt: skip
# With these a message goes on from the value; the others have a subject of their own.
_VERBS = ("is", "must", "may", "has", "needs", "names", "uses")


def validated(merge: Merge) -> tuple[Config | None, list[ConfigProblem]]:
    try:
        return Config.model_validate(merge.tree), []
    except ValidationError as error:
        found: dict[Key, list[ErrorDetails]] = {}
        for details in error.errors(include_url=False):
            found.setdefault(_real_key(details["loc"]), []).append(details)
        return None, [_problem(merge, key, details) for key, details in found.items()]


def _real_key(loc: tuple[int | str, ...]) -> Key:
    """The key that a validation error is about, without pydantic's names for validators and members of unions."""
    key: Key = ()
    while len(key) < len(loc) and is_container(shape_at(key)):
        key = (*key, str(loc[len(key)]))
    return key


def _problem(merge: Merge, key: Key, errors: list[ErrorDetails]) -> ConfigProblem:
    message = without_credentials(_message(key, errors))
    about = message.partition(" ")[0].rstrip(":")
    place = merge.place((*key, about) if (*key, about) in merge.sources else key)
    return ConfigProblem(place, shortened(".".join(key)), message)


def _message(key: Key, errors: list[ErrorDetails]) -> str:
    members = [error for error in errors if isinstance((*error["loc"], 0)[len(key)], str)]
    if len(members) < 2 or any(error["type"] == "value_error" for error in errors):
        return "; ".join(_single(key, error) for error in errors)
    # A union tells of each of its members, by its name; they are the choices that there are.
    wanted = dict.fromkeys(_wanted(key, error) for error in errors)
    return f"{shown(key, errors[0]['input'])} must be {' or '.join(wanted)}"


def _single(key: Key, error: ErrorDetails) -> str:
    match error["type"]:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            return _unknown_key(key)
        case "value_error":
            return _sentence(key, error)
        case "literal_error":
            return f"{shown(key, error['input'])} must be {_wanted(key, error)}{_meant_choice(key, error)}"
    return f"{shown(key, error['input'])} must be {_wanted(key, error)}{_hint(error)}"


def _unknown_key(key: Key) -> str:
    shape = shape_at(key[:-1])
    names = list(shape.model_fields) if is_model(shape) else []
    return f"is unknown{did_you_mean(key[-1], names) or '.'} Allowed here: {', '.join(names)}"


def _sentence(key: Key, error: ErrorDetails) -> str:
    message, value = shortened(error["msg"].removeprefix("Value error, "), 500), error["input"]
    if isinstance(value, dict | list):
        return message  # it names the item
    told = shown(key, value)
    message = message.replace(repr(value), told)
    if message.partition(" ")[0] in _VERBS:
        return f"{told} {message}"
    return message if told in message else f"{message.rstrip('.')} (it is {told})"


def _wanted(key: Key, error: ErrorDetails) -> str:
    if error["type"] == "literal_error":
        return str(error["ctx"]["expected"])
    wanted = _WANTED.get(error["type"], error["msg"].removeprefix("Input should be "))
    is_item = len(error["loc"]) > len(key) and isinstance(error["loc"][-1], int)
    return f"a list of {wanted}" if is_item and choices(shape_at(key)) else wanted


def _meant_choice(key: Key, error: ErrorDetails) -> str:
    return did_you_mean(str(error["input"]), choices(shape_at(key)))


def _hint(error: ErrorDetails) -> str:
    if error["type"] != "string_type" or isinstance(error["input"], list | dict | None):
        return ""
    is_bool = isinstance(error["input"], bool)
    return "; put it in quotes" + (" (YAML reads yes, no, on and off as true and false)" if is_bool else "")


def cross_problems(merge: Merge) -> list[ConfigProblem]:
    """What is wrong between entries; found in the plain values, so that it is told along with what is wrong in
    them."""
    problems: list[ConfigProblem] = []
    shapes: dict[str, str] = {}
    for name, route in merge.entries("routes").items():
        if isinstance(route, dict):
            problems += _upstream_problems(merge, name, route.get("upstream"))
            problems += _path_problems(merge, name, route.get("path"), shapes)
    return problems


def _upstream_problems(merge: Merge, name: str, upstream: Value) -> list[ConfigProblem]:
    known = merge.entries("upstreams")
    if not isinstance(upstream, str) or upstream in known:
        return []
    hint = did_you_mean(upstream, known) or f"; there are: {', '.join(known) or 'none'}"
    return [merge.problem(("routes", name, "upstream"), f"{clipped(upstream)} is no upstream{hint}")]


def _path_problems(merge: Merge, name: str, path: Value, taken: dict[str, str]) -> list[ConfigProblem]:
    """`taken` has, by the path's shape, the first route that has it; this one is added."""
    key = ("routes", name, "path")
    try:
        text = compile_path(path).text if isinstance(path, str) else None
    except TemplateError:
        text = None
    if text is None:
        return []  # told by the model
    if text in OWN_PATHS:
        return [merge.problem(key, f"{text} is the gateway's own; choose another path")]
    other = taken.setdefault(re.sub(r"\{\w+", "{", text), name)
    if other == name:
        return []
    place = merge.place(("routes", other, "path"))
    return [merge.problem(key, f"{text} takes the same requests as the path of the route {other} ({place})")]
