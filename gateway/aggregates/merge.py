"""Parts into one response: decoding, shaping, merging, splicing. A content is decoded and shaped once, however often it
is joined.

Pure. A part without transformations is spliced: its bytes, checked once to be JSON, are copied unchanged. Transformed
and merged parts keep their values, and numbers keep their digits (`json_text`).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal
from xml.parsers.expat import ExpatError

import msgspec
import orjson
import xmltodict
from pydantic import JsonValue

from gateway.config.expressions import Expression
from gateway.http import codings as http_codings
from gateway.http.codings import Undecodable
from gateway.http.headers import Headers
from gateway.http.json_text import (
    NotJson,
    TooDeep,
    Verbatim,
    codec_of,
    exactly,
    json_text,
    text_in,
    text_of,
    value_of,
    well_formed,
)

Merge = Literal["shallow", "deep", "concat"]
Decode = Literal["auto", "json", "text", "xml"]


class WrongType(ValueError):
    """A part's body has the wrong type; the message names it."""


# --- decoding ----------------------------------------------------------------------------------------------


def media_type(field: bytes) -> tuple[str, str]:
    """The media type of a Content-Type in lower case, and its charset (RFC 9110 §8.3); empty if missing."""
    kind, _, parameters = field.decode("latin-1").partition(";")
    for parameter in parameters.split(";") if parameters else ():
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return kind.strip().lower(), value.strip().strip('"').lower()
    return kind.strip().lower(), ""


NOTHING: tuple[bytes, JsonValue] = (b"null", None)
"""The value of a part without a body (a 204, a 205, a length of 0): a valid response."""


def decoded(body: bytes, headers: Headers, decode: Decode, limit: int = 2**31) -> tuple[bytes, JsonValue]:
    """A part's body as JSON text, and as a value whose numbers may have been rounded (`json_text.exactly`). JSON in
    UTF-8 stays the very bytes that it was, without content codings, of at most `limit` bytes; an empty body is null.

    Raises WrongType.
    """
    named = dict(reversed(headers))  # of two of a name, the first
    try:
        if b"content-encoding" in named:
            body = http_codings.decoded(headers, body, limit)
        return _read(body, named.get(b"content-type", b""), decode) if body else NOTHING
    except (Undecodable, NotJson) as error:
        raise WrongType(str(error)) from None


def _read(body: bytes, content_type: bytes, decode: Decode) -> tuple[bytes, JsonValue]:
    kind, charset = media_type(content_type)
    if decode == "xml":
        return _xml(body, charset)
    if decode == "json" or (decode == "auto" and (kind in ("", "application/json") or kind.endswith("+json"))):
        return json_text(body, charset)
    if decode == "text" or kind.startswith("text/") or kind == "application/xml" or kind.endswith("+xml"):
        text = text_in(body, charset)
        return orjson.dumps(text), text
    raise WrongType(f"it is {kind}, which is neither JSON nor text")


_DECLARED = re.compile(rb"""\s*<\?xml[^>]*?\bencoding\s*=\s*["']([A-Za-z0-9._:\-]+)["']""")


def _xml(body: bytes, charset: str) -> tuple[bytes, JsonValue]:
    # By the document's own declaration; else by its Content-Type (RFC 7303 §3.2).
    declared = _DECLARED.match(body[:256])
    for name in (declared[1].decode("ascii") if declared is not None else "", charset):
        if name and codec_of(name) is None:
            raise WrongType(f"its charset {name[:40]} is not supported")
    for encoding in (None, charset) if charset else (None,):
        try:
            value: JsonValue = xmltodict.parse(body, encoding=encoding)
            return text_of(value), value
        except (ExpatError, ValueError, LookupError, RecursionError):
            # Entities are refused by xmltodict, with a ValueError.
            continue
    raise WrongType("it is not well-formed XML without entities")


# --- shaping -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShapeRules:
    """The transformation of a part: `select`, then `allow` or `deny`, then `rename`."""

    select: Expression | None = None
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    rename: tuple[tuple[str, str], ...] = ()

    @cached_property
    def changes(self) -> bool:
        """Whether it changes the part at all."""
        return bool(self.select is not None or self.allow or self.deny or self.rename)

    def apply(self, value: JsonValue) -> JsonValue:
        """The transformed value. Raises WrongType if a function of `select` can't be applied to it."""
        if self.select is not None:
            try:
                value = self.select.search(value)
            except ValueError as error:
                raise WrongType(f"select can't be applied to it: {str(error).splitlines()[0]}") from None
        if self.allow:
            value = _allowed(value, _tree(self.allow))
        if self.deny:
            value = _without(value, _tree(self.deny))
        for path, name in self.rename:
            value = _renamed(value, path.split("."), name)
        return value


