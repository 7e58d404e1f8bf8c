"""Settings from environment variables, `.env` and the command line, merged with those of the file.

Records the source of each value and does not interpret values. pydantic-settings is not enough: it drops unknown
variables silently, parses `5` as a number under an unknown name, lets `GATEWAY_CORS={…}` hide `GATEWAY_CORS__MAX_AGE`,
and doesn't report which variable set a value. python-dotenv parses `.env`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Literal

from dotenv.parser import Binding, parse_stream
from dotenv.variables import parse_variables

from gateway.config.models import Config
from gateway.config.names import RENAMED, did_you_mean, nearest
from gateway.config.schema import (
    current_key,
    filled,
    is_container,
    is_model,
    known_keys,
    leaves,
    shape_at,
    shown,
    takes_list,
    takes_variables,
)
from gateway.config.yaml_document import Document, Key, Tree, Value, read_text
from gateway.errors import ConfigError, ConfigProblem

PREFIX = "GATEWAY_"
Kind = Literal["live", "option", "environment", "dotenv", "file"]


@dataclass(frozen=True, slots=True)
class Variable:
    name: str
    value: str
    kind: Kind
    place: str
    line: int = 0
    """In `.env`; 0 for all others."""

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
    lines = {binding.key: _first_line(binding) for binding in bindings}
    return [Variable(name, values[name], "dotenv", f"{path} {name}", lines.get(name, 0)) for name in _by_weight(values)]


def admin_token(variables: Sequence[Variable]) -> tuple[str | None, list[ConfigProblem]]:
    """The value of GATEWAY_ADMIN_TOKEN, or what is in the file that GATEWAY_ADMIN_TOKEN_FILE names: that of the last
    source that has one. A source that has both is a problem, as is a file that can't be read."""
    given = [each for each in variables if each.value and each.name in (ADMIN_TOKEN, ADMIN_TOKEN_FILE)]
    found = [each for each in given if each.kind == given[-1].kind]
    if not found:
        return None, []
    variable = found[-1]
    if len(found) > 1:
        return None, [ConfigProblem(variable.place, "", f"{ADMIN_TOKEN} and {ADMIN_TOKEN_FILE} are set; remove one")]
    if variable.name == ADMIN_TOKEN:
        return variable.value, []
    try:
        return _text_of(variable.name, variable.value) or None, []
    except ValueError as error:
        return None, [ConfigProblem(variable.place, "", str(error))]


def known_variables(path: Path | None, environ: Mapping[str, str]) -> dict[str, str]:
    """All variables of the environment and, where it has none of a name, of `.env`."""
    if path is None or not os.path.exists(path):
        return dict(environ)
    return {**_interpolated(list(parse_stream(StringIO(read_text(path)))), environ), **environ}


def _is_broken(binding: Binding) -> bool:
    # `.env` is often shared; what others wrote in it is theirs.
    return binding.error and PREFIX in binding.original.string.upper()


def _dotenv_problem(path: Path, binding: Binding) -> ConfigProblem:
    message = "is not NAME=value; a value with quotes, spaces or # in it is put in quotes"
    return ConfigProblem(f"{path} line {_first_line(binding)}", "", message)


def _first_line(binding: Binding) -> int:
    text = binding.original.string
    return binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")


def _interpolated(bindings: list[Binding], environ: Mapping[str, str]) -> dict[str, str]:
    """The values, with `${NAME}` and `${NAME:-default}` replaced, as python-dotenv does from `os.environ`."""
    values: dict[str, str] = {}
    for binding in bindings:
        if binding.key is not None and binding.value is not None:
            known = {**values, **environ}
            values[binding.key] = "".join(atom.resolve(known) for atom in parse_variables(binding.value))
    return values


def parsed(variable: Variable, shape: object) -> Value:
    """A variable's value: JSON if the shape is a mapping, or if it takes a list and the text begins as one. Raises
    ConfigError."""
    text = variable.value
    if is_container(shape):
        example = name_of((*variable.key, "…")) + "=…"
        return _json(variable, "{", f'must be a JSON object such as {{"name": "value"}}; or set {example}')
    # A pattern such as [a-z]* is not JSON.
    if takes_list(shape) and re.match(r'\s*\[\s*["\]]', text):
        return _json(variable, "[", 'is not a valid JSON list; expected ["a", "b"] or a,b')
    return text


def _json(variable: Variable, opening: str, message: str) -> Value:
    try:
        if variable.value.lstrip().startswith(opening):
            value: Value = json.loads(variable.value)
            return value
    except (ValueError, RecursionError):
        pass
    raise ConfigError([ConfigProblem(variable.place, ".".join(variable.key), message)])


