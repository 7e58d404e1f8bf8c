"""JSON text (RFC 8259): what of a body can be taken, and values that are written as they were read.

Pure. orjson reads a number that needs more than 64 bits into a float and writes `1.0` for `1.00`. Both are right by RFC
8259 §6, and wrong for an id or an amount. Here a number that would be written in another way keeps its text, and is
compared by its exact value.
"""

from __future__ import annotations

import codecs
import json
import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

import orjson
from pydantic import JsonValue

DEEPEST = 254
"""How many levels of arrays and objects are written: orjson's own bound. It reads 1024."""
_BOUND = "it is nested deeper than 1024 levels"
_MARKS = bytes(ord("0" if chr(code) in "0123456789" else "." if chr(code) in ".eE" else " ") for code in range(256))
_LONG = b"0" * 19
# Python's codecs that are not charsets of the web: some take quadratic time.
_NO_CHARSETS = frozenset(("idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined"))


class NotJson(ValueError):
    """A body that is not JSON; the message says why."""


class TooDeep(ValueError):
    """A value is nested too deeply to be read into Python's objects, or written."""


# --- numbers -----------------------------------------------------------------------------------------------


class Number(float):
    """A JSON number that would be written in another way than it was read. It counts with a float's precision, and is
    compared exactly."""

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str) -> Number:
        made = super().__new__(cls, text)
        made.text = text
        return made

    def __repr__(self) -> str:
        return self.text

    def __eq__(self, other: object) -> bool:
        return exact(self) == exact(other) if isinstance(other, int | float) else NotImplemented

    def __ne__(self, other: object) -> bool:
        return exact(self) != exact(other) if isinstance(other, int | float) else NotImplemented

    def __lt__(self, other: float) -> bool:
        return exact(self) < exact(other) if isinstance(other, int | float) else NotImplemented

    def __le__(self, other: float) -> bool:
        return exact(self) <= exact(other) if isinstance(other, int | float) else NotImplemented

    def __gt__(self, other: float) -> bool:
        return exact(self) > exact(other) if isinstance(other, int | float) else NotImplemented

    def __ge__(self, other: float) -> bool:
        return exact(self) >= exact(other) if isinstance(other, int | float) else NotImplemented

    __hash__ = float.__hash__


def exact(number: float) -> Decimal:
    """The value of a number by its text; of a float, by its shortest text."""
    if isinstance(number, int):
        return Decimal(number)
    try:
        return Decimal(number.text if isinstance(number, Number) else repr(number))
    except InvalidOperation:  # an exponent beyond 10^18
        return Decimal(float(number))


def number_of(text: str) -> int | float:
    """The value of a JSON number's text, which `text_of` writes as that text."""
    if "." not in text and "e" not in text and "E" not in text:
        return int(text) if len(text) < 19 and text != "-0" else Number(text)
    if "e" not in text and "E" not in text and repr(made := float(text)) == text:
        return made
    return Number(text)


