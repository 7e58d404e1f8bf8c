"""Reads a YAML file with the line of every value, and refuses harmful input before building it.

Limits come first: the file size, the number of values after expanding aliases, the depth. Errors have their line. This
module does not interpret values.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import yaml
from yaml.constructor import SafeConstructor
from yaml.reader import ReaderError

from gateway.errors import ConfigError, ConfigProblem

MAX_FILE = 1024**2
# The size to which aliases may expand a file: a few hundred bytes can stand for billions of values.
MAX_NODES = 100_000
MAX_TEXT = 4 * MAX_FILE
MAX_DEPTH = 32

Key: TypeAlias = tuple[str, ...]
Value: TypeAlias = "str | int | float | bool | list[Value] | dict[str, Value] | None"
Tree: TypeAlias = dict[str, Value]


def shortened(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[:limit] + "…"


@dataclass(frozen=True, slots=True)
class Document:
    """A file's values, the line of each key, and its YAML errors."""

    name: str
    tree: Tree
    lines: dict[Key, int]
    problems: list[ConfigProblem]


def _refused(place: str, message: str) -> ConfigError:
    return ConfigError([ConfigProblem(place, "", message)])


def read_document(path: Path) -> Document:
    """The file's values and their lines. Raises ConfigError."""
    name = str(path)
    text = read_text(path)
    try:
        return _built(name, _compose(name, text))
    except RecursionError:
        raise _refused(name, "is nested too deeply") from None


def read_text(path: Path) -> str:
    """The file's text, at most 1 MiB of UTF-8. Raises ConfigError."""
    raw = _read_bytes(path)
    if len(raw) > MAX_FILE:
        raise _refused(str(path), f"is larger than {MAX_FILE // 1024} KiB")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _refused(f"{path} line {line}", "is not UTF-8; save the file as UTF-8") from None


def _read_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE + 1)
    except (OSError, ValueError) as error:
        raise _refused(str(path), _why_unreadable(error)) from None


def _why_unreadable(error: OSError | ValueError) -> str:
    match error:
        case FileNotFoundError():
            return "does not exist; create it, or give the path of the one you have"
        case IsADirectoryError():
            return "is a directory; give the path of a file in it"
        case PermissionError():
            return "isn't readable by the gateway's user; change its owner or mode"
        case OSError():
            return f"can't be read: {error.strerror}"
        case _:
            return f"isn't a valid file path: {error}"


