"""Live overrides: a TTL that is changed temporarily on every worker, with precedence over file and environment, and the
audit list.

The models of the configuration compute an override's effect, so an invalid value is refused with the same message. The
rules of `@cached` handlers can be overridden too.

A worker polls a version number several times a second, and reads the overrides only if it has changed. If Redis has
lost them, a worker with unexpired overrides writes them back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import msgspec
from pydantic import ValidationError

from gateway.config.environment import SettingSource
from gateway.config.loader import Loaded
from gateway.config.names import current_name, nearest
from gateway.config.part import PartConfig
from gateway.config.route import RouteConfig, rules_of
from gateway.errors import ConfigError, ConfigProblem, GatewayError
from gateway.policy.rules import CachePolicy

POLL_EVERY = 0.1
"""Seconds between two polls: an override is in force everywhere within a second."""
ANSWER_SECONDS = 1.0
MOST_AUDIT = 1000
LONGEST_VERSION = 64
LARGEST = 16 * 1024
"""Bytes of an override that is believed."""
MOST_OVERRIDES = 2000
LATEST = 253_402_300_799.0
"""The last second of the year 9999, the latest representable time."""
UNREADABLE = (msgspec.DecodeError, ValueError, RecursionError)
"""msgspec's errors for invalid records; a ValueError for invalid UTF-8."""


class OverridesUnavailable(GatewayError):
    """Redis cannot be reached, so nothing can be changed for all workers now."""


class Override(msgspec.Struct, frozen=True, kw_only=True):
    """One setting of one route, for a while. `at` and `until` are seconds since 1970 on the gateway's clock."""

    route: str
    setting: str
    value: str
    by: str
    at: float
    until: float

    @property
    def key(self) -> str:
        return f"{self.route}.{self.setting}"


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the audit list: user, change, time (seconds since 1970)."""

    at: float
    by: str
    what: str
    detail: str


class Live(Protocol):
    """The store of overrides and the audit list."""

    async def changed(self) -> Sequence[Override] | None:
        """All overrides if any has changed since the last call; None if none has, or if the state is unknown."""

    async def put(self, override: Override, event: Event) -> None:
        """Raises LiveAway."""

    async def drop(self, key: str, event: Event) -> None:
        """Raises LiveAway."""

    async def note(self, event: Event) -> None:
        """Add to the audit list; lost where Redis is away."""

    async def audit(self, limit: int = 100) -> list[Event]:
        """The newest events first."""

    async def aclose(self) -> None: ...


class LocalLive:
    """In one process alone: `redis_url: none`."""

    def __init__(self) -> None:
        self._overrides: dict[str, Override] = {}
        self._events: list[Event] = []
        self._news = False

    async def changed(self) -> Sequence[Override] | None:
        news, self._news = self._news, False
        return list(self._overrides.values()) if news else None

    async def put(self, override: Override, event: Event) -> None:
        self._overrides[override.key] = override
        self._news = True
        await self.note(event)

    async def drop(self, key: str, event: Event) -> None:
        self._overrides.pop(key, None)
        self._news = True
        await self.note(event)

    async def note(self, event: Event) -> None:
        self._events = [event, *self._events][:MOST_AUDIT]

    async def audit(self, limit: int = 100) -> list[Event]:
        return self._events[:limit]

    async def aclose(self) -> None:
        return None


SETTINGS = ("ttl", "stale_while_revalidate", "stale_if_error", "negative_ttl", "client_ttl")
"""The settings that can be overridden: those evaluated when an entry is read, so that they apply to stored entries."""
LONGEST = 7 * 86_400.0
_NONE: Mapping[str, CachePolicy] = {}
_NOTHING: Mapping[str, RouteConfig] = {}


def source_of(override: Override) -> SettingSource:
    return SettingSource("live", f"live override by {override.by} until {instant(override.until)}", override.value)


def instant(seconds: float) -> str:
    """An instant as people read it: UTC, to the second."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def in_force(overrides: Iterable[Override], now: float) -> dict[str, Override]:
    """Those that have not ended, by route and current setting name. Of two for one setting, the later."""
    running = [by_current_name(each) for each in overrides if now < each.until]
    return {each.key: each for each in sorted(running, key=lambda each: each.at)}


def by_current_name(override: Override) -> Override:
    """An override, as an older gateway may have stored it, with the current name of its setting."""
    name = current_name(override.setting, SETTINGS)
    return override if name == override.setting else msgspec.structs.replace(override, setting=name)


def applied(
    loaded: Loaded,
    overrides: Mapping[str, Override],
    coded: Mapping[str, CachePolicy] = _NONE,
    written: Mapping[str, RouteConfig] = _NOTHING,
) -> Loaded:
    """The configuration with overrides applied; they are the winning sources. `coded` has the rules of `@cached`
    handlers in code, `written` the aggregates written in Python, both by name.

    Overrides of routes that no longer exist, or that no longer fit their route, are skipped: a reload may have removed
    them.
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
    coded: Mapping[str, CachePolicy] = _NONE,
    written: Mapping[str, RouteConfig] = _NOTHING,
) -> Loaded:
    """The configuration with one override applied. Raises ConfigError, with the allowed values."""
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
    """The key of the settings of a route, or of a part of an aggregate, in the configuration."""
    return ("routes", route) if part is None else ("routes", route, "parts", part)


def _parts(routes: Mapping[str, RouteConfig]) -> dict[str, tuple[str, str]]:
    """The parts of aggregates, by the names of their own routes (`home.offers`)."""
    return {f"{name}.{part}": (name, part) for name, route in routes.items() for part in route.parts}


def _handler_rules(rules: CachePolicy, override: Override) -> CachePolicy:
    """A handler's rules with an override applied.

    A handler with a duration may return responses without a lifetime, so `origin` is refused for it.
    """
    if rules.ttl is not None and override.setting == "ttl" and override.value == "origin":
        raise _refused(override, "'origin' is refused: the handler has its own ttl; expected a duration")
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
