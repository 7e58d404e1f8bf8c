"""Reads the configuration: one YAML file, overridden by `.env`, overridden by the environment.

Every value keeps where it came from, and every problem is told with that place, all of them at once. What the
values mean is decided in `config`; nothing here knows a duration from a size.

pydantic-settings' sources don't do: a variable they can't place is dropped without a word, `5` becomes a number
under an unknown name, `GATEWAY_CORS={…}` hides `GATEWAY_CORS__MAX_AGE`, and none of them says which variable a
value came from. Its reader of `.env`, python-dotenv, does.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from io import StringIO
from pathlib import Path
from types import UnionType
from typing import Annotated, Literal, TypeGuard, Union, get_args, get_origin

import yaml
from dotenv.parser import Binding, parse_stream
from dotenv.variables import parse_variables
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from .config import Config
from .document import Document, Key, Tree, Value, read_document, read_text, shortened
from .errors import ConfigError, ConfigProblem
from .policy import Rules
from .templates import TemplateError, compile_path

PREFIX = "GATEWAY_"
# Read by the command line and the admin API, and no fields of the configuration.
ADMIN_TOKEN = "GATEWAY_ADMIN_TOKEN"  # noqa: S105 - a name
OTHER_VARIABLES = (ADMIN_TOKEN, "GATEWAY_ADMIN_URL", "GATEWAY_URL")
# Answered before any route is looked for.
OWN_PATHS = ("/healthz", "/readyz")
Kind = Literal["live", "option", "environment", "dotenv", "file"]


@dataclass(frozen=True, slots=True)
class Source:
    """What set a value: `place` is for people (`config/gateway.yaml line 14`), `value` is masked where secret."""

    kind: Kind
    place: str
    value: str


@dataclass(frozen=True)
class Loaded:
    """A valid configuration; for each leaf that was set, who set it, the winner first; and what to warn of."""

    config: Config
    sources: Mapping[Key, tuple[Source, ...]]
    warnings: tuple[str, ...]
    admin_token: str | None = field(default=None, repr=False)
    """GATEWAY_ADMIN_TOKEN, which is no field of the configuration: no file that is shown or shared holds it."""
    tree: Tree = field(default_factory=dict, repr=False)
    """The values as they were read and merged; `rebuilt` makes the same configuration of them in another process."""
    handlers: Mapping[str, Rules] = field(default_factory=dict)
    """The rules of `@cached` handlers, by name, that live overrides made other than the code has them."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A line of `gateway check`: `routes.product.ttl`, its value as in YAML, and where it came from."""

    key: str
    value: str
    source: str


def load(
    path: Path | None,
    *,
    environ: Mapping[str, str] | None = None,
    dotenv: Path | None = Path(".env"),
    options: Mapping[str, str] | None = None,
) -> Loaded:
    """The configuration of the YAML file `path`, the file `dotenv` where there is one, `environ` (this process's
    where not given) and `options` (of the command line, by setting), each overriding those before it.

    An unknown `GATEWAY_…` variable is a warning; all else that is wrong raises ConfigError, which lists it.
    """
    environ = os.environ if environ is None else environ
    merge = _Merge(read_document(path) if path else Document("", {}, {}, []))
    variables = [*_dotenv_variables(dotenv, environ), *_environment_variables(environ), *_options(options or {})]
    merge.apply(variables)
    token = next((each.value for each in reversed(variables) if each.name == ADMIN_TOKEN and each.value), None)
    config, wrong = _validated(merge)
    problems = _without_sequels(
        [*merge.problems, *wrong, *_cross_problems(merge), *_admin_problems(merge, config, token)]
    )
    if problems or config is None:
        raise ConfigError(problems)
    sources = {key: tuple(found) for key, found in merge.sources.items()}
    return Loaded(config, sources, tuple(merge.warnings), token, merge.tree)


def rebuilt(tree: Tree, sources: Mapping[Key, tuple[Source, ...]], admin_token: str | None) -> Loaded:
    """The configuration of values that were found valid before."""
    return Loaded(Config.model_validate(tree), sources, (), admin_token, tree)


def _admin_problems(merge: _Merge, config: Config | None, token: str | None) -> list[ConfigProblem]:
    """The admin listener changes things for all: on an address that others can reach it needs a token."""
    if config is None or token or config.admin_is_private:
        return []
    message = f"{config.admin_listen} can be reached by others: set {ADMIN_TOKEN}, or listen on 127.0.0.1"
    return [merge.problem(("admin_listen",), message)]


