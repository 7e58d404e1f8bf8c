"""Finds all errors of the models in a configuration, not only the first ones.

pydantic skips a model's own validators once a field is invalid, and a validator stops at its first error. So invalid
values are removed and the rest is validated again, until nothing new is found. Follow-up errors are not reported: those
whose message names a setting that is invalid itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gateway.config.models import Config
from gateway.config.schema import is_model, shape_at
from gateway.config.types import NAME
from gateway.config.yaml_document import Key, Tree, Value
from gateway.errors import ConfigError, ConfigProblem

MOST_ROUNDS = 50
_SECTIONS = ("routes", "upstreams")


def all_errors(
    validate: Callable[[Tree], Config], tree: Tree, key_of: Callable[[ErrorDetails], Key]
) -> list[tuple[Key, list[ErrorDetails]]]:
    """The errors by their key, in the order in which they were found; empty if all is valid."""
    rounds = _Rounds(tree, key_of)
    for _ in range(MOST_ROUNDS):
        try:
            validate(rounds.tree)
        except ValidationError as error:
            if not rounds.take(error.errors(include_url=False)):
                break
        else:
            break
    return [(key, group) for (key, _), group in rounds.found.items()]


class MappingError(ConfigError, ValueError):
    """A wrong mapping; a ValueError too, as pydantic's error is."""


def of_mapping(given: object) -> Config:
    """The configuration of a mapping, as an app's code has it. Raises ConfigError."""
    try:
        config = Config.model_validate(given)
    except ValidationError as error:
        found = [(".".join(map(str, each["loc"])), each["msg"]) for each in error.errors(include_url=False)]
        raise MappingError(
            [ConfigProblem("", key, text.removeprefix("Value error, ")) for key, text in found]
        ) from None
    problems = [
        ConfigProblem("", f"routes.{name}.upstream", f"there is no upstream {each.upstream}")
        for name, each in config.routes.items()
        if each.upstream and each.upstream not in config.upstreams
    ]
    if problems:
        raise MappingError(problems)
    return config


def bad_names(tree: Tree) -> list[Key]:
    """The keys of routes, upstreams and parts whose names can't be names."""
    found: list[Key] = []
    for section in _SECTIONS:
        for name, entry in _entries(tree.get(section)).items():
            found += [] if NAME.fullmatch(name) else [(section, name)]
            parts = _entries(entry).get("parts") if section == "routes" else None
            found += [(section, name, "parts", part) for part in _entries(parts) if not NAME.fullmatch(part)]
    return found


def _entries(value: Value) -> Tree:
    return value if isinstance(value, dict) else {}


def _is_entry(key: Key) -> bool:
    """Whether it is a route, an upstream or a part as a whole."""
    return key[0] in _SECTIONS and len(key) in (2, 4) and not is_model(shape_at(key[:-1]))


class _Rounds:
    def __init__(self, tree: Tree, key_of: Callable[[ErrorDetails], Key]) -> None:
        self.tree = _copied(tree)
        self.found: dict[tuple[Key, str], list[ErrorDetails]] = {}
        self._key_of = key_of
        self._wrong: set[Key] = set()
        """The keys of invalid values, which were removed."""

    def take(self, errors: list[ErrorDetails]) -> bool:
        """Keeps new errors and removes invalid values; False if nothing can be removed."""
        grouped: dict[Key, list[ErrorDetails]] = {}
        for details in errors:
            grouped.setdefault(self._key_of(details), []).append(details)
        known = set(self._wrong)
        for key, group in grouped.items():
            if not _is_sequel(key, group, known):
                # Of a model as a whole several things may be wrong; of a value, the first counts.
                sentence = group[0]["msg"] if is_model(shape_at(key)) else ""
                self.found.setdefault((key, sentence), group)
        taken = [self._take_out(key, group) for key, group in grouped.items()]
        return any(taken) or self._drop(list(grouped))

    def _take_out(self, key: Key, group: list[ErrorDetails]) -> bool:
        """Take out what the errors of a key are about: its value, or the setting that a sentence begins with."""
        about = [each["msg"].removeprefix("Value error, ").partition(" ")[0].rstrip(":") for each in group]
        inner = [self._remove((*key, name)) for name in about if is_model(shape_at(key))]
        return any(inner) or (bool(key) and not _is_entry(key) and self._remove(key))

    def _remove(self, key: Key) -> bool:
        parent: Tree = self.tree
        for name in key[:-1]:
            parent = _entries(parent.get(name))
        if key[-1] not in parent:
            return False
        del parent[key[-1]]
        self._wrong.add(key)
        return True

    def _drop(self, keys: list[Key]) -> bool:
        """Removes the part, route or upstream of an error that can't be removed alone."""
        for length in (4, 2):
            entries = {key[:length] for key in keys if len(key) >= length and _is_entry(key[:length])}
            dropped = [self._remove(key) for key in entries]
            if any(dropped):
                return True
        return False


def _copied(tree: Tree) -> Tree:
    return {name: _copied(each) if isinstance(each, dict) else each for name, each in tree.items()}


def _is_sequel(key: Key, group: list[ErrorDetails], wrong: set[Key]) -> bool:
    """Whether the errors come of others: they are about what was taken out, or their sentence names it."""
    if any(key[: len(each)] == each for each in wrong):
        return True
    if all(each["type"] == "missing" for each in group):  # as an upstream is of a route whose parts were taken out
        return any(_is_entry(each) and each[:2] == key[:2] for each in wrong)
    near = {each[-1] for each in wrong if each[:-1] in (key, key[:-1]) or _is_entry(each)}
    words = {word for each in group for word in re.findall(r"\w+", f"{each['msg']} {each['input']!s:.200}")}
    return all(each["type"] == "value_error" for each in group) and bool(words & near)


def without_cache(config: Config) -> Config:
    """The configuration with `cache: off` on each route; parts and handlers look at the switch."""
    routes = {name: route.model_copy(update={"cache": False}) for name, route in config.routes.items()}
    return config.model_copy(update={"routes": routes})