# Read by the command line and the admin API, and no fields of the configuration.
ADMIN_TOKEN = "GATEWAY_ADMIN_TOKEN"  # noqa: S105 - a name
ADMIN_TOKEN_FILE = f"{ADMIN_TOKEN}_FILE"
CONFIG_FILE = "GATEWAY_CONFIG"
CACHE_SWITCH = "GATEWAY_CACHE"
"""The one variable that counts for a configuration that is given in Python, too."""
OTHER_VARIABLES = (ADMIN_TOKEN, CONFIG_FILE, "GATEWAY_ADMIN_URL", "GATEWAY_URL")
# The settings (one of each group) that make an unknown name in a variable a new entry and not a typo.
_ESSENTIAL = {"routes": (("path",), ("upstream",)), "upstreams": (("url", "urls"),)}


@dataclass(frozen=True, slots=True)
class SettingSource:
    """The source of a value: `place` is for people (`config/gateway.yaml line 14`), `value` is masked if secret."""

    kind: Kind
    place: str
    value: str


@dataclass(frozen=True, slots=True)
class _Assignment:
    key: Key
    value: Value
    variable: Variable
    written: Key
    """`key`, with the deprecated name if that was used."""


class SettingMerge:
    """The values of all sources, merged, with the sources of each leaf, the winner first."""

    def __init__(self, document: Document) -> None:
        tree = filled(document.tree, Config)
        self.tree: Tree = tree if isinstance(tree, dict) else {}
        self.sources: dict[Key, list[SettingSource]] = {}
        self.warnings: list[str] = []
        self.problems = document.problems
        self._document = document
        self._use_current_names()
        for key, value in leaves(self.tree, Config, ()) if self.tree else ():
            self.sources[key] = [SettingSource("file", self._file_place(key), shown(key, value))]
            self._warn_of_interpolation(key, value)

    def _use_current_names(self) -> None:
        """Moves the values that the file has under deprecated names to the current ones."""
        for key, value in list(leaves(self.tree, Config, ())):
            current = current_key(key)
            if current == key:
                continue
            place = self._file_place(key)
            parent = self.entries_of(key[:-1])
            del parent[key[-1]]
            if current[-1] in parent:
                self.problems.append(_set_twice(current, self._file_place(current), key[-1], place))
                continue
            parent[current[-1]] = value
            self._document.lines[current] = self._document.lines[key]
            self.warnings.append(_deprecated(place, ".".join(key), current[-1]))

    def fill(self, variables: Mapping[str, str]) -> None:
        """Replaces `${NAME}` in the headers of routes and upstreams by what `variables` have, or by what is in the file
        that NAME_FILE names."""
        for key, value in list(leaves(self.tree, Config, ())):
            if not takes_variables(key):
                continue
            try:
                filled_in = _filled_in(value, variables)
            except ValueError as error:
                self.problems.append(self.problem(key, str(error)))
                continue
            if filled_in != value:
                self.entries_of(key[:-1])[key[-1]] = filled_in

    def _warn_of_interpolation(self, key: Key, value: Value) -> None:
        match = re.search(r"\$\{?[A-Z][A-Z0-9_]*\}?", value) if isinstance(value, str) else None
        if match and match[0].startswith("${") and takes_variables(key):
            return
        if match and (match[0].startswith("${") or match[0] == value):
            variable = name_of(key).replace("-", "_")
            place, name = self._file_place(key), ".".join(key)
            self.warnings.append(f"{place}: {name}: {match[0]} isn't expanded; set {variable} instead")

    def apply(self, variables: list[Variable]) -> None:
        assignments = [assignment for variable in variables for assignment in self._assignments(variable)]
        self._refuse_both_names(assignments)
        given: dict[Key, set[str]] = {}
        for assignment in assignments:
            given.setdefault(assignment.key[:2], set()).update(assignment.key[2:3])
        for assignment in assignments:
            if self._has_entry(assignment, given[assignment.key[:2]]):
                self._put(assignment)

    def _assignments(self, variable: Variable) -> list[_Assignment]:
        if variable.name.upper() in (*OTHER_VARIABLES, ADMIN_TOKEN_FILE) or self._is_kubernetes(variable):
            return []
        key = current_key(variable.key)
        shape = shape_at(key)
        of_file = key[-1].endswith("_file") and (shape is None or takes_variables(key))
        named = current_key((*key[:-1], key[-1].removesuffix("_file")))
        if of_file and (inner := shape_at(named)) is not None:
            return self._of_file(variable, named, inner)
        if shape is None:
            self._unknown(variable, key, variable.name)
            return []
        try:
            value = filled(parsed(variable, shape), shape)
        except ConfigError as error:
            self.problems.extend(error.problems)
            return []
        return list(self._known_leaves(variable, value, shape))

    def _of_file(self, variable: Variable, key: Key, shape: object) -> list[_Assignment]:
        """A variable that names a file which holds the value, as secrets are mounted."""
        if is_container(shape):
            self._unknown(variable, variable.key, variable.name)
            return []
        if variable.key[-1] != f"{key[-1]}_file":
            self._warn_of_old_name(variable, variable.key, (*key[:-1], f"{key[-1]}_file"))
        try:
            return [_Assignment(key, _text_of(variable.name, variable.value), variable, variable.key)]
        except ValueError as error:
            self.problems.append(ConfigProblem(variable.place, ".".join(key), str(error)))
            return []

    def _refuse_both_names(self, assignments: list[_Assignment]) -> None:
        """Reports a setting that one source sets by its current name and by a deprecated one."""
        seen: dict[tuple[Kind, Key], _Assignment] = {}
        for each in assignments:
            first = seen.setdefault((each.variable.kind, each.key), each)
            if first.written != each.written:
                old, new = (first, each) if each.written == each.key else (each, first)
                place = _named_place(new.variable)
                self.problems.append(_set_twice(each.key, place, old.written[-1], _named_place(old.variable)))

    def _is_kubernetes(self, variable: Variable) -> bool:
        found = variable.key == ("port",) and re.match(r"(tcp|udp|sctp)://", variable.value)
        if found:
            self._warn(variable, "is ignored: Kubernetes sets it for a service named gateway")
        return bool(found)

    def _known_leaves(self, variable: Variable, value: Value, shape: object) -> Iterator[_Assignment]:
        for written, leaf in leaves(value, shape, variable.key):
            key = current_key(written)
            if shape_at(key) is None:
                self._unknown(variable, key, f"{'.'.join(key)} in {variable.name}")
                continue
            if key != written:
                self._warn_of_old_name(variable, written, key)
            yield _Assignment(key, leaf, variable, written)

    def _warn_of_old_name(self, variable: Variable, written: Key, current: Key) -> None:
        is_whole = written == variable.key
        old = variable.name if is_whole else f"{'.'.join(written)} in {variable.name}"
        place = _named_place(variable).removesuffix(f" {variable.name}")
        self.warnings.append(_deprecated(place, old, name_of(current) if is_whole else current[-1]))

    def _warn(self, variable: Variable, message: str, what: str | None = None) -> None:
        where = f" in {variable.place.removesuffix(' ' + variable.name)}" if variable.kind == "dotenv" else ""
        self.warnings.append(f"{what or variable.name}{where} {message}")

    def _unknown(self, variable: Variable, key: Key, what: str) -> None:
        meant = self._meant(key)
        self._warn(variable, f"is unknown; did you mean {meant}?" if meant else "is unknown; it is ignored", what)

    def _meant(self, key: Key) -> str | None:
        """The variable that one with the unknown `key` was probably meant to be."""
        squeezed = _squeezed(name_of(key))
        if squeezed in self._squeezed_names:
            return self._squeezed_names[squeezed]
        known = next(length for length in range(len(key)) if shape_at(key[: length + 1]) is None)
        shape = shape_at(key[:known])
        names = list(shape.model_fields) if is_model(shape) else []
        names += [name[len(PREFIX) :].lower() for name in OTHER_VARIABLES if known == 0]
        near = nearest(key[known], names)
        return name_of((*key[:known], near, *key[known + 1 :])) if near else None

    @cached_property
    def _squeezed_names(self) -> dict[str, str]:
        """The variables' names by their spelling with single underscores, such as GATEWAY_CORS_MAX_AGE."""
        return {_squeezed(name_of(key)): name_of(key) for key in known_keys(Config, self.tree, ())}

    def _has_entry(self, assignment: _Assignment, given: set[str]) -> bool:
        section, *rest = assignment.key
        if section not in _ESSENTIAL or not rest or _spelt(self.entries(section), rest[0]) is not None:
            return True
        if all(given & set(group) for group in _ESSENTIAL[section]):
            return True
        self._no_entry(assignment.variable, section, rest[0])
        return False

    def _no_entry(self, variable: Variable, section: str, name: str) -> None:
        hint = did_you_mean(name, self.entries(section))
        needed = " and ".join(name_of((section, name, group[0])) for group in _ESSENTIAL[section])
        message = f"is ignored: there is no {name} in {section}{hint or f'; a new one needs {needed}'}"
        self._warn(variable, message)

    def entries(self, section: str) -> Tree:
        return self.entries_of((section,))

    def entries_of(self, key: Key) -> Tree:
        """The mapping at `key`; empty if there is none."""
        tree: Value = self.tree
        for name in key:
            tree = tree.get(name) if isinstance(tree, dict) else None
        return tree if isinstance(tree, dict) else {}

    def _put(self, assignment: _Assignment) -> None:
        *outer, last = assignment.key
        tree: Tree = self.tree
        key: Key = ()
        for written in outer:
            name = _spelt(tree, written) or written
            inner = tree.setdefault(name, {})
            if not isinstance(inner, dict):
                return  # the file has something there that is refused
            tree, key = inner, (*key, name)
        name = _spelt(tree, last) or last
        if assignment.value == {} and tree.get(name):
            return  # a mapping is merged with, not replaced
        tree[name] = assignment.value
        self._add_source((*key, name), assignment)

    def _add_source(self, key: Key, assignment: _Assignment) -> None:
        variable = assignment.variable
        source = SettingSource(variable.kind, variable.place, shown(key, assignment.value))
        self.sources.setdefault(key, []).insert(0, source)

    def problem(self, key: Key, message: str) -> ConfigProblem:
        return ConfigProblem(self.place(key), ".".join(key), message)

    def place(self, key: Key) -> str:
        """Where `key` was set; for a mapping, its place and those of variables that changed it; for a missing key,
        where it is missing."""
        if key in self.sources:
            return self.sources[key][0].place
        places = [self._file_place(key)] if key in self._document.lines else []
        for leaf, (winner, *_) in self.sources.items():
            if leaf[: len(key)] == key and winner.kind != "file":
                places.append(winner.place)
        return ", ".join(dict.fromkeys(places)) or self._file_place(key)

    def _file_place(self, key: Key) -> str:
        while key and key not in self._document.lines:
            key = key[:-1]
        return f"{self._document.name} line {self._document.lines[key]}" if key else self._document.name


