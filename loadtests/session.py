"""Reads a session: the paths that an app asks for, in shares. session.txt describes the format."""

from __future__ import annotations

import bisect
import itertools
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_LET = re.compile(r"let\s+([a-z_]+)\s+(\d+)\s+(\d+)")
_SHARE = re.compile(r"(\d+)\s+(/\S*)")
_NAME = re.compile(r"\{([a-z_]+)\}")


class SessionError(Exception):
    """A line of a session can't be read; the message says which, and what a line may be."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """Numbers from `first` on, whose popularity is Zipf's; `sums` are the running sums of 1 / rank."""

    first: int
    sums: tuple[float, ...]

    def pick(self) -> int:
        return self.first + bisect.bisect(self.sums, random.random() * self.sums[-1])


@dataclass(frozen=True, slots=True)
class Session:
    names: dict[str, Numbers]
    shares: tuple[int, ...]
    paths: tuple[str, ...]

    def pick(self) -> tuple[str, str]:
        """A path as it stands in the file, and one with its names replaced by numbers."""
        [template] = random.choices(self.paths, self.shares)
        return template, _NAME.sub(lambda match: str(self.names[match[1]].pick()), template)


def read(path: Path) -> Session:
    """Raises SessionError, OSError."""
    return parse(path.read_text().splitlines(), str(path))


def parse(lines: Iterable[str], place: str = "session") -> Session:
    """Raises SessionError."""
    names: dict[str, Numbers] = {}
    shares: list[tuple[int, str]] = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if let := _LET.fullmatch(text):
            names[let[1]] = _numbers(int(let[2]), int(let[3]), f"{place} line {number}")
        elif share := _SHARE.fullmatch(text):
            shares.append((int(share[1]), _known(share[2], names, f"{place} line {number}")))
        elif text:
            raise SessionError(f"{place} line {number}: {text!r} is neither `let NAME FROM TO` nor `SHARE /PATH`")
    if not any(share for share, _ in shares):
        raise SessionError(f"{place}: no path has a share; write a line like `10 /products/{{product}}`")
    return Session(names, tuple(share for share, _ in shares), tuple(path for _, path in shares))


def _numbers(first: int, last: int, place: str) -> Numbers:
    if last < first:
        raise SessionError(f"{place}: the last number, {last}, is below the first, {first}")
    return Numbers(first, tuple(itertools.accumulate(1 / rank for rank in range(1, last - first + 2))))


def _known(path: str, names: dict[str, Numbers], place: str) -> str:
    for name in _NAME.findall(path):
        if name not in names:
            raise SessionError(f"{place}: {{{name}}} is not known; write `let {name} 1 100` above it")
    return path
