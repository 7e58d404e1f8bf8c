"""Live overrides: a TTL that is another for a while, in force on every worker, over file and environment.

What it makes of a configuration is worked out by
the same models that read the file, so a value that a file could not hold is refused with the same words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from pydantic import ValidationError

from .config import RouteConfig
from .errors import ConfigError, ConfigProblem
from .live import Override
from .settings import Loaded, Source, nearest

SETTINGS = ("ttl", "stale_while_revalidate", "stale_if_error", "negative_ttl", "client_ttl")
"""What can be overridden: all that is worked out when an entry is read, and so acts on what is stored already."""
LONGEST = 7 * 86_400.0


def source_of(override: Override) -> Source:
    return Source("live", f"live override by {override.by} until {instant(override.until)}", override.value)


def instant(seconds: float) -> str:
    """An instant as people read it: UTC, to the second."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def in_force(overrides: Iterable[Override], now: float) -> dict[str, Override]:
    """Those that have not ended, by route and setting."""
    return {each.key: each for each in overrides if now < each.until}


def applied(loaded: Loaded, overrides: Mapping[str, Override]) -> Loaded:
    """The configuration with overrides on it, told as the sources that won.

    Those of routes that are no longer there, or that no longer fit their route, are passed over: a reload may have
    taken them away.
    """
    for override in overrides.values():
        try:
            loaded = overridden(loaded, override)
        except ConfigError:
            continue
    return loaded


def overridden(loaded: Loaded, override: Override) -> Loaded:
    """The configuration with one override on it. Raises ConfigError, which says what is allowed."""
    _check_names(loaded, override)
    route = loaded.config.routes[override.route]
    given = {**route.model_dump(exclude_unset=True), override.setting: override.value}
    try:
        changed = RouteConfig.model_validate(given)
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise _refused(override, f"{override.value!r} is refused: {problem}") from None
    config = loaded.config.model_copy(update={"routes": {**loaded.config.routes, override.route: changed}})
    key = ("routes", override.route, override.setting)
    sources = {**loaded.sources, key: (source_of(override), *loaded.sources.get(key, ()))}
    return replace(loaded, config=config, sources=sources)


def _check_names(loaded: Loaded, override: Override) -> None:
    if override.route not in loaded.config.routes:
        raise _refused(override, f"there is no route {override.route!r}{_hint(override.route, loaded.config.routes)}")
    if override.setting not in SETTINGS:
        allowed = ", ".join(SETTINGS)
        raise _refused(override, f"{override.setting} can't be overridden live; these can: {allowed}")


def _hint(name: str, known: Iterable[str]) -> str:
    close = nearest(name, list(known))
    return f"; did you mean {close}?" if close else ""


def _refused(override: Override, message: str) -> ConfigError:
    return ConfigError([ConfigProblem("", f"routes.{override.key}", message)])
