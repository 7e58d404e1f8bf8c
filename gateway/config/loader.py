"""Reads the configuration: one YAML file, overridden by `.env`, overridden by the environment.

Every value keeps where it was set, and all problems are reported at once, each with that place. What the values mean
is decided by the models.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gateway.config.environment import (
    ADMIN_TOKEN,
    SettingMerge,
    SettingSource,
    admin_token,
    dotenv_variables,
    environment_variables,
    known_variables,
    option_variables,
)
from gateway.config.models import Config
from gateway.config.names import did_you_mean, misspelt
from gateway.config.part import PartConfig
from gateway.config.route import RouteConfig
from gateway.config.schema import (
    as_yaml,
    choices,
    clipped,
    field_at,
    in_short,
    is_container,
    is_model,
    leaves,
    redact,
    shape_at,
    shown,
    without_credentials,
)
from gateway.config.tls import TlsFileError, client_context, expired, server_context
from gateway.config.types import (
    FILE_OPTIONS,
    NAME,
    NAMES_ARE_CHECKED,
    ignored_options,
    is_size,
    options_of,
    show_duration,
    show_size,
)
from gateway.config.upstream import UpstreamConfig
from gateway.config.validation import all_errors, bad_names
from gateway.config.yaml_document import Document, Key, Tree, Value, read_document, shortened
from gateway.errors import ConfigError, ConfigProblem, OrderError
from gateway.http.path_template import TemplateError, compile_path
from gateway.policy.keys import is_identity
from gateway.policy.rules import CachePolicy

# Served before routing.
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
_VERBS = ("is", "isn't", "must", "may", "has", "needs", "names", "uses", "contains", "matches", "begins")


def validated(merge: SettingMerge) -> tuple[Config | None, list[ConfigProblem]]:
    """The configuration, or all that its models refuse."""
    try:
        return Config.model_validate(merge.tree), []
    except ValidationError:
        found = all_errors(_validated_but_for_names, merge.tree, lambda details: _written_key(merge, details["loc"]))
    listed: set[object] = set()
    problems = [_problem(merge, key, details, listed) for key, details in found]
    return None, [*map(partial(_bad_name, merge), bad_names(merge.tree)), *problems]


def _validated_but_for_names(tree: Tree) -> Config:
    return Config.model_validate(tree, context=NAMES_ARE_CHECKED)


def _bad_name(merge: SettingMerge, key: Key) -> ConfigProblem:
    hint = re.sub("[^a-z0-9]+", "_", re.sub("(?<=[a-z0-9])(?=[A-Z])", "_", key[-1]).lower()).strip("_")
    example = hint if NAME.fullmatch(hint) else "price_list"
    return merge.problem(
        key, f"{key[-1]!r} isn't a valid name; expected lower-case words joined by _, such as {example}"
    )


def _real_key(loc: tuple[int | str, ...]) -> Key:
    """The key that a validation error is about, without pydantic's names for validators and members of unions."""
    key: Key = ()
    while len(key) < len(loc) and is_container(shape_at(key)):
        key = (*key, str(loc[len(key)]))
    return key


def _written_key(merge: SettingMerge, loc: tuple[int | str, ...]) -> Key:
    key = _real_key(loc)
    headers = merge.entries_of(key[:3])
    return in_short(key) if in_short(key)[-1:] and in_short(key)[-1] in headers else key


def _problem(merge: SettingMerge, key: Key, errors: list[ErrorDetails], listed: set[object]) -> ConfigProblem:
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
    # A union reports an error for each of its members; they are the choices.
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
    """The settings that are allowed here, the first time."""
    shape = shape_at(key[:-1])
    if shape in listed or not is_model(shape):
        return ""
    listed.add(shape)
    return f". Allowed here: {', '.join(shape.model_fields)}"