Tree = dict[str, "Tree"]


def _tree(paths: Iterable[str]) -> Tree:
    """Dotted paths as a tree; a path below another is covered by that one."""
    whole = set(paths)
    tree: Tree = {}
    for path in paths:
        names = path.split(".")
        if any(".".join(names[:length]) in whole for length in range(1, len(names))):
            continue
        node = tree
        for name in names:
            node = node.setdefault(name, {})
    return tree


def _allowed(value: JsonValue, tree: Tree) -> JsonValue:
    if isinstance(value, list):
        return [_allowed(item, tree) for item in value if isinstance(item, dict | list)]
    if not isinstance(value, dict):
        return None
    return {
        name: _allowed(item, tree[name]) if tree[name] else item
        for name, item in value.items()
        if name in tree and (not tree[name] or isinstance(item, dict | list))
    }


def _without(value: JsonValue, tree: Tree) -> JsonValue:
    if isinstance(value, list):
        return [_without(item, tree) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: _without(item, tree[name]) if name in tree else item
        for name, item in value.items()
        if name not in tree or tree[name]
    }


def _renamed(value: JsonValue, path: Sequence[str], new: str) -> JsonValue:
    """Renames the key at the end of `path` in place; an existing key with the new name is replaced."""
    if isinstance(value, list):
        return [_renamed(item, path, new) for item in value]
    if not isinstance(value, dict) or path[0] not in value:
        return value
    if len(path) > 1:
        return {name: _renamed(item, path[1:], new) if name == path[0] else item for name, item in value.items()}
    if path[0] == new:
        return value
    return {new if name == path[0] else name: item for name, item in value.items() if name != new}


# --- each content once -------------------------------------------------------------------------------------

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


class PreparedTransform(msgspec.Struct, frozen=True):
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


# --- joining -----------------------------------------------------------------------------------------------


class MergePiece(msgspec.Struct, frozen=True):
    """A part in the response: JSON text under `group`, or merged into the root if that is None (then `value` is its
    parsed object)."""

    group: str | None
    text: bytes
    value: JsonValue = None


def joined(pieces: Sequence[MergePiece], merge: Merge = "shallow") -> bytes:
    """One JSON object of all pieces, in order: spliced if none is merged into the root."""
    spliced = []
    for piece in pieces:
        if piece.group is None:
            break
        spliced.append(key_text(piece.group) + piece.text)
    else:
        return b"{" + b",".join(spliced) + b"}"
    try:
        return text_of(_merged(pieces, merge))
    except (RecursionError, TooDeep):
        # Values merged within each other that are nested too deeply to be written: the later stands as it came.
        return text_of(_merged(pieces, "shallow"))


def _merged(pieces: Sequence[MergePiece], merge: Merge) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for piece in pieces:
        if piece.group is not None:
            addition: Mapping[str, Any] = {piece.group: Verbatim(piece.text)}
        elif isinstance(piece.value, dict):
            addition = piece.value
        else:
            raise WrongType("it isn't an object; only objects can be merged into the root")
        for name, value in addition.items():
            root[name] = _together(root[name], value, merge) if name in root and merge != "shallow" else value
    return root


def _together(old: Any, new: Any, merge: Merge) -> Any:
    old, new = _unwrapped(old), _unwrapped(new)
    if isinstance(old, dict) and isinstance(new, dict):
        both = dict(old)
        for name, value in new.items():
            both[name] = _together(both[name], value, merge) if name in both else value
        return both
    if merge == "concat" and isinstance(old, list) and isinstance(new, list):
        return [*old, *new]
    return new


def _unwrapped(value: Any) -> Any:
    return value_of(value.text) if isinstance(value, Verbatim) else value


@lru_cache(maxsize=1024)  # names come from settings
def key_text(name: str) -> bytes:
    """The text before a value in an object: its name, and the colon."""
    return orjson.dumps(name) + b":"


def list_of(texts: Iterable[bytes]) -> bytes:
    """A JSON array of JSON texts."""
    return b"[" + b",".join(texts) + b"]"
