"""What variables say: of the environment, of `.env`, and the command line's options as if they were such.

pydantic-settings' sources don't do: a variable they can't place is dropped without a word, `5` becomes a number
under an unknown name, `GATEWAY_CORS={…}` hides `GATEWAY_CORS__MAX_AGE`, and none of them says which variable a
value came from. Its reader of `.env`, python-dotenv, does.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Literal

from dotenv.parser import Binding, parse_stream
from dotenv.variables import parse_variables

from .config_shape import is_container, takes_list
from .document import Key, Value, read_text
from .errors import ConfigError, ConfigProblem

PREFIX = "GATEWAY_"
Kind = Literal["live", "option", "environment", "dotenv", "file"]


@dataclass(frozen=True, slots=True)
class Variable:
    name: str
    value: str
    kind: Kind
    place: str

    @property
    def key(self) -> Key:
        return tuple(self.name[len(PREFIX) :].lower().split("__"))


def name_of(key: Key) -> str:
    return PREFIX + "__".join(key).upper()


def _is_ours(name: str) -> bool:
    return name.upper().startswith(PREFIX)


def _by_weight(values: Mapping[str, str]) -> list[str]:
    # The later overrides: the spelling in capitals any other, GATEWAY_CORS__MAX_AGE the GATEWAY_CORS it is part of.
    return sorted(filter(_is_ours, values), key=lambda name: (name.isupper(), name))


def environment_variables(environ: Mapping[str, str]) -> list[Variable]:
    return [Variable(name, environ[name], "environment", f"environment {name}") for name in _by_weight(environ)]


def option_variables(options: Mapping[str, str]) -> list[Variable]:
    return [Variable(name_of((name,)), value, "option", f"--{name}") for name, value in options.items()]


def dotenv_variables(path: Path | None, environ: Mapping[str, str]) -> list[Variable]:
    if path is None or not os.path.exists(path):
        return []
    bindings = list(parse_stream(StringIO(read_text(path))))
    problems = [_dotenv_problem(path, binding) for binding in bindings if _is_broken(binding)]
    if problems:
        raise ConfigError(problems)
    values = _interpolated(bindings, environ)
    return [Variable(name, values[name], "dotenv", f"{path} {name}") for name in _by_weight(values)]


def _is_broken(binding: Binding) -> bool:
    # `.env` is often shared; what others wrote in it is theirs.
    return binding.error and PREFIX in binding.original.string.upper()


def _dotenv_problem(path: Path, binding: Binding) -> ConfigProblem:
    text = binding.original.string
    blank = text[: len(text) - len(text.lstrip())].count("\n")
    message = "is not NAME=value; a value with quotes, spaces or # in it is put in quotes"
    return ConfigProblem(f"{path} line {binding.original.line + blank}", "", message)


def _interpolated(bindings: list[Binding], environ: Mapping[str, str]) -> dict[str, str]:
    """The values, with `${NAME}` and `${NAME:-default}` replaced, as python-dotenv does from `os.environ`."""
    values: dict[str, str] = {}
    for binding in bindings:
        if binding.key is not None and binding.value is not None:
            known = {**values, **environ}
            values[binding.key] = "".join(atom.resolve(known) for atom in parse_variables(binding.value))
    return values


def parsed(variable: Variable, shape: object) -> Value:
    """A variable's value: JSON where the shape wants a mapping, or a list and the text begins as one. Raises
    ConfigError."""
    text = variable.value
    if is_container(shape):
        example = name_of((*variable.key, "…")) + "=…"
        return _json(variable, "{", f'must be a JSON object such as {{"name": "value"}}; or set {example}')
    # A pattern such as [a-z]* is no JSON.
    if takes_list(shape) and re.match(r'\s*\[\s*["\]]', text):
        return _json(variable, "[", 'begins as a JSON list and is none; write ["a", "b"] or a,b')
    return text


def _json(variable: Variable, opening: str, message: str) -> Value:
    try:
        if variable.value.lstrip().startswith(opening):
            value: Value = json.loads(variable.value)
            return value
    except (ValueError, RecursionError):
        pass
    raise ConfigError([ConfigProblem(variable.place, ".".join(variable.key), message)])