def _without_sequels(problems: list[ConfigProblem]) -> list[ConfigProblem]:
    """The first problem of each key: of a value that couldn't be read, the models tell what it isn't."""
    first: dict[str, ConfigProblem] = {}
    return [problem for problem in problems if not problem.key or first.setdefault(problem.key, problem) is problem]


def effective(loaded: Loaded, *, masked: bool = True) -> list[Setting]:
    """Every leaf of the configuration, defaults too, in the order of the models; secrets are masked."""
    sources = {_folded(key): found for key, found in loaded.sources.items()}
    leaves = _leaves(loaded.config.model_dump(mode="json"), Config, ())
    return [
        Setting(
            ".".join(key),
            redact(key, _yaml(value)) if masked else _yaml(value),
            _origin(sources.get(_folded(key), ())),
        )
        for key, value in leaves
    ]


def sources_of(loaded: Loaded, key: Key) -> tuple[Source, ...]:
    """Who set the value at `key`, the winner first; empty where it is the default."""
    return {_folded(known): found for known, found in loaded.sources.items()}.get(_folded(key), ())


def _folded(key: Key) -> Key:
    # The models write the names of headers in lower case; the file need not.
    return tuple(part.lower() for part in key)


def _origin(sources: tuple[Source, ...]) -> str:
    places = [source.place for source in sources] or ["default"]
    return f"{places[0]}, over {', '.join(places[1:])}" if places[1:] else places[0]


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `name` was probably meant to be, or None."""
    found = difflib.get_close_matches(name.lower(), list(known), n=1)
    return found[0] if found else None


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = nearest(name, known)
    return f"; did you mean {near}?" if near else ""


# What must not be shown -----------------------------------------------------------------------------------

_SECRET_NAME = re.compile("token|secret|password|authorization", re.IGNORECASE)
# Up to the last @: a password with a slash in it is no valid URL, and is a password all the same.
_USER_INFO = re.compile(r"://\S*@")
_SECRET_PARAMETER = re.compile(r"([?&][\w-]*(?:token|secret|password|api[_-]?key)[\w-]*=)[^&\s]*", re.IGNORECASE)


def redact(key: Key, text: str) -> str:
    """`text`, a value of `key`, with `***` for what is secret: headers of upstreams, tokens, passwords, the
    credentials in a URL."""
    if _is_secret(key) and text not in ("{}", "null", *_choices(_shape_at(key))):
        return "***"
    return _without_credentials(text)


def _without_credentials(text: str) -> str:
    return _SECRET_PARAMETER.sub(r"\1***", _USER_INFO.sub("://***@", text))


def _is_secret(key: Key) -> bool:
    return bool(key and _SECRET_NAME.search(key[-1])) or (key[:1] == ("upstreams",) and "headers" in key[2:3])


# How a value is shown -------------------------------------------------------------------------------------


def _yaml(value: Value) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _shown(key: Key, value: Value) -> str:
    short = _clipped(value)
    return redact(key, short if isinstance(short, str) and short.isprintable() else _yaml(short))


def _clipped(value: Value) -> Value:
    match value:
        case str():
            return shortened(value)
        case list():
            return [_clipped_item(item) for item in value[:20]] + (["…"] if len(value) > 20 else [])
        case dict():
            return {name: _clipped_item(item) for name, item in list(value.items())[:20]}
    return value


def _clipped_item(item: Value) -> Value:
    return "…" if isinstance(item, list | dict) else _clipped(item)


# The models' shape ----------------------------------------------------------------------------------------
#
# A shape is an annotation: a model, a dict, or anything else, which is a leaf.


def _is_model(shape: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(shape, type) and issubclass(shape, BaseModel)


def _is_container(shape: object) -> bool:
    return _is_model(shape) or get_origin(shape) is dict


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
    return next((member for member in _members(annotation) if _is_container(member)), annotation)


def _child(shape: object, name: str) -> object | None:
    if _is_model(shape):
        field = shape.model_fields.get(name)
        return _shape(field.annotation) if field else None
    return _shape(get_args(shape)[1]) if get_origin(shape) is dict else None


def _shape_at(key: Key) -> object | None:
    shape: object | None = Config
    for name in key:
        shape = _child(shape, name)
    return shape


def _takes_list(shape: object) -> bool:
    return any(get_origin(member) is list for member in _members(shape))


def _choices(shape: object) -> tuple[str, ...]:
    literals = [member for member in _members(shape) if get_origin(member) is Literal]
    return tuple(str(choice) for literal in literals for choice in get_args(literal))


def _filled(value: Value, shape: object) -> Value:
    """A copy in which a mapping with nothing under it (`cors:`) is an empty one."""
    if not _is_container(shape):
        return value
    if isinstance(value, dict):
        return {name: _filled(item, _child(shape, name)) for name, item in value.items()}
    return {} if value is None else value


def _leaves(value: Value, shape: object, key: Key) -> Iterator[tuple[Key, Value]]:
    if isinstance(value, dict) and value and _is_container(shape):
        for name, item in value.items():
            yield from _leaves(item, _child(shape, name), (*key, name))
    else:
        yield key, value


# The variables --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Variable:
    name: str
    value: str
    kind: Kind
    place: str

    @property
    def key(self) -> Key:
        return tuple(self.name[len(PREFIX) :].lower().split("__"))


@dataclass(frozen=True, slots=True)
class _Assignment:
    key: Key
    value: Value
    variable: _Variable


def _name_of(key: Key) -> str:
    return PREFIX + "__".join(key).upper()


def _is_ours(name: str) -> bool:
    return name.upper().startswith(PREFIX)


def _by_weight(values: Mapping[str, str]) -> list[str]:
    # The later overrides: the spelling in capitals any other, GATEWAY_CORS__MAX_AGE the GATEWAY_CORS it is part of.
    return sorted(filter(_is_ours, values), key=lambda name: (name.isupper(), name))


def _environment_variables(environ: Mapping[str, str]) -> list[_Variable]:
    return [_Variable(name, environ[name], "environment", f"environment {name}") for name in _by_weight(environ)]


def _options(options: Mapping[str, str]) -> list[_Variable]:
    return [_Variable(_name_of((name,)), value, "option", f"--{name}") for name, value in options.items()]


def _dotenv_variables(path: Path | None, environ: Mapping[str, str]) -> list[_Variable]:
    if path is None or not os.path.exists(path):
        return []
    bindings = list(parse_stream(StringIO(read_text(path))))
    problems = [_dotenv_problem(path, binding) for binding in bindings if _is_broken(binding)]
    if problems:
        raise ConfigError(problems)
    values = _interpolated(bindings, environ)
    return [_Variable(name, values[name], "dotenv", f"{path} {name}") for name in _by_weight(values)]


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


def _parsed(variable: _Variable, shape: object) -> Value:
    """A variable's value: JSON where the shape wants a mapping, or a list and the text begins as one. Raises
    ConfigError."""
    text = variable.value
    if _is_container(shape):
        example = _name_of((*variable.key, "…")) + "=…"
        return _json(variable, "{", f'must be a JSON object such as {{"name": "value"}}; or set {example}')
    # A pattern such as [a-z]* is no JSON.
    if _takes_list(shape) and re.match(r'\s*\[\s*["\]]', text):
        return _json(variable, "[", 'begins as a JSON list and is none; write ["a", "b"] or a,b')
    return text


def _json(variable: _Variable, opening: str, message: str) -> Value:
    try:
        if variable.value.lstrip().startswith(opening):
            value: Value = json.loads(variable.value)
            return value
    except (ValueError, RecursionError):
        pass
    raise ConfigError([ConfigProblem(variable.place, ".".join(variable.key), message)])


# File and variables together ------------------------------------------------------------------------------

# What an entry that only variables know must have, one of each group, to be an entry and not a misspelt name.
_ESSENTIAL = {"routes": (("path",), ("upstream",)), "upstreams": (("url", "urls"),)}


class _Merge:
    """The values of all sources, merged, and for each leaf who set it, the winner first."""

    def __init__(self, document: Document) -> None:
        filled = _filled(document.tree, Config)
        self.tree: Tree = filled if isinstance(filled, dict) else {}
        self.sources: dict[Key, list[Source]] = {}
        self.warnings: list[str] = []
        self.problems = document.problems
        self._document = document
        for key, value in _leaves(self.tree, Config, ()) if self.tree else ():
            self.sources[key] = [Source("file", self._file_place(key), _shown(key, value))]

    def apply(self, variables: list[_Variable]) -> None:
        assignments = [assignment for variable in variables for assignment in self._assignments(variable)]
        given: dict[Key, set[str]] = {}
        for assignment in assignments:
            given.setdefault(assignment.key[:2], set()).update(assignment.key[2:3])
        for assignment in assignments:
            if self._has_entry(assignment, given[assignment.key[:2]]):
                self._put(assignment)

    def _assignments(self, variable: _Variable) -> list[_Assignment]:
        if variable.name.upper() in OTHER_VARIABLES or self._is_kubernetes(variable):
            return []
        shape = _shape_at(variable.key)
        if shape is None:
            self._unknown(variable, variable.key, variable.name)
            return []
        try:
            value = _filled(_parsed(variable, shape), shape)
        except ConfigError as error:
            self.problems.extend(error.problems)
            return []
        return list(self._known_leaves(variable, value, shape))

    def _is_kubernetes(self, variable: _Variable) -> bool:
        found = variable.key == ("port",) and re.match(r"(tcp|udp|sctp)://", variable.value)
        if found:
            self._warn(variable, "is what Kubernetes sets for a service named gateway; it is ignored")
        return bool(found)

    def _known_leaves(self, variable: _Variable, value: Value, shape: object) -> Iterator[_Assignment]:
        for key, leaf in _leaves(value, shape, variable.key):
            if _shape_at(key) is None:
                self._unknown(variable, key, f"{'.'.join(key)} in {variable.name}")
            else:
                yield _Assignment(key, leaf, variable)

    def _warn(self, variable: _Variable, message: str, what: str | None = None) -> None:
        where = f" in {variable.place.removesuffix(' ' + variable.name)}" if variable.kind == "dotenv" else ""
        self.warnings.append(f"{what or variable.name}{where} {message}")

    def _unknown(self, variable: _Variable, key: Key, what: str) -> None:
        meant = self._meant(key)
        self._warn(variable, f"is unknown; did you mean {meant}?" if meant else "is unknown; it is ignored", what)

    def _meant(self, key: Key) -> str | None:
        """The variable that one with the unknown `key` was probably meant to be."""
        squeezed = _squeezed(_name_of(key))
        if squeezed in self._squeezed_names:
            return self._squeezed_names[squeezed]
        known = next(length for length in range(len(key)) if _shape_at(key[: length + 1]) is None)
        shape = _shape_at(key[:known])
        names = list(shape.model_fields) if _is_model(shape) else []
        names += [name[len(PREFIX) :].lower() for name in OTHER_VARIABLES if known == 0]
        near = nearest(key[known], names)
        return _name_of((*key[:known], near, *key[known + 1 :])) if near else None

    @cached_property
    def _squeezed_names(self) -> dict[str, str]:
        """The variables' names by what they are with one underscore for two, as GATEWAY_CORS_MAX_AGE is written."""
        return {_squeezed(_name_of(key)): _name_of(key) for key in _known_keys(Config, self.tree, ())}

    def _has_entry(self, assignment: _Assignment, given: set[str]) -> bool:
        section, *rest = assignment.key
        if section not in _ESSENTIAL or not rest or _spelt(self.entries(section), rest[0]) is not None:
            return True
        if all(given & set(group) for group in _ESSENTIAL[section]):
            return True
        self._no_entry(assignment.variable, section, rest[0])
        return False

    def _no_entry(self, variable: _Variable, section: str, name: str) -> None:
        hint = _did_you_mean(name, self.entries(section))
        needed = " and ".join(_name_of((section, name, group[0])) for group in _ESSENTIAL[section])
        message = f"is ignored: there is no {name} in {section}{hint or f'; a new one needs {needed}'}"
        self._warn(variable, message)

    def entries(self, section: str) -> Tree:
        entries = self.tree.get(section)
        return entries if isinstance(entries, dict) else {}

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
        source = Source(variable.kind, variable.place, _shown(key, assignment.value))
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