def is_unicode(text: str) -> bool:
    """Whether it can be sent: an unpaired surrogate is not a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# --- reading -----------------------------------------------------------------------------------------------


def json_text(body: bytes, charset: str = "") -> tuple[bytes, JsonValue]:
    """`body` as JSON text in UTF-8 without a byte order mark, and its value, whose numbers may have been rounded
    (`exactly` keeps their digits). JSON that is UTF-8 already is returned byte for byte.

    A byte order mark is skipped (RFC 8259 §8.1), UTF-16 and UTF-32 are detected by their zero bytes or mark, and if the
    bytes are not UTF-8, the `charset` of the Content-Type applies. An escaped unpaired surrogate (`"\\ud800"`) is
    allowed by the grammar (§8.2) and kept. Raises NotJson.
    """
    try:
        return body, orjson.loads(body)
    except orjson.JSONDecodeError:
        text = _in_utf8(body, charset)
    try:
        return text, orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if "recursion" in str(error).lower():
            raise NotJson(_BOUND) from None
    try:
        return text, _loaded(text)
    except TooDeep:
        raise NotJson(_BOUND) from None


def exactly(text: bytes, value: JsonValue) -> JsonValue:
    """The value of JSON text with each number as written; `value` is the result of the fast parser.

    Raises TooDeep.
    """
    return _loaded(text) if _at_risk(text) else value


def _at_risk(text: bytes) -> bool:
    """Whether a number may be written in another way than it was read: it has a fraction or an exponent, or 19 digits,
    or is -0. Text in strings may look so, too. (A regular expression took 24 us for a kilobyte; this takes 2.)"""
    marks = text.translate(_MARKS)
    return b"0." in marks or _LONG in marks or b"-0" in text


def value_of(text: bytes) -> JsonValue:
    """The value of JSON text in UTF-8, with each number as it is written there. Raises NotJson, TooDeep."""
    return exactly(*json_text(text))


def _in_utf8(body: bytes, charset: str) -> bytes:
    encoding = json.detect_encoding(body)
    try:
        text = body.decode(encoding).encode()
    except UnicodeDecodeError:
        return text_in(body, charset).encode()
    return body if text == body else text


def text_in(body: bytes, charset: str) -> str:
    """`body` as text, without a byte order mark. `charset` is UTF-8 where it is empty. Raises NotJson."""
    try:
        name = codecs.lookup(charset or "utf-8").name
        text = "" if name in _NO_CHARSETS else body.decode(name)
    except (ValueError, LookupError):
        raise NotJson(f"it isn't text in {charset or 'utf-8'}") from None
    if name in _NO_CHARSETS:
        raise NotJson(f"its charset {charset} is not supported")
    return text.removeprefix("\ufeff")


def _no_constant(name: str) -> NoReturn:
    raise NotJson(f"it is not valid JSON: {name} is not a value")


_decoder = json.JSONDecoder(parse_int=number_of, parse_float=number_of, parse_constant=_no_constant)


def _loaded(text: bytes) -> JsonValue:
    try:
        value: JsonValue = _decoder.decode(text.decode())
    except RecursionError:
        raise TooDeep("it is nested too deeply") from None
    except json.JSONDecodeError:
        raise NotJson("it is not valid JSON") from None
    return value


# --- writing -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verbatim:
    """JSON text inside a value, which is written unchanged."""

    text: bytes


def text_of(value: Any) -> bytes:
    """The JSON text of a value, in UTF-8: each number that was read as it was written. Raises TooDeep."""
    try:
        return orjson.dumps(value, default=_as_it_came)
    except orjson.JSONEncodeError:
        # It is too deep, or has what orjson refuses: an integer beyond 64 bits, a surrogate without its other half.
        try:
            return _written(value, DEEPEST)
        except RecursionError:
            raise TooDeep("it is nested too deeply to be written") from None


def _as_it_came(value: object) -> orjson.Fragment:
    if isinstance(value, Verbatim):
        return orjson.Fragment(value.text)
    if isinstance(value, Number):
        return orjson.Fragment(value.text)
    raise TypeError(f"{type(value).__name__} can't be written as JSON")


def _written(value: Any, levels: int) -> bytes:
    if isinstance(value, dict):
        return b"{%b}" % b",".join(
            json.dumps(name).encode() + b":" + _written(item, _below(levels)) for name, item in value.items()
        )
    if isinstance(value, list | tuple):
        return b"[%b]" % b",".join(_written(item, _below(levels)) for item in value)
    if isinstance(value, Verbatim):
        return value.text
    if isinstance(value, str):
        return json.dumps(value).encode()
    return str(value).encode() if type(value) is int else orjson.dumps(value, default=_as_it_came)


def _below(levels: int) -> int:
    if not levels:
        raise TooDeep("it is nested too deeply to be written")
    return levels - 1


_LONE = re.compile(rb"\\u[dD][89a-fA-F]")


def well_formed(text: bytes) -> bytes:
    """JSON text with a question mark for each surrogate without its other half: for readers that refuse those."""
    if _LONE.search(text) is None:
        return text
    return json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8", "replace")