_VARIABLE = re.compile(r"(\$?)\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
MOST_SECRET = 64 * 1024
"""Bytes of a file that holds a value."""


def _filled_in(value: Value, variables: Mapping[str, str]) -> Value:
    """Raises ValueError where a variable is not set, or its file can't be read."""
    if isinstance(value, list):
        return [_filled_in(each, variables) for each in value]
    if not isinstance(value, str):
        return value
    return _VARIABLE.sub(lambda found: found[0][1:] if found[1] else _value_of(found[2], variables), value)


def _value_of(name: str, variables: Mapping[str, str]) -> str:
    if name in variables:
        return variables[name]
    if f"{name}_FILE" in variables:
        return _text_of(f"{name}_FILE", variables[f"{name}_FILE"])
    raise ValueError(f"${{{name}}}: neither {name} nor {name}_FILE is set in the environment or `.env`")


def _text_of(name: str, path: str) -> str:
    """What is in the file that the variable `name` names, without the line break at its end."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MOST_SECRET + 1)
        text = raw.decode("utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise ValueError(f"{name} names {path}, which can't be read: {reason}") from None
    if len(raw) > MOST_SECRET:
        raise ValueError(f"{name} names {path}, which is larger than {MOST_SECRET // 1024} KiB")
    return text.removesuffix("\n").removesuffix("\r")


def _spelt(tree: Tree, name: str) -> str | None:
    """The key of `tree` that a variable means by `name`: it can't write capitals or dashes (X-Api-Key)."""
    if name in tree:
        return name
    folded = name.lower()
    return next((key for key in tree if folded in (key.lower(), key.lower().replace("-", "_"))), None)


def _squeezed(name: str) -> str:
    return re.sub("_+", "_", name)


def _named_place(variable: Variable) -> str:
    """The place of a variable, with its line in `.env`."""
    if not variable.line:
        return variable.place
    return f"{variable.place.removesuffix(' ' + variable.name)} line {variable.line} {variable.name}"


def _deprecated(place: str, old: str, current: str) -> str:
    return f"{place}: {old} is deprecated; use {current}"


def _set_twice(key: Key, place: str, old: str, old_place: str) -> ConfigProblem:
    is_deprecated = old.removesuffix("_file") in RENAMED
    message = f"is set twice: {old} ({old_place}) is {'its deprecated name' if is_deprecated else 'the same setting'}"
    return ConfigProblem(place, ".".join(key), f"{message}; remove {'that one' if is_deprecated else 'one'}")