def _sentence(key: Key, error: ErrorDetails) -> str:
    message, value = shortened(error["msg"].removeprefix("Value error, "), 500), error["input"]
    if value is None or isinstance(value, dict | list):
        return message  # it is about several values, or names the item
    shown_value = shown(key, value)
    message = message.replace(repr(value), shown_value)
    first_word = message.partition(" ")[0]
    if first_word in _VERBS:
        return f"{shown_value} {message}"
    what, semicolon, expected = message.partition(";")
    if what in ("invalid duration", "invalid size"):
        return f"{what} {shown_value}{semicolon}{expected}"
    return message if shown_value in message else f"{message.rstrip('.')} (it is {shown_value})"


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
    if isinstance(limit, str) and limit.startswith("datetime.timedelta("):  # pydantic gives a repr
        limit = timedelta(**{unit: int(number) for unit, number in re.findall(r"(\w+)=(\d+)", limit)})
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


def cross_problems(merge: SettingMerge) -> list[ConfigProblem]:
    """Problems between entries, found in the plain values so that they are reported together with invalid values."""
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


def _upstream_problems(merge: SettingMerge, where: Key, upstream: Value) -> list[ConfigProblem]:
    known = merge.entries("upstreams")
    if not isinstance(upstream, str) or upstream in known:
        return []
    hint = did_you_mean(upstream, known) or f"; there are: {', '.join(known) or 'none'}"
    return [merge.problem((*where, "upstream"), f"there is no upstream {clipped(upstream)}{hint}")]


def _path_problems(merge: SettingMerge, name: str, path: Value, taken: dict[str, str]) -> list[ConfigProblem]:
    """`taken` has, by the path's shape, the first route that has it; this one is added."""
    key = ("routes", name, "path")
    try:
        text = compile_path(path).text if isinstance(path, str) else None
    except TemplateError:
        text = None
    if text is None:
        return []  # reported by the model
    if text in OWN_PATHS:
        return [merge.problem(key, f"{text} is reserved for the gateway; choose another path")]
    other = taken.setdefault(re.sub(r"\{\w+", "{", text), name)
    if other == name:
        return []
    place = merge.place(("routes", other, "path"))
    return [merge.problem(key, f"{text} matches the same requests as the path of the route {other} ({place})")]


@dataclass(frozen=True)
class Loaded:
    """A valid configuration, the sources of each leaf that was set (the winner first), and warnings."""

    config: Config
    sources: Mapping[Key, tuple[SettingSource, ...]]
    warnings: tuple[str, ...]
    admin_token: str | None = field(default=None, repr=False)
    """GATEWAY_ADMIN_TOKEN, which is not a field of the configuration, so that no shared file contains it."""
    tree: Tree = field(default_factory=dict, repr=False)
    """The values as they were read and merged; `rebuilt` makes the same configuration of them in another process."""
    handlers: Mapping[str, CachePolicy] = field(default_factory=dict)
    """The rules of `@cached` handlers, by name, that live overrides made other than the code has them."""
    aggregates: Mapping[str, RouteConfig] = field(default_factory=dict)
    """The same of aggregates that are written in Python."""
    app: AppSource | None = None
    """The app that `gateway serve` was given, whose configuration this is."""


