"""Parts' bodies, decoded and shaped: each content once, however often it is joined."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from pydantic import JsonValue

from gateway.aggregates.merge import NOTHING, Decode, ShapeRules, WrongType, decoded
from gateway.http.headers import Headers
from gateway.http.json_text import TooDeep, exactly, text_of, well_formed

PREPARED_BYTES = 32 * 1024 * 1024
PLACE_BYTES = 512
"""Bytes of a prepared body beside its texts and its key."""


@dataclass(frozen=True)
class BodyTransform:
    """How a part's bodies are prepared. `name` is the part's; `check` raises WrongType for a body that doesn't match
    the part's type, and null is valid for every `optional` part; `needed` is whether other parts use values of it;
    `limit` (bytes) bounds a decompressed body."""

    name: str
    decode: Decode
    shape: ShapeRules
    at_root: bool = False
    needed: bool = False
    check: Callable[[bytes], None] | None = None
    limit: int = 2**31
    optional: bool = False

    @cached_property
    def identity(self) -> str:
        """Identifies the preparation; one that leaves a body unchanged is shared by all parts."""
        plain = self.check is None and not self.reshapes
        return f"={self.decode} {self.limit}" if plain else self.name

    @cached_property
    def reshapes(self) -> bool:
        """Whether a body is more than decoded."""
        return self.shape.changes or self.at_root or self.needed


@dataclass(frozen=True, slots=True)
class PreparedTransform:
    """A part's body, decoded and shaped once: `text` as in the response, `value` for other parts."""

    text: bytes
    value: JsonValue
    shown: JsonValue


class BodyCache:
    """Prepares bodies, and caches the results, so that content is parsed once however often it is joined.

    Bounded in bytes of bodies and texts, least recently used first. Bodies that are not stored are not cached.
    """

    def __init__(self, capacity: int = PREPARED_BYTES) -> None:
        self.parsed = 0
        self._capacity = capacity
        self._bytes = 0
        self._kept: OrderedDict[tuple[str, str], tuple[bytes, PreparedTransform | WrongType]] = OrderedDict()

    def prepared(self, transform: BodyTransform, key: str, headers: Headers, body: bytes) -> PreparedTransform:
        """`body`, transformed. `key` is the stored response's; empty if it is not stored. Raises WrongType."""
        if not key:
            return self._prepare(transform, headers, body)
        place = (transform.identity, key)
        known = self._kept.get(place)
        if known is not None and known[0] == body:
            self._kept.move_to_end(place)
            return _or_raised(known[1])
        try:
            made = self._prepare(transform, headers, body)
        except WrongType as error:
            # It costs as much to find out, and would be found out by every request.
            self._keep(place, body, WrongType(str(error)))
            raise
        self._keep(place, body, made)
        return made

    def _keep(self, key: tuple[str, str], body: bytes, made: PreparedTransform | WrongType) -> None:
        old = self._kept.pop(key, None)
        kept = len(key[1]) + PLACE_BYTES  # bodies may be empty, and keys long
        self._bytes += kept + _weight(body, made) - (kept + _weight(*old) if old is not None else 0)
        self._kept[key] = (body, made)
        while self._bytes > self._capacity and self._kept:
            place, gone = self._kept.popitem(last=False)
            self._bytes -= len(place[1]) + PLACE_BYTES + _weight(*gone)

    def _prepare(self, transform: BodyTransform, headers: Headers, body: bytes) -> PreparedTransform:
        self.parsed += 1
        found = decoded(body, headers, transform.decode, transform.limit)
        try:
            if transform.check is not None and not (found is NOTHING and transform.optional):
                transform.check(well_formed(found[0]))
            if found is NOTHING or not transform.reshapes:
                return PreparedTransform(found[0], None, None)
            return _shaped(transform, *found)
        except (RecursionError, TooDeep):
            # 1024 levels are read, and 254 written.
            raise WrongType("it is nested too deeply to be reshaped") from None


def _shaped(transform: BodyTransform, text: bytes, value: JsonValue) -> PreparedTransform:
    """Raises WrongType, TooDeep."""
    value = shown = exactly(text, value)
    if transform.shape.changes or transform.at_root:
        # A part merged into the root is written later; errors are detected here.
        shown = transform.shape.apply(value)
        text = text_of(shown)
    if transform.at_root and not isinstance(shown, dict):
        raise WrongType("it isn't an object; only objects can be merged into the root")
    return PreparedTransform(text, value if transform.needed else None, shown if transform.at_root else None)


def _or_raised(made: PreparedTransform | WrongType) -> PreparedTransform:
    if isinstance(made, WrongType):
        raise WrongType(str(made))
    return made


def _weight(body: bytes, made: PreparedTransform | WrongType) -> int:
    if isinstance(made, WrongType):
        return len(body)
    parsed = 5 * len(body) if made.value or made.shown else 0  # a parsed value takes some five times its text
    return len(body) + (len(made.text) if made.text is not body else 0) + parsed
