"""Reloading the configuration: noticing that a file has changed, and finding what differs.

Decides what counts as a change, and which changes need a restart. Folders are watched, not files: editors and
Kubernetes replace a file or a link. The content is compared, so one change means one reload, however many events it
makes. Applying a change is the affair of `worker` and `app.generations`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from watchfiles import PythonFilter, awatch

from gateway.config.loader import Loaded, effective
from gateway.config.models import Config

REQUIRES_RESTART = frozenset(
    (
        *("host", "port", "admin_listen", "workers", "include", "memory", "compression", "overload_lag", "watch"),
        "log_format",
        *(
            "redis_url",
            "redis_prefix",
            "redis_budget",
            "redis_memory",
            "redis_dir",
            "redis_secret",
            "purge_disconnect_grace",
            "warm_start",
        ),
    )
)
"""Settings that belong to processes, sockets, stores and imported modules; a reload leaves them as they are."""


@dataclass(frozen=True, slots=True)
class Change:
    """One changed setting. Values are as in YAML, None if there is none; secrets are masked."""

    key: str
    before: str | None
    after: str | None
    requires_restart: bool = False

    def __str__(self) -> str:
        if self.requires_restart:
            return f"{self.key}: {self.before} -> {self.after} requires a restart; it stays {self.before}"
        if self.before is None:
            return f"{self.key}: {self.after} is new"
        if self.after is None:
            return f"{self.key}: {self.before} is removed"
        return f"{self.key}: {self.before} -> {self.after}"


def difference(before: Loaded, after: Loaded) -> list[Change]:
    """All changes: added and removed routes and upstreams, then single settings, in the order of the configuration. A
    changed secret shows as `*** -> ***`."""
    old, new, kept = _values(before), _values(after), _kept(before, after)
    raw_old, raw_new = _raw(before.config), _raw(after.config)
    entries = _entries(before.config, after.config)
    whole = tuple(f"{entry.key}." for entry in entries)
    return [
        *entries,
        *(
            Change(key, old.get(key), new.get(key), key.partition(".")[0] in kept)
            for key in dict.fromkeys((*new, *old))
            if not key.startswith(whole) and (old.get(key) != new.get(key) or raw_old.get(key) != raw_new.get(key))
        ),
    ]


def _entries(before: Config, after: Config) -> list[Change]:
    """Routes and upstreams that exist in only one of both, with their main setting."""
    found = []
    for section in ("upstreams", "routes"):
        old, new = _told(before, section), _told(after, section)
        names = dict.fromkeys((*old, *new))
        found += [
            Change(f"{section}.{name}", old.get(name), new.get(name))
            for name in names
            if (name in old) != (name in new)
        ]
    return found


def _told(config: Config, section: str) -> dict[str, str]:
    if section == "routes":
        return {name: route.path for name, route in config.routes.items()}
    return {name: ", ".join(upstream.bases) for name, upstream in config.upstreams.items()}


def _values(loaded: Loaded) -> dict[str, str]:
    return {setting.key: setting.value for setting in effective(loaded)}


def _raw(config: Config) -> dict[str, str]:
    """The same leaves unmasked, to see that a secret changed."""
    return {setting.key: setting.value for setting in effective(Loaded(config, {}, ()), masked=False)}


def _kept(before: Loaded, after: Loaded) -> frozenset[str]:
    """The settings that a reload leaves as they are: a listener that speaks plain HTTP goes on doing so."""
    both = (before.config.listen.tls is None) is (after.config.listen.tls is None)
    return REQUIRES_RESTART if both else REQUIRES_RESTART | {"listen"}


def merged(before: Loaded, after: Loaded) -> Loaded:
    """`after`, with those settings of `before` that require a restart."""
    names = _kept(before, after)
    kept = {name: getattr(before.config, name) for name in names}
    tree = {name: value for name, value in after.tree.items() if name not in names}
    tree |= {name: value for name, value in before.tree.items() if name in names}
    return replace(after, config=after.config.model_copy(update=kept), admin_token=before.admin_token, tree=tree)


DEBOUNCE_MS = 100
LOOK_EVERY_MS = 1000
"""If the system reports no changes, or not yet, checking the files themselves finds them."""


class Files:
    """Some files, as they are when this is made."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = [path.absolute() for path in paths]
        self._known = _contents(self._paths)

    async def changes(self, *, stop: asyncio.Event | None = None) -> AsyncIterator[None]:
        """Fires once for each change of the content of one of them, including creation and removal."""
        # At INFO it logs each event in the folder: a log written there would grow for ever.
        logging.getLogger("watchfiles").setLevel(logging.WARNING)
        folders = {path.parent for path in self._paths if path.parent.is_dir()}
        async for _ in awatch(
            *folders,
            watch_filter=None,
            debounce=DEBOUNCE_MS,
            rust_timeout=LOOK_EVERY_MS,
            yield_on_timeout=True,
            recursive=False,
            stop_event=stop,
            ignore_permission_denied=True,
        ):
            found = _contents(self._paths)
            if found != self._known:
                self._known = found
                yield


class Code(Files):
    """The Python files below the current folder, without those of environments and caches."""

    def __init__(self) -> None:
        super().__init__(())

    async def changes(self, *, stop: asyncio.Event | None = None) -> AsyncIterator[None]:
        """Fires once for each change."""
        logging.getLogger("watchfiles").setLevel(logging.WARNING)
        async for _ in awatch(Path.cwd(), watch_filter=PythonFilter(), debounce=DEBOUNCE_MS, stop_event=stop):
            yield


def _contents(paths: Iterable[Path]) -> list[bytes | None]:
    return [_digest(path) for path in paths]


def _digest(path: Path) -> bytes | None:
    try:
        return hashlib.blake2b(path.read_bytes()).digest()
    except OSError:
        return None