def _known_keys(shape: object, value: Value, key: Key) -> Iterator[Key]:
    """All that may be set: the models' fields, and those of the entries that there are."""
    entries = value if isinstance(value, dict) else {}
    for name in shape.model_fields if _is_model(shape) else entries:
        inner = (*key, name)
        yield inner
        if _is_container(_shape_at(inner)):
            yield from _known_keys(_shape_at(inner), entries.get(name), inner)


# What is wrong with the values ----------------------------------------------------------------------------

_WANTED = {
    "string_type": "text", "list_type": "a list", "dict_type": "a mapping", "model_type": "a mapping",
    "int_type": "a whole number", "int_parsing": "a whole number", "int_from_float": "a whole number",
    "float_type": "a number", "float_parsing": "a number",
    "bool_type": "true or false", "bool_parsing": "true or false",
}  # fmt: skip
# With these a message goes on from the value; the others have a subject of their own.
_VERBS = ("is", "must", "may", "has", "needs", "names", "uses")


def _validated(merge: _Merge) -> tuple[Config | None, list[ConfigProblem]]:
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
    while len(key) < len(loc) and _is_container(_shape_at(key)):
        key = (*key, str(loc[len(key)]))
    return key


def _problem(merge: _Merge, key: Key, errors: list[ErrorDetails]) -> ConfigProblem:
    message = _without_credentials(_message(key, errors))
    about = message.partition(" ")[0].rstrip(":")
    place = merge.place((*key, about) if (*key, about) in merge.sources else key)
    return ConfigProblem(place, shortened(".".join(key)), message)