@dataclass(frozen=True)
class AppSource:
    """An app as `gateway serve` is given it: `place` is `module:attribute`, `file` the configuration of an app whose
    code names none, and `options` are those of the command line, by setting."""

    place: str
    file: str | None = None
    options: Mapping[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Setting:
    """A line of `gateway check`: `routes.product.ttl`, its value as in YAML, and its source."""

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
    """The configuration of the YAML file `path`, the file `dotenv` if it exists, `environ` (default: this process's)
    and `options` (of the command line, by setting), each overriding those before it.

    An unknown `GATEWAY_…` variable is a warning; all other errors raise ConfigError, which lists them.
    """
    environ = os.environ if environ is None else environ
    merge = SettingMerge(read_document(path) if path else Document("", {}, {}, []))
    variables = [*dotenv_variables(dotenv, environ), *environment_variables(environ), *option_variables(options or {})]
    merge.apply(variables)
    merge.fill(known_variables(dotenv, environ))
    token, unread = admin_token(variables)
    config, wrong = validated(merge)
    problems = _without_sequels(
        [
            *(*merge.problems, *wrong, *cross_problems(merge), *unread),
            *(*_admin_problems(merge, config, token), *_tls_problems(merge, config, environ)),
        ]
    )
    if problems or config is None:
        raise ConfigError(sorted(problems, key=_line_of), tuple(merge.warnings))
    sources = {key: tuple(found) for key, found in merge.sources.items()}
    of_identities = (*_weak_digests(config), *_identities_in_paths(config))
    of_listener = expired(config.listen.tls) if config.listen.tls is not None else ()
    warnings = (*merge.warnings, *redis_warnings(merge, config), *of_identities, *of_listener)
    return Loaded(config, sources, warnings, token, merge.tree)


def _weak_digests(config: Config) -> Iterator[str]:
    """Warns if credential digests use a key that is stored next to them."""
    if config.redis_secret is not None or config.redis_url in ("none", "embedded"):
        return
    names = [name for name, route in config.routes.items() if _keeps_identities(route)]
    names += [name for name, route in config.routes.items() if any(map(_keeps_identities, route.parts.values()))]
    if names:
        shown_value = ", ".join(dict.fromkeys(names))
        yield (
            f"redis_secret is not set: the key of the credential digests ({shown_value}) is stored in Redis itself, so "
            "anyone who can read Redis can test guesses of short credentials; set GATEWAY_REDIS_SECRET"
        )


def _identities_in_paths(config: Config) -> Iterator[str]:
    """Warns if a request field that identifies the client is used where keys and tags show it in clear text."""
    for name, route in config.routes.items():
        for part in route.part_plan.parts.values():
            texts = [each for each in (part.target, part.batch, *part.tags) if each is not None]
            references = [each for text in texts for each in text.references if each.source == "header"]
            for field_name in dict.fromkeys(each.rest for each in references if is_identity(each.rest)):
                yield (
                    f"routes.{name}.parts.{part.name} has {{header.{field_name}}} in a path or tag, which is stored "
                    "in Redis in clear text; send it with `headers` of the part, which keys contain as a digest"
                )


def _keeps_identities(config: RouteConfig | PartConfig) -> bool:
    """Whether keys of a route or a part contain digests of identifying fields or of claims, by its settings."""
    cookies = isinstance(config.cookies, list) and bool(config.cookies)
    keyed = config.authorization == "key" or bool(config.per)
    return keyed or cookies or any(map(is_identity, config.vary or ()))


def rebuilt(
    tree: Tree,
    sources: Mapping[Key, tuple[SettingSource, ...]],
    admin_token: str | None,
    app: AppSource | None = None,
) -> Loaded:
    """The configuration of values that were found valid before."""
    return Loaded(Config.model_validate(tree), sources, (), admin_token, tree, app=app)


def _admin_problems(merge: SettingMerge, config: Config | None, token: str | None) -> list[ConfigProblem]:
    """The admin listener changes things for all: on an address that others can reach it needs a token."""
    if config is None or token or config.admin_tokens or config.admin_identity or config.admin_is_private:
        return []
    message = f"{config.admin_listen} is reachable from other hosts; set {ADMIN_TOKEN}, or listen on 127.0.0.1"
    return [merge.problem(("admin_listen",), message)]


def _tls_problems(merge: SettingMerge, config: Config | None, environ: Mapping[str, str]) -> Iterator[ConfigProblem]:
    """Certificates and keys that can't be used."""
    if config is not None and (tls := config.listen.tls) is not None:
        try:
            server_context(tls)
        except TlsFileError as error:
            yield merge.problem(("listen", "tls", error.setting), str(error))
    for name, upstream in config.upstreams.items() if config is not None else ():
        own = upstream.ca_file or upstream.client_cert
        if not own and not (environ.get("SSL_CERT_FILE") or environ.get("SSL_CERT_DIR")):
            continue  # reading the default list takes 20 ms
        try:
            client_context(upstream, environ)
        except TlsFileError as error:
            named = (error.setting,) if error.setting in UpstreamConfig.model_fields else ()
            text = str(error) if named else f"{error.setting}: {error}"
            yield merge.problem(("upstreams", name, *named), text)


@dataclass(frozen=True)
class AdminSettings:
    """What the commands need to find a gateway's admin listener, read as by `serve` in the same folder."""

    listen: str = "127.0.0.1:9000"
    source: str = "the default"
    url: str | None = None
    token: str | None = field(default=None, repr=False)


def admin_settings(path: Path | None, *, dotenv: Path | None = Path(".env")) -> AdminSettings:
    """From the file, `.env` and the environment, regardless of other errors in them. Raises ConfigError if they can't
    be read, OrderError if the token can't."""
    variables = [*dotenv_variables(dotenv, os.environ), *environment_variables(os.environ)]
    merge = SettingMerge(read_document(path) if path else Document("", {}, {}, []))
    merge.apply(variables)
    named = {each.name: each.value for each in variables if each.value}
    token, unread = admin_token(variables)
    if unread:
        raise OrderError(str(unread[0]))
    listen = merge.tree.get("admin_listen", AdminSettings.listen)
    return AdminSettings(
        listen if isinstance(listen, str) else AdminSettings.listen,
        merge.place(("admin_listen",)) if "admin_listen" in merge.tree else AdminSettings.source,
        named.get("GATEWAY_ADMIN_URL"),
        token,
    )


def redis_warnings(merge: SettingMerge, config: Config) -> list[str]:
    """Warnings about `redis_url` that need no connection: options without an effect, unreadable files."""
    url = config.redis_url
    if url in ("embedded", "none"):
        return []
    files = [(name, path) for name, path in options_of(url).items() if name in FILE_OPTIONS]
    unreadable = [f"{name}={path} can't be read" for name, path in files if not os.access(path, os.R_OK)]
    place = merge.place(("redis_url",))
    return [f"{place}: redis_url: {message}" for message in (*ignored_options(url), *unreadable)]


def _line_of(problem: ConfigProblem) -> tuple[bool, int]:
    """The sort key of problems: the file's lines, then variables."""
    line = re.search(r" line (\d+)", problem.source)
    return (False, int(line[1])) if line else (True, 0)


def _without_sequels(problems: list[ConfigProblem]) -> list[ConfigProblem]:
    """The first problem of each value: for an unreadable value, the models report follow-up errors. Of an entry as a
    whole, all."""
    first: dict[tuple[str, str], ConfigProblem] = {}
    kept = []
    for problem in problems:
        whole = is_container(shape_at(tuple(problem.key.split("."))))
        identity = (problem.key, problem.message if whole else "")
        if not problem.key or first.setdefault(identity, problem) is problem:
            kept.append(problem)
    return kept


def effective(loaded: Loaded, *, masked: bool = True) -> list[Setting]:
    """Every leaf of the configuration, defaults too, in the order of the models; secrets are masked. A section that is
    not there is left out: read again as `null`, it would be one that lacks its settings."""
    sources = {_folded(key): found for key, found in loaded.sources.items()}
    values = leaves(loaded.config.model_dump(mode="json"), Config, ())
    return [
        Setting(
            ".".join(key),
            redact(key, as_yaml(value)) if masked else as_yaml(value),
            _origin(sources.get(_folded(key), ())),
        )
        for key, value in values
        if value is not None or not is_model(shape_at(key))
    ]


def sources_of(loaded: Loaded, key: Key) -> tuple[SettingSource, ...]:
    """The sources of the value at `key`, the winner first; empty for the default."""
    return {_folded(known): found for known, found in loaded.sources.items()}.get(_folded(key), ())


def _folded(key: Key) -> Key:
    # The models write the names of headers in lower case; the file need not.
    return tuple(part.lower() for part in in_short(key))


def _origin(sources: tuple[SettingSource, ...]) -> str:
    places = [source.place for source in sources] or ["default"]
    return f"{places[0]}, over {', '.join(places[1:])}" if places[1:] else places[0]
