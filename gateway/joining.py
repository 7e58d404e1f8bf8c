"""What a joined answer takes over from its parts: how old it is, how long it lives, by what names it can be purged.

Pure. `Age` is the oldest part's, `max-age` that plus the least remaining life, so that nobody who subtracts the one
from the other subtracts twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .headers import CacheControl, Headers, parse_age
from .record import Made


@dataclass(frozen=True, slots=True)
class Part:
    """What a part that was answered brings into the joined answer's life. Seconds.

    `remaining` is negative where it is stale. `private`: it is for one client; `failing`: it is a stale copy in place
    of a failure; `unstored`: the upstream, or its method, forbids that anybody keep it.
    """

    age: float = 0.0
    remaining: float = math.inf
    private: bool = False
    failing: bool = False
    unstored: bool = False
    stamp: str = ""
    started: float = math.inf
    names: tuple[str, ...] = ()
    vary: tuple[str, ...] = ()


CONSTANT = Part()


def unstored_part(headers: Headers, *, private: bool) -> Part:
    """A part that came straight from its upstream and is not stored, by what it says of itself."""
    directives = CacheControl.of(headers)
    lifetime = directives.seconds("max-age") if not directives.unqualified("no-cache") else 0
    age = parse_age(headers)
    personal = private or directives.unqualified("private")
    return Part(
        age=age,
        # What it states for the client's own cache counts; of what a shared cache refused, nobody knows the life.
        remaining=(lifetime or 0) - age if personal else 0.0,
        private=personal,
        unstored="no-store" in directives,
    )


@dataclass(frozen=True, slots=True)
class Joining:
    """The life of a joined answer. `made` is None where it may not be stored as a whole."""

    cache_control: bytes
    age: float
    remaining: float
    vary: tuple[str, ...]
    made: Made | None


def joining(parts: Sequence[Part], *, complete: bool, least_stamp: str, longest: float) -> Joining:
    """The life of an answer of these parts; `longest` (seconds) where only constants are in it."""
    age = max((part.age for part in parts), default=0.0)
    remaining = min((part.remaining for part in parts), default=math.inf)
    remaining = longest if math.isinf(remaining) else remaining
    vary = tuple(sorted({name for part in parts for name in part.vary}))
    control = _cache_control(parts, age, remaining, complete=complete)
    whole = complete and remaining > 0 and not any(part.private or part.failing or part.unstored for part in parts)
    made = None
    if whole:
        started = min((part.started for part in parts), default=math.inf)
        made = Made(
            stamp=least_stamp,
            started=0.0 if math.isinf(started) else started,
            age=age,
            lifetime=age + remaining,
            names=tuple(dict.fromkeys(name for part in parts for name in part.names)),
        )
    return Joining(control, age, remaining, vary, made)


def _cache_control(parts: Iterable[Part], age: float, remaining: float, *, complete: bool) -> bytes:
    parts = tuple(parts)
    if not complete or any(part.unstored for part in parts):
        return b"no-store"
    private = b"private, " if any(part.private for part in parts) else b""
    if any(part.failing for part in parts):
        return private + b"no-cache"
    return private + b"max-age=%d" % max(0, int(age + remaining))