def _message(key: Key, errors: list[ErrorDetails]) -> str:
    members = [error for error in errors if isinstance((*error["loc"], 0)[len(key)], str)]
    if len(members) < 2 or any(error["type"] == "value_error" for error in errors):
        return "; ".join(_single(key, error) for error in errors)
    # A union tells of each of its members, by its name; they are the choices that there are.
    wanted = dict.fromkeys(_wanted(key, error) for error in errors)
    return f"{_shown(key, errors[0]['input'])} must be {' or '.join(wanted)}"


def _single(key: Key, error: ErrorDetails) -> str:
    match error["type"]:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            return _unknown_key(key)
        case "value_error":
            return _sentence(key, error)
        case "literal_error":
            return f"{_shown(key, error['input'])} must be {_wanted(key, error)}{_meant_choice(key, error)}"
    return f"{_shown(key, error['input'])} must be {_wanted(key, error)}{_hint(error)}"


def _unknown_key(key: Key) -> str:
    shape = _shape_at(key[:-1])
    names = list(shape.model_fields) if _is_model(shape) else []
    return f"is unknown{_did_you_mean(key[-1], names) or '.'} Allowed here: {', '.join(names)}"


def _sentence(key: Key, error: ErrorDetails) -> str:
    message, value = shortened(error["msg"].removeprefix("Value error, "), 500), error["input"]
    if isinstance(value, dict | list):
        return message  # it names the item
    shown = _shown(key, value)
    message = message.replace(repr(value), shown)
    if message.partition(" ")[0] in _VERBS:
        return f"{shown} {message}"
    return message if shown in message else f"{message.rstrip('.')} (it is {shown})"


