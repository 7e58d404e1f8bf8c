"""What is wrong with the configuration's values: all of it at once, each with the place where it was set."""

from __future__ import annotations

import re
from datetime import timedelta
from functools import partial

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from .config import Config
from .config_shape import choices, field_at, is_container, is_model, shape_at
from .config_types import NAME, NAMES_ARE_CHECKED, is_size, show_duration, show_size
from .document import Key, Tree, Value, shortened
from .errors import ConfigProblem
from .merging import Merge
from .redaction import clipped, shown, without_credentials
from .spelling import did_you_mean, misspelt
from .templates import TemplateError, compile_path
from .validation_rounds import all_errors, bad_names

# Answered before any route is looked for.
OWN_PATHS = ("/healthz", "/readyz")
_WANTED = {
    "string_type": "text", "list_type": "a list", "dict_type": "a mapping", "model_type": "a mapping",
    "int_type": "a whole number", "int_parsing": "a whole number", "int_from_float": "a whole number",
    "float_type": "a number", "float_parsing": "a number",
    "bool_type": "true or false", "bool_parsing": "true or false",
}  # fmt: skip
_PERCENT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*")
_BOUNDS = (
    *(("le", "less than or equal to"), ("ge", "greater than or equal to")),
    *(("lt", "less than"), ("gt", "greater than")),
)
# With these a message goes on from the value; the others have a subject of their own.
_VERBS = ("is", "must", "may", "has", "needs", "names", "uses")


def validated(merge: Merge) -> tuple[Config | None, list[ConfigProblem]]:
    """The configuration, or all that its models refuse."""
    try:
        return Config.model_validate(merge.tree), []
    except ValidationError:
        found = all_errors(_validated_but_for_names, merge.tree, lambda details: _real_key(details["loc"]))
    listed: set[object] = set()
    problems = [_problem(merge, key, details, listed) for key, details in found]
    return None, [*map(partial(_bad_name, merge), bad_names(merge.tree)), *problems]


def _validated_but_for_names(tree: Tree) -> Config:
    return Config.model_validate(tree, context=NAMES_ARE_CHECKED)


def _bad_name(merge: Merge, key: Key) -> ConfigProblem:
    hint = re.sub("[^a-z0-9]+", "_", re.sub("(?<=[a-z0-9])(?=[A-Z])", "_", key[-1]).lower()).strip("_")
    example = hint if NAME.fullmatch(hint) else "price_list"
    return merge.problem(key, f"{key[-1]!r} is no name: write lower-case words joined by _, such as {example}")


def _real_key(loc: tuple[int | str, ...]) -> Key:
    """The key that a validation error is about, without pydantic's names for validators and members of unions."""
    key: Key = ()
    while len(key) < len(loc) and is_container(shape_at(key)):
        key = (*key, str(loc[len(key)]))
    return key


def _problem(merge: Merge, key: Key, errors: list[ErrorDetails], listed: set[object]) -> ConfigProblem:
    """`listed` are the models whose settings were listed already."""
    message = without_credentials(_message(key, errors))
    if errors[0]["type"] == "extra_forbidden" and "; did you mean" not in message:
        message += _allowed(key, listed)
    about = message.partition(" ")[0].rstrip(":")
    place = merge.place((*key, about) if (*key, about) in merge.sources else key)
    return ConfigProblem(place, shortened(".".join(key)), message)


def _message(key: Key, errors: list[ErrorDetails]) -> str:
    members = [error for error in errors if isinstance((*error["loc"], 0)[len(key)], str)]
    if len(members) < 2 or any(error["type"] == "value_error" for error in errors):
        choices_last = sorted(errors, key=lambda error: error["type"] == "literal_error" and len(errors) > 1)
        return "; ".join(
            f"or write {error['ctx']['expected']}" if at and error["type"] == "literal_error" else _single(key, error)
            for at, error in enumerate(choices_last)
        )
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
    return f"is unknown{did_you_mean(key[-1], names)}"


def _allowed(key: Key, listed: set[object]) -> str:
    """What may be set here instead, the first time."""
    shape = shape_at(key[:-1])
    if shape in listed or not is_model(shape):
        return ""
    listed.add(shape)
    return f". Allowed here: {', '.join(shape.model_fields)}"


def _sentence(key: Key, error: ErrorDetails) -> str:
    message, value = shortened(error["msg"].removeprefix("Value error, "), 500), error["input"]
    if value is None or isinstance(value, dict | list):
        return message  # it is about several values, or names the item
    told = shown(key, value)
    message = message.replace(repr(value), told)
    if message.partition(" ")[0] in _VERBS:
        return f"{told} {message}"
    return message if told in message else f"{message.rstrip('.')} (it is {told})"


def _wanted(key: Key, error: ErrorDetails) -> str:
    if error["type"] == "literal_error":
        return str(error["ctx"]["expected"])
    wanted = _WANTED.get(error["type"]) or _bound(key, error) or error["msg"].removeprefix("Input should be ")
    is_item = len(error["loc"]) > len(key) and isinstance(error["loc"][-1], int)
    return f"a list of {wanted}" if is_item and choices(shape_at(key)) else wanted


def _bound(key: Key, error: ErrorDetails) -> str:
    """A limit, as the setting is written."""
    for name, word in _BOUNDS:
        if (limit := error.get("ctx", {}).get(name)) is not None:
            return f"{word} {_as_written(key, limit)}"
    return ""


def _as_written(key: Key, limit: object) -> str:
    if isinstance(limit, timedelta):
        return show_duration(limit)
    return show_size(limit) if isinstance(limit, int) and is_size(field_at(key)) else f"{limit}"


def _meant_choice(key: Key, error: ErrorDetails) -> str:
    return misspelt(str(error["input"]), choices(shape_at(key)))


def _hint(error: ErrorDetails) -> str:
    if error["type"] in ("float_parsing", "int_parsing") and (percent := _PERCENT.fullmatch(str(error["input"]))):
        return f"; write {float(percent[1]) / 100:g}" if error["type"] == "float_parsing" else ""
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
            problems += _upstream_problems(merge, ("routes", name), route.get("upstream"))
            for part, config in merge.entries_of(("routes", name, "parts")).items():
                if isinstance(config, dict):
                    problems += _upstream_problems(merge, ("routes", name, "parts", part), config.get("upstream"))
            problems += _path_problems(merge, name, route.get("path"), shapes)
    return problems


def _upstream_problems(merge: Merge, where: Key, upstream: Value) -> list[ConfigProblem]:
    known = merge.entries("upstreams")
    if not isinstance(upstream, str) or upstream in known:
        return []
    hint = did_you_mean(upstream, known) or f"; there are: {', '.join(known) or 'none'}"
    return [merge.problem((*where, "upstream"), f"{clipped(upstream)} is no upstream{hint}")]


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
