"""JSON text (RFC 8259): what of a body can be taken, and values that are written as they were read.

Pure. orjson reads a number that needs more than 64 bits into a float and writes `1.0` for `1.00`. Both are right by RFC
8259 §6, and wrong for an id or an amount. Here a number that would be written in another way keeps its text, and is
compared by its exact value.
"""

from __future__ import annotations

import encodings.aliases
import json
import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

import orjson
from pydantic import JsonValue

DEEPEST = 254
"""Maximum nesting depth for writing: orjson's own limit. It reads 1024 levels."""
_MARKS = bytes(ord("0" if chr(code) in "0123456789" else "." if chr(code) in ".eE" else " ") for code in range(256))
_LONG = b"0" * 19
# The charsets of the Encoding Standard, and UTF-32, by the names of Python's codecs. Of its others some take quadratic
# time or fail in ways of their own; and each unknown name that it looks up stays in its memory.
_CODECS = (
    *("ascii", "utf_8", "utf_8_sig", "utf_16", "utf_16_be", "utf_16_le", "utf_32", "utf_32_be", "utf_32_le"),
    *("latin_1", *(f"iso8859_{number}" for number in (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 16))),
    *("cp866", "cp874", *(f"cp125{number}" for number in range(9)), "koi8_r", "koi8_u", "mac_roman", "mac_cyrillic"),
    *("gb2312", "gbk", "gb18030", "big5", "big5hkscs", "euc_jp", "iso2022_jp", "shift_jis", "cp932", "euc_kr", "cp949"),
)
_CHARSETS = {name: name for name in _CODECS} | {
    alias: name for alias, name in encodings.aliases.aliases.items() if name in _CODECS
}


class NotJson(ValueError):
    """A body that is not JSON; the message says why."""


class _Unread:
    """Stands for the value of JSON text that is nested too deeply to be read."""


UNREAD: Any = _Unread()


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
    allowed by the grammar (§8.2) and kept. The value of text that is nested too deeply to be read is `UNREAD`. Raises
    NotJson.
    """
    try:
        return body, orjson.loads(body)
    except orjson.JSONDecodeError:
        text = _in_utf8(body, charset)
    try:
        return text, orjson.loads(text)
    except orjson.JSONDecodeError as error:
        deep = "recursion" in str(error).lower()
    try:
        return text, UNREAD if deep and is_json(text) else _loaded(text)
    except TooDeep:
        if is_json(text):
            return text, UNREAD
        raise NotJson("it is not valid JSON") from None


def exactly(text: bytes, value: JsonValue) -> JsonValue:
    """The value of JSON text with each number as written; `value` is the result of the fast parser.

    Raises TooDeep.
    """
    if value is UNREAD:
        raise TooDeep("it is nested too deeply to be read")
    return _loaded(text) if _at_risk(text) else value


def _at_risk(text: bytes) -> bool:
    """Whether a number may be written in another way than it was read: it has a fraction or an exponent, or 19 digits,
    or is -0. Text in strings may look so, too. (A regular expression took 24 us for a kilobyte; this takes 2.)"""
    marks = text.translate(_MARKS)
    return b"0." in marks or _LONG in marks or b"-0" in text


def value_of(text: bytes) -> JsonValue:
    """The value of JSON text in UTF-8, with each number as written. Raises NotJson, TooDeep."""
    return exactly(*json_text(text))


_STRING = re.compile(rb'"[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4})[^"\\\x00-\x1f]*+)*+"')
_SCALAR = re.compile(rb"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?|true|false|null")
_IS_STRING, _IS_SCALAR = 0, 1
_VALUE, _ELEMENT, _KEY, _MEMBER, _COLON, _END = range(6)
"""What may come next: a value; the first element of an array, or its end; a name; the first one, or the end of the
object; a colon; what follows a value."""


def is_json(text: bytes) -> bool:
    """Whether text in UTF-8 is JSON (RFC 8259), however deeply nested. It takes 0.1 us for each character outside of
    strings."""
    if b"\0" in text or b"\1" in text:
        return False
    # Each string and each scalar becomes one byte that can't be in JSON text.
    marks = _SCALAR.sub(b"\1", _STRING.sub(b"\0", text)).translate(None, b" \t\r\n")
    opened = bytearray()
    expected = _VALUE
    for mark in marks:
        if expected == _END:
            if not opened:
                return False
            if mark == ord(","):
                expected = _VALUE if opened[-1] == ord("[") else _KEY
            elif mark == opened.pop() + 2:  # the closing bracket's code
                continue
            else:
                return False
        elif expected == _COLON:
            if mark != ord(":"):
                return False
            expected = _VALUE
        elif expected >= _KEY:
            if mark == _IS_STRING:
                expected = _COLON
            elif mark == ord("}") and expected == _MEMBER:
                opened.pop()
                expected = _END
            else:
                return False
        elif mark <= _IS_SCALAR:
            expected = _END
        elif mark in (ord("["), ord("{")):
            opened.append(mark)
            expected = _ELEMENT if mark == ord("[") else _MEMBER
        elif mark == ord("]") and expected == _ELEMENT:
            opened.pop()
            expected = _END
        else:
            return False
    return expected == _END and not opened


def _in_utf8(body: bytes, charset: str) -> bytes:
    encoding = json.detect_encoding(body)
    try:
        text = body.decode(encoding).encode()
    except UnicodeDecodeError:
        return text_in(body, charset).encode()
    return body if text == body else text


def codec_of(charset: str) -> str | None:
    """Python's name of a charset's codec; None if it isn't a text charset."""
    return _CHARSETS.get(re.sub(r"[^a-z0-9.]+", "_", charset.lower()))


def text_in(body: bytes, charset: str) -> str:
    """`body` as text, without a byte order mark. `charset` is UTF-8 if it is empty. Raises NotJson."""
    name = codec_of(charset or "utf-8")
    if name is None:
        raise NotJson(f"it isn't text in {charset[:40]}: the charset {charset[:40]} is not supported")
    try:
        return body.decode(name).removeprefix("\ufeff")
    except ValueError:
        raise NotJson(f"it isn't text in {charset or 'utf-8'}") from None


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


# --- the canonical form ------------------------------------------------------------------------------------


def canonical(text: bytes) -> bytes | None:
    """JSON text with the members of each object sorted by name, without insignificant space, each number as written.

    Texts with the same canonical form have the same value to every reader. None if there is none: the text is not
    JSON in UTF-8, an object has two members of one name (which readers understand differently, RFC 8259 §4), a string
    is not Unicode, or it is nested more than `DEEPEST` levels. It takes 0.1 us for each byte at most.
    """
    try:
        return orjson.dumps(_sorting.decode(text.decode()), option=orjson.OPT_SORT_KEYS)
    except (ValueError, RecursionError, orjson.JSONEncodeError):
        return None


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise NotJson("an object has two members of one name")
    return members


def _written_number(text: str) -> int | orjson.Fragment:
    return int(text) if len(text) < 19 and text != "-0" else orjson.Fragment(text)


_sorting = json.JSONDecoder(
    object_pairs_hook=_members,
    parse_int=_written_number,
    parse_float=orjson.Fragment,
    parse_constant=_no_constant,
)


# --- writing -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verbatim:
    """JSON text inside a value, which is written unchanged."""

    text: bytes


def text_of(value: Any) -> bytes:
    """The JSON text of a value, in UTF-8, with each number as read. Raises TooDeep."""
    try:
        return orjson.dumps(value, default=_as_it_came, option=orjson.OPT_PASSTHROUGH_DATACLASS)
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