def _wanted(key: Key, error: ErrorDetails) -> str:
    if error["type"] == "literal_error":
        return str(error["ctx"]["expected"])
    wanted = _WANTED.get(error["type"], error["msg"].removeprefix("Input should be "))
    is_item = len(error["loc"]) > len(key) and isinstance(error["loc"][-1], int)
    return f"a list of {wanted}" if is_item and _choices(_shape_at(key)) else wanted


def _meant_choice(key: Key, error: ErrorDetails) -> str:
    return _did_you_mean(str(error["input"]), _choices(_shape_at(key)))


def _hint(error: ErrorDetails) -> str:
    if error["type"] != "string_type" or isinstance(error["input"], list | dict | None):
        return ""
    is_bool = isinstance(error["input"], bool)
    return "; put it in quotes" + (" (YAML reads yes, no, on and off as true and false)" if is_bool else "")


def _cross_problems(merge: _Merge) -> list[ConfigProblem]:
    """What is wrong between entries; found in the plain values, so that it is told along with what is wrong in
    them."""
    problems: list[ConfigProblem] = []
    shapes: dict[str, str] = {}
    for name, route in merge.entries("routes").items():
        if isinstance(route, dict):
            problems += _upstream_problems(merge, name, route.get("upstream"))
            problems += _path_problems(merge, name, route.get("path"), shapes)
    return problems


def _upstream_problems(merge: _Merge, name: str, upstream: Value) -> list[ConfigProblem]:
    known = merge.entries("upstreams")
    if not isinstance(upstream, str) or upstream in known:
        return []
    hint = _did_you_mean(upstream, known) or f"; there are: {', '.join(known) or 'none'}"
    return [merge.problem(("routes", name, "upstream"), f"{_clipped(upstream)} is no upstream{hint}")]


def _path_problems(merge: _Merge, name: str, path: Value, taken: dict[str, str]) -> list[ConfigProblem]:
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
