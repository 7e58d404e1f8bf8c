"""The configuration's file and variables as one: the values of all, and who set each.

Nothing here knows what a value means; what can't be placed is told with where it stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from .config import Config
from .config_shape import filled, is_model, known_keys, leaves, shape_at
from .document import Document, Key, Tree, Value
from .errors import ConfigError, ConfigProblem
from .redaction import shown
from .spelling import did_you_mean, nearest
from .variables import PREFIX, Kind, Variable, name_of, parsed

# Read by the command line and the admin API, and no fields of the configuration.
ADMIN_TOKEN = "GATEWAY_ADMIN_TOKEN"  # noqa: S105 - a name
OTHER_VARIABLES = (ADMIN_TOKEN, "GATEWAY_ADMIN_URL", "GATEWAY_URL")
# What an entry that only variables know must have, one of each group, to be an entry and not a misspelt name.
_ESSENTIAL = {"routes": (("path",), ("upstream",)), "upstreams": (("url", "urls"),)}


@dataclass(frozen=True, slots=True)
class Source:
    """What set a value: `place` is for people (`config/gateway.yaml line 14`), `value` is masked where secret."""

    kind: Kind
    place: str
    value: str


@dataclass(frozen=True, slots=True)
class _Assignment:
    key: Key
    value: Value
    variable: Variable


class Merge:
    """The values of all sources, merged, and for each leaf who set it, the winner first."""

    def __init__(self, document: Document) -> None:
        tree = filled(document.tree, Config)
        self.tree: Tree = tree if isinstance(tree, dict) else {}
        self.sources: dict[Key, list[Source]] = {}
        self.warnings: list[str] = []
        self.problems = document.problems
        self._document = document
        for key, value in leaves(self.tree, Config, ()) if self.tree else ():
            self.sources[key] = [Source("file", self._file_place(key), shown(key, value))]
            self._warn_of_interpolation(key, value)

    def _warn_of_interpolation(self, key: Key, value: Value) -> None:
        match = re.search(r"\$\{?[A-Z][A-Z0-9_]*\}?", value) if isinstance(value, str) else None
        if match and (match[0].startswith("${") or match[0] == value):
            variable = name_of(key).replace("-", "_")
            place, name = self._file_place(key), ".".join(key)
            self.warnings.append(
                f"{place}: {name}: {match[0]} is taken as it is: a file has no variables; set {variable} instead"
            )

    def apply(self, variables: list[Variable]) -> None:
        assignments = [assignment for variable in variables for assignment in self._assignments(variable)]
        given: dict[Key, set[str]] = {}
        for assignment in assignments:
            given.setdefault(assignment.key[:2], set()).update(assignment.key[2:3])
        for assignment in assignments:
            if self._has_entry(assignment, given[assignment.key[:2]]):
                self._put(assignment)

    def _assignments(self, variable: Variable) -> list[_Assignment]:
        if variable.name.upper() in OTHER_VARIABLES or self._is_kubernetes(variable):
            return []
        shape = shape_at(variable.key)
        if shape is None:
            self._unknown(variable, variable.key, variable.name)
            return []
        try:
            value = filled(parsed(variable, shape), shape)
        except ConfigError as error:
            self.problems.extend(error.problems)
            return []
        return list(self._known_leaves(variable, value, shape))

    def _is_kubernetes(self, variable: Variable) -> bool:
        found = variable.key == ("port",) and re.match(r"(tcp|udp|sctp)://", variable.value)
        if found:
            self._warn(variable, "is what Kubernetes sets for a service named gateway; it is ignored")
        return bool(found)

    def _known_leaves(self, variable: Variable, value: Value, shape: object) -> Iterator[_Assignment]:
        for key, leaf in leaves(value, shape, variable.key):
            if shape_at(key) is None:
                self._unknown(variable, key, f"{'.'.join(key)} in {variable.name}")
            else:
                yield _Assignment(key, leaf, variable)

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
        """The variables' names by what they are with one underscore for two, as GATEWAY_CORS_MAX_AGE is written."""
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
        """What stands in the mapping at `key`; nothing where there is none."""
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
        source = Source(variable.kind, variable.place, shown(key, assignment.value))
        self.sources.setdefault(key, []).insert(0, source)

    def problem(self, key: Key, message: str) -> ConfigProblem:
        return ConfigProblem(self.place(key), ".".join(key), message)

    def place(self, key: Key) -> str:
        """Where `key` was set; of a mapping, where it and what variables changed in it stands; of what is missing,
        where it is missed."""
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


def _spelt(tree: Tree, name: str) -> str | None:
    """The key of `tree` that a variable means by `name`: it can't write capitals or dashes (X-Api-Key)."""
    if name in tree:
        return name
    folded = name.lower()
    return next((key for key in tree if folded in (key.lower(), key.lower().replace("-", "_"))), None)


def _squeezed(name: str) -> str:
    return re.sub("_+", "_", name)
