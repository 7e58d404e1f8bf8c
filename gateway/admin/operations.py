"""Changes to a running gateway: live overrides, and the audit list.

Every worker polls for overrides several times a second and makes its next generation of routes from the configuration
with the unexpired overrides; so does a reload. Setting one succeeds once it is known to be valid and stored in Redis.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from gateway.app.generations import Generations
from gateway.cache.redis.store import RedisStore
from gateway.clock import Clock
from gateway.config.loader import Loaded, Setting, effective
from gateway.config.names import current_name
from gateway.config.overrides import (
    LONGEST,
    POLL_EVERY,
    SETTINGS,
    Event,
    Live,
    LocalLive,
    Override,
    applied,
    by_current_name,
    in_force,
    instant,
    overridden,
    setting_key,
    source_of,
)
from gateway.config.route import RouteConfig
from gateway.config.types import parse_duration
from gateway.errors import ConfigError, ConfigProblem, GatewayError
from gateway.observability.log import at_most_every, state
from gateway.policy.rules import CachePolicy

logger = logging.getLogger("gateway")


class NoSuchOverride(GatewayError):
    """There is no live override of that name."""


class Operations:
    """`loaded` is the configuration as file and environment have it. `clock` is what overrides end by."""

    def __init__(self, generations: Generations, loaded: Loaded, live: Live, clock: Clock) -> None:
        self.generations = generations
        self.live = live
        self._base = loaded
        self._clock = clock
        self._known: dict[str, Override] = {}
        self._held: dict[str, Override] = {}
        self._prepared: dict[str, Override] = {}
        self._task: asyncio.Task[None] | None = None
        self.closing = asyncio.Event()
        """Set when this worker is about to stop: streams to consoles end."""

    @property
    def overrides(self) -> dict[str, Override]:
        """Those in force here, by `route.setting`."""
        return self._held

    async def start(self) -> None:
        if not self.generations.current.worker_state.alone():
            await self.turn()
        self._task = asyncio.ensure_future(self._run())

    async def aclose(self) -> None:
        while self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait((self._task,), timeout=0.05)
        await self.live.aclose()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(POLL_EVERY)
            try:
                await self.turn()
            except ConfigError as error:
                # The routes stay as they are, and the next look goes on.
                logger.error("live overrides can't be applied: %s", error, extra=at_most_every(60, "live overrides"))

    async def turn(self) -> None:
        """Look for overrides once, and answer by those in force."""
        news = await self.live.changed()
        if news is not None:
            self._known = {each.key: each for each in news}
        wanted = in_force(self._known.values(), self._clock.now())
        if wanted != self._held:
            self._tell(wanted)
            self._held = wanted
            self.generations.reload(applied(self._base, wanted, *self._coded()))

    def _coded(self) -> tuple[Mapping[str, CachePolicy], Mapping[str, RouteConfig]]:
        """The rules of `@cached` handlers, and the aggregates in Python, as their code has them."""
        current = self.generations.current
        return current.coded_rules(), current.written

    def _tell(self, wanted: dict[str, Override]) -> None:
        for key, override in wanted.items():
            if self._held.get(key) != override:
                said = map(_shown, (override.by, key, override.value, instant(override.until)))
                extra = state(f"override {key}", f"{override.value} until {override.until}")
                logger.info("live override by %s: %s is %s until %s", *said, extra=extra)
        for key in self._held.keys() - wanted.keys():
            logger.info("live override of %s has expired", _shown(key), extra=state(f"override {key}"))

    def settings(self) -> list[Setting]:
        """Every setting in force, secrets masked: file, `.env`, environment, and live overrides with precedence."""
        loaded = applied(self._base, self._held, *self._coded())
        known = effective(loaded)
        in_code = [
            (setting_key(each.route, None), each) for each in self._held.values() if each.route in loaded.handlers
        ]
        for name, route in loaded.aggregates.items():
            parts = {f"{name}.{part}": setting_key(name, part) for part in route.parts}
            in_code += [(parts[each.route], each) for each in self._held.values() if each.route in parts]
        return known + [
            Setting(".".join((*key, each.setting)), each.value, source_of(each).place) for key, each in in_code
        ]

    # --- reloading -----------------------------------------------------------------------------------------

    def on(self, loaded: Loaded) -> Loaded:
        """A configuration that is about to be in force, with the overrides on it."""
        self._prepared = self._held
        return applied(loaded, self._held, *self._coded())

    def rebase(self, loaded: Loaded) -> None:
        """Use this configuration from now on, with the overrides that were applied when it was prepared; the next poll
        applies later changes."""
        self._base = loaded
        self._held = self._prepared

    # --- changes ------------------------------------------------------------------------------------------------

    async def override(self, route: str, setting: str, value: str, lasts: str, *, by: str) -> Override:
        """Set a live override. Raises ConfigError where file and models would refuse it, LiveAway without Redis."""
        now = self._clock.now()
        setting = current_name(setting, SETTINGS)
        made = Override(route=route, setting=setting, value=value, by=by, at=now, until=now + _seconds(lasts))
        overridden(self._base, made, *self._coded())
        detail = f"{made.key} is {value} until {instant(made.until)}"
        await self.live.put(made, Event(at=now, by=by, what="ttl set", detail=detail))
        await self.turn()
        return made

    async def end(self, route: str, setting: str, *, by: str) -> None:
        """End a live override before its time. Raises NoSuchOverride, LiveAway."""
        await self.turn()
        key = f"{route}.{current_name(setting, SETTINGS)}"
        if key not in self._held:
            held = ", ".join(self._held) or "none"
            raise NoSuchOverride(f"there is no live override of {key} (there are: {held})")
        event = Event(at=self._clock.now(), by=by, what="ttl reset", detail=f"{key} was {self._held[key].value}")
        for stored in [name for name, each in self._known.items() if by_current_name(each).key == key]:
            await self.live.drop(stored, event)
        await self.turn()

    async def note(self, what: str, detail: str, *, by: str) -> None:
        """Add to the audit list."""
        await self.live.note(Event(at=self._clock.now(), by=by, what=what, detail=detail))


def _seconds(lasts: str) -> float:
    try:
        seconds = parse_duration(lasts).total_seconds()
    except ValueError as error:
        raise ConfigError([ConfigProblem("", "for", str(error))]) from None
    if not 0 < seconds <= LONGEST:
        raise ConfigError([ConfigProblem("", "for", f"{lasts} is out of range: more than 0, at most 7d")])
    return seconds


def operations_of(generations: Generations, loaded: Loaded) -> Operations:
    """The operations of an app. Overrides are kept beside the cache: the fleet that shares one shares the others."""
    gateway = generations.current
    live = gateway.shared.live() if isinstance(gateway.shared, RedisStore) else LocalLive()
    return Operations(generations, loaded, live, gateway.engine.clock)


def _shown(text: str) -> str:
    """Text from Redis for the log: without control characters."""
    return text if text.isprintable() else ascii(text)
