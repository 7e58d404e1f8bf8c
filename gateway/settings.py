"""Reads the configuration: one YAML file, overridden by `.env`, overridden by the environment.

Every value keeps where it came from, and every problem is told with that place, all of them at once. What the
values mean is decided in `config`; nothing here knows a duration from a size. `document` reads the file, `variables`
the rest, `merging` makes one of them, `setting_problems` says what is wrong, `redaction` what may be shown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .config import Config, RouteConfig
from .config_shape import is_container, leaves, shape_at
from .document import Document, Key, Tree, read_document
from .errors import ConfigError, ConfigProblem
from .keys import is_identity
from .merging import ADMIN_TOKEN, Merge
from .merging import OTHER_VARIABLES as OTHER_VARIABLES
from .merging import Source as Source
from .part_config import PartConfig
from .policy import Rules
from .redaction import as_yaml
from .redaction import redact as redact
from .redis_urls import FILE_OPTIONS, ignored_options, options_of
from .setting_problems import cross_problems, validated
from .spelling import nearest as nearest
from .variables import dotenv_variables, environment_variables, option_variables


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
    aggregates: Mapping[str, RouteConfig] = field(default_factory=dict)
    """The same of aggregates that are written in Python."""


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
    merge = Merge(read_document(path) if path else Document("", {}, {}, []))
    variables = [*dotenv_variables(dotenv, environ), *environment_variables(environ), *option_variables(options or {})]
    merge.apply(variables)
    token = next((each.value for each in reversed(variables) if each.name == ADMIN_TOKEN and each.value), None)
    config, wrong = validated(merge)
    problems = _without_sequels(
        [*merge.problems, *wrong, *cross_problems(merge), *_admin_problems(merge, config, token)]
    )
    if problems or config is None:
        raise ConfigError(sorted(problems, key=_line_of), tuple(merge.warnings))
    sources = {key: tuple(found) for key, found in merge.sources.items()}
    of_identities = (*_weak_digests(config), *_identities_in_paths(config))
    warnings = (*merge.warnings, *redis_warnings(merge, config), *of_identities)
    return Loaded(config, sources, warnings, token, merge.tree)


def _weak_digests(config: Config) -> Iterator[str]:
    """Where digests of credentials are made with a key that lies beside them."""
    if config.redis_secret is not None or config.redis_url in ("none", "embedded"):
        return
    names = [name for name, route in config.routes.items() if _keeps_identities(route)]
    names += [name for name, route in config.routes.items() if any(map(_keeps_identities, route.parts.values()))]
    if names:
        told = ", ".join(dict.fromkeys(names))
        yield (
            f"redis_secret is not set: the key that digests of credentials are made with ({told}) lies in "
            "Redis itself, so that who reads Redis can test guesses of short ones; set GATEWAY_REDIS_SECRET"
        )


def _identities_in_paths(config: Config) -> Iterator[str]:
    """Where a request field that says who asks is put where keys and tags show it as it is."""
    for name, route in config.routes.items():
        for part in route.part_plan.parts.values():
            texts = [each for each in (part.target, part.batch, *part.tags) if each is not None]
            references = [each for text in texts for each in text.references if each.source == "header"]
            for field_name in dict.fromkeys(each.rest for each in references if is_identity(each.rest)):
                yield (
                    f"routes.{name}.parts.{part.name} has {{header.{field_name}}} in a path or tag, which lies in "
                    "Redis as it is; send it by `headers` of the part, of which keys hold a digest"
                )


def _keeps_identities(config: RouteConfig | PartConfig) -> bool:
    """Whether keys of a route or a part hold digests of what says who asks, by its settings."""
    cookies = isinstance(config.cookies, list) and bool(config.cookies)
    return config.authorization == "key" or cookies or any(map(is_identity, config.vary or ()))


def rebuilt(tree: Tree, sources: Mapping[Key, tuple[Source, ...]], admin_token: str | None) -> Loaded:
    """The configuration of values that were found valid before."""
    return Loaded(Config.model_validate(tree), sources, (), admin_token, tree)


def _admin_problems(merge: Merge, config: Config | None, token: str | None) -> list[ConfigProblem]:
    """The admin listener changes things for all: on an address that others can reach it needs a token."""
    if config is None or token or config.admin_is_private:
        return []
    message = f"{config.admin_listen} can be reached by others: set {ADMIN_TOKEN}, or listen on 127.0.0.1"
    return [merge.problem(("admin_listen",), message)]


@dataclass(frozen=True)
class AdminSettings:
    """What the commands need to find a gateway's admin listener, as `serve` in the same folder reads it."""

    listen: str = "127.0.0.1:9000"
    source: str = "the default"
    url: str | None = None
    token: str | None = field(default=None, repr=False)


def admin_settings(path: Path | None, *, dotenv: Path | None = Path(".env")) -> AdminSettings:
    """Of the file, `.env` and the environment, whatever else may be wrong with them. Raises ConfigError where they
    can't be read."""
    variables = [*dotenv_variables(dotenv, os.environ), *environment_variables(os.environ)]
    merge = Merge(read_document(path) if path else Document("", {}, {}, []))
    merge.apply(variables)
    named = {each.name: each.value for each in variables if each.value}
    listen = merge.tree.get("admin_listen", AdminSettings.listen)
    return AdminSettings(
        listen if isinstance(listen, str) else AdminSettings.listen,
        merge.place(("admin_listen",)) if "admin_listen" in merge.tree else AdminSettings.source,
        named.get("GATEWAY_ADMIN_URL"),
        named.get(ADMIN_TOKEN),
    )


def redis_warnings(merge: Merge, config: Config) -> list[str]:
    """What can be said of `redis_url` without asking Redis: options without an effect, files that can't be read."""
    url = config.redis_url
    if url in ("embedded", "none"):
        return []
    files = [(name, path) for name, path in options_of(url).items() if name in FILE_OPTIONS]
    unreadable = [f"{name}={path} can't be read here" for name, path in files if not os.access(path, os.R_OK)]
    place = merge.place(("redis_url",))
    return [f"{place}: redis_url: {message}" for message in (*ignored_options(url), *unreadable)]


def _line_of(problem: ConfigProblem) -> tuple[bool, int]:
    """What problems are sorted by: the file's lines, then what variables set."""
    line = re.search(r" line (\d+)", problem.source)
    return (False, int(line[1])) if line else (True, 0)


def _without_sequels(problems: list[ConfigProblem]) -> list[ConfigProblem]:
    """The first problem of each value: of one that couldn't be read, the models tell what it isn't. Of an entry as a
    whole, each."""
    first: dict[tuple[str, str], ConfigProblem] = {}
    kept = []
    for problem in problems:
        whole = is_container(shape_at(tuple(problem.key.split("."))))
        identity = (problem.key, problem.message if whole else "")
        if not problem.key or first.setdefault(identity, problem) is problem:
            kept.append(problem)
    return kept


def effective(loaded: Loaded, *, masked: bool = True) -> list[Setting]:
    """Every leaf of the configuration, defaults too, in the order of the models; secrets are masked."""
    sources = {_folded(key): found for key, found in loaded.sources.items()}
    values = leaves(loaded.config.model_dump(mode="json"), Config, ())
    return [
        Setting(
            ".".join(key),
            redact(key, as_yaml(value)) if masked else as_yaml(value),
            _origin(sources.get(_folded(key), ())),
        )
        for key, value in values
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
