"""Folders that all processes of a test run use, and the first one that needs them makes."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Callable
from pathlib import Path

MadeOnce = Callable[[str, Callable[[Path], None]], Path]


def made_once(shared: Path, name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` below `shared`, as `make` fills it. The others wait meanwhile; if it fails, the next one tries
    in a folder of its own."""
    with (shared / f"{name}.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        if made := lock.read():
            return Path(made)
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=shared))
        make(folder)
        lock.write(str(folder))
    return folder