def _compose(name: str, text: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise _refused(_marked(name, error), _syntax(error)) from None
    except ReaderError as error:
        line, column = _line_and_column(text, error.position)
        raise _refused(f"{name} line {line} column {column}", "contains a character that YAML doesn't allow") from None
    except (ValueError, OverflowError) as error:  # "\U99999999": the scanner hands it to chr()
        raise _refused(name, f"has an invalid escape: {error}") from None


def _line_and_column(text: str, position: int) -> tuple[int, int]:
    before = text[:position]
    return before.count("\n") + 1, position - before.rfind("\n")


def _marked(name: str, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return f"{name} line {mark.line + 1} column {mark.column + 1}" if mark else name


def _syntax(error: yaml.MarkedYAMLError) -> str:
    if error.context == "expected a single document in the stream":
        return "has a second document; expected one, without ---"
    problem = shortened(str(error.problem))
    hint = "; YAML is indented with spaces, not tabs" if "'\\t'" in problem else ""
    return f"{error.context}: {problem}{hint}" if error.context else f"{problem}{hint}"


def _built(name: str, node: yaml.Node | None) -> Document:
    builder = _Builder(name)
    tree = builder.build(node, ()) if node else None
    if tree is None or isinstance(tree, dict):
        return Document(name, tree or {}, builder.lines, builder.problems)
    raise _refused(name, "must be a mapping, such as `memory: 256MiB`, at the top")


_TAG = "tag:yaml.org,2002:"
# No setting is a date; `=` and `<<` are words like others where they are values.
_AS_WRITTEN = frozenset(_TAG + kind for kind in ("str", "timestamp", "value", "merge"))
_CONSTRUCTED = frozenset(_TAG + kind for kind in ("int", "float", "bool", "null"))


class _Builder:
    """Makes plain values of PyYAML's nodes. An alias counts each time it is used, so that a small file can't be
    a large configuration, and the work is bounded by the count."""

    def __init__(self, name: str) -> None:
        self.lines: dict[Key, int] = {}
        self.problems: list[ConfigProblem] = []
        self._name = name
        self._open: set[int] = set()
        self._nodes = 0
        self._text = 0

    def build(self, node: yaml.Node, key: Key) -> Value:
        if id(node) in self._open:
            raise _refused(self._place(node), "has an alias that contains itself")
        self._count(node, key)
        self._open.add(id(node))
        value = self._value(node, key)
        self._open.remove(id(node))
        return value

    def _count(self, node: yaml.Node, key: Key) -> None:
        self._nodes += 1
        self._text += len(node.value) if isinstance(node, yaml.ScalarNode) else 0
        if self._nodes > MAX_NODES or self._text > MAX_TEXT:
            raise _refused(self._place(node), f"has more than {MAX_NODES} values, aliases counted in full")
        if len(key) > MAX_DEPTH:
            raise _refused(self._place(node), f"is nested more than {MAX_DEPTH} deep")

    def _value(self, node: yaml.Node, key: Key) -> Value:
        match node:
            case yaml.MappingNode(tag="tag:yaml.org,2002:map"):
                return self._mapping(node, key)
            case yaml.SequenceNode(tag="tag:yaml.org,2002:seq"):
                return [self.build(item, (*key, str(index))) for index, item in enumerate(node.value)]
            case yaml.ScalarNode() if node.tag in _AS_WRITTEN:
                return str(node.value)
            case yaml.ScalarNode() if node.tag in _CONSTRUCTED:
                return self._constructed(node, key)
        tag = shortened(node.tag.replace(_TAG, "!!"))
        self._problem(node, f"{tag} isn't a supported tag; remove it", key)
        return None

    def _constructed(self, node: yaml.ScalarNode, key: Key) -> Value:
        try:
            # A new one each time: after an error it takes the node, met again by an alias, for a recursive one.
            value: Value = SafeConstructor().construct_object(node)
        except (ValueError, LookupError):
            self._problem(node, f"isn't a valid {node.tag.removeprefix(_TAG)}; put it in quotes if it is text", key)
            return None
        return value

    def _mapping(self, node: yaml.MappingNode, key: Key) -> Tree:
        tree: Tree = {}
        seen: dict[str, yaml.Node] = {}
        # Merged values come first, so that explicit ones overwrite them, including their lines.
        for name_node, value_node in sorted(node.value, key=lambda pair: not _is_merge(pair[0])):
            name = self._key_name(name_node)
            if name is None or self._is_second(name, name_node, seen):
                continue
            if _is_merge(name_node):
                tree.update(self._merged(value_node, key))
            else:
                self.lines[(*key, name)] = _line(name_node)
                tree[name] = self.build(value_node, (*key, name))
        return tree

    def _key_name(self, node: yaml.Node) -> str | None:
        if isinstance(node, yaml.ScalarNode) and (node.tag == _TAG + "str" or _is_merge(node)):
            return str(node.value)
        shown = f"the key {shortened(node.value)}" if isinstance(node, yaml.ScalarNode) else "a key"
        self._problem(node, f"{shown} isn't text; put it in quotes")
        return None

    def _is_second(self, name: str, node: yaml.Node, seen: dict[str, yaml.Node]) -> bool:
        first = seen.setdefault(name, node)
        if first is not node:
            self._problem(node, f"the key {shortened(name)} is a duplicate; the first is on line {_line(first)}")
        return first is not node

    def _merged(self, node: yaml.Node, key: Key) -> Tree:
        """The values that `<<` merges; of a list, the first wins (YAML's merge type)."""
        built = self.build(node, key)
        trees = built if isinstance(built, list) else [built]
        merged: Tree = {}
        for tree in reversed(trees):
            if isinstance(tree, dict):
                merged.update(tree)
            else:
                self._problem(node, "<< takes a mapping or a list of mappings")
        return merged

    def _place(self, node: yaml.Node) -> str:
        return f"{self._name} line {_line(node)}"

    def _problem(self, node: yaml.Node, message: str, key: Key = ()) -> None:
        self.problems.append(ConfigProblem(self._place(node), ".".join(key), message))


def _is_merge(node: yaml.Node) -> bool:
    return bool(node.tag == _TAG + "merge")


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
