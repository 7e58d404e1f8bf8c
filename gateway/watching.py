"""Noticing that a file has another content: what reloads the configuration without anybody sending a signal.

Folders are watched, not files: editors and Kubernetes put a new file, or a new link, in the place of the old. What
counts is the content, so that a reload happens once for a change, however many events it makes.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from watchfiles import awatch

DEBOUNCE_MS = 100
LOOK_EVERY_MS = 1000
"""Where the system tells of nothing, or had not begun to, a look at the files themselves finds out."""


class Files:
    """Some files, as they are when this is made."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = [path.absolute() for path in paths]
        self._known = _contents(self._paths)

    async def changes(self, *, stop: asyncio.Event | None = None) -> AsyncIterator[None]:
        """Once for each time that the content of one of them is another, also where one comes or goes."""
        # At INFO it tells of each event in the folder: a log that is written there would feed itself for ever.
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


def _contents(paths: Iterable[Path]) -> list[bytes | None]:
    return [_digest(path) for path in paths]


def _digest(path: Path) -> bytes | None:
    try:
        return hashlib.blake2b(path.read_bytes()).digest()
    except OSError:
        return None
