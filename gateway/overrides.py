"""Live overrides: a TTL that is another for a while, in force on every worker, over file and environment.

What it makes of a configuration is worked out by the same models that read the file, so a value that a file could not
hold is refused with the same words. The rules of `@cached` handlers, which no file has, are changed by them too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError

from .config import RouteConfig
from .errors import ConfigError, ConfigProblem
from .live import Override
from .part_config import PartConfig
from .policy import Rules
from .routes import rules_of
from .settings import Loaded, Source, nearest

SETTINGS = ("ttl", "stale_while_revalidate", "stale_if_error", "negative_ttl", "client_ttl")
"""What can be overridden: all that is worked out when an entry is read, and so acts on what is stored already."""
LONGEST = 7 * 86_400.0
_NONE: Mapping[str, Rules] = {}
_NOTHING: Mapping[str, RouteConfig] = {}


def source_of(override: Override) -> Source:
    return Source("live", f"live override by {override.by} until {instant(override.until)}", override.value)


def instant(seconds: float) -> str:
    """An instant as people read it: UTC, to the second."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def in_force(overrides: Iterable[Override], now: float) -> dict[str, Override]:
    """Those that have not ended, by route and setting."""
    return {each.key: each for each in overrides if now < each.until}


def applied(
    loaded: Loaded,
    overrides: Mapping[str, Override],
    coded: Mapping[str, Rules] = _NONE,
    written: Mapping[str, RouteConfig] = _NOTHING,
) -> Loaded:
    """The configuration with overrides on it, told as the sources that won. `coded` has the rules that `@cached`
    handlers have by their code, `written` the aggregates that are written in Python, both by name.

    Those of routes that are no longer there, or that no longer fit their route, are passed over: a reload may have
    taken them away.
    """
    for override in overrides.values():
        try:
            loaded = overridden(loaded, override, coded, written)
        except ConfigError:
            continue
    return loaded


def overridden(
    loaded: Loaded,
    override: Override,
    coded: Mapping[str, Rules] = _NONE,
    written: Mapping[str, RouteConfig] = _NOTHING,
) -> Loaded:
    """The configuration with one override on it. Raises ConfigError, which says what is allowed."""
    written = {**written, **loaded.aggregates}
    parts = _parts({**written, **loaded.config.routes})
    _check_names([*loaded.config.routes, *parts, *coded], override)
    name, part = parts.get(override.route, (override.route, None))
    key = (*setting_key(name, part), override.setting)
    sources = {**loaded.sources, key: (source_of(override), *loaded.sources.get(key, ()))}
    route = loaded.config.routes.get(name)
    if route is None and part is not None:
        changed = _changed(written[name].model_dump(exclude_unset=True), override, part)
        return replace(loaded, aggregates={**loaded.aggregates, name: changed}, sources=sources)
    if route is None:
        rules = _handler_rules(loaded.handlers.get(override.route, coded[override.route]), override)
        return replace(loaded, handlers={**loaded.handlers, override.route: rules}, sources=sources)
    changed = _changed(route.model_dump(exclude_unset=True), override, part)
    config = loaded.config.model_copy(update={"routes": {**loaded.config.routes, name: changed}})
    return replace(loaded, config=config, sources=sources)


def setting_key(route: str, part: str | None) -> tuple[str, ...]:
    """Where the settings of a route, or of a part of an aggregate, stand in the configuration."""
    return ("routes", route) if part is None else ("routes", route, "parts", part)


def _parts(routes: Mapping[str, RouteConfig]) -> dict[str, tuple[str, str]]:
    """The parts of aggregates, by the names of their own routes (`home.offers`)."""
    return {f"{name}.{part}": (name, part) for name, route in routes.items() for part in route.parts}


def _handler_rules(rules: Rules, override: Override) -> Rules:
    """A handler's rules with an override on them.

    One that states a duration need not say in its answers how long they live, so it is never left to them.
    """
    if rules.ttl is not None and override.setting == "ttl" and override.value == "origin":
        raise _refused(override, "'origin' is refused: the handler has a ttl of its own; give a duration")
    durations = {name: getattr(rules, name) for name in SETTINGS}
    given = {name: timedelta(seconds=value) for name, value in durations.items() if value is not None}
    changed = rules_of(_changed({"path": "/", "upstream": "handler", **given}, override))
    return replace(rules, **{override.setting: getattr(changed, override.setting)})


def _changed(given: dict[str, Any], override: Override, part: str | None = None) -> RouteConfig:
    changed: dict[str, Any] = {override.setting: override.value}
    if part is not None:
        if override.setting not in PartConfig.model_fields:
            raise _refused(override, f"a part has no {override.setting}")
        changed = {"parts": {**given["parts"], part: {**given["parts"][part], **changed}}}
    try:
        return RouteConfig.model_validate({**given, **changed})
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise _refused(override, f"{override.value!r} is refused: {problem}") from None


def _check_names(known: Iterable[str], override: Override) -> None:
    if override.route not in known:
        raise _refused(override, f"there is no route {override.route!r}{_hint(override.route, known)}")
    if override.setting not in SETTINGS:
        allowed = ", ".join(SETTINGS)
        raise _refused(override, f"{override.setting} can't be overridden live; these can: {allowed}")


def _hint(name: str, known: Iterable[str]) -> str:
    close = nearest(name, list(known))
    return f"; did you mean {close}?" if close else ""


def _refused(override: Override, message: str) -> ConfigError:
    return ConfigError([ConfigProblem("", f"routes.{override.key}", message)])
