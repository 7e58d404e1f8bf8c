"""Strict parsing of upstream responses to requests without a body: heads, and the ends of bodies. Pure.

This module has no connections and no time. Whatever two readers could interpret differently is refused (RFC 9112 §6.3):
different lengths, a length together with a transfer coding, another coding than `chunked`. Unambiguous deviations are
accepted: lines that end with a bare line feed (§2.2), folded lines (§5.2).

The heads of an upstream have few forms. `HeadForms` recognises them, so that what follows from a form is decided once.
"""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec
from msgspec import structs

from gateway.errors import GatewayError
from gateway.http.headers import SOFTWARE
from gateway.http.request_parser import BAD_IN_VALUE, NAME

MOST_FIELDS = 256
"""Field lines in one head by default; nginx bounds their bytes alone, Varnish allows 64."""
_END_OF_HEAD = re.compile(rb"\n\r?\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\r\0]*)?\r?")
_FOLD = re.compile(rb"\r?\n[ \t]+")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_REMEMBERED = 256  # bytes of a line
_FRAMING = frozenset((b"content-length", b"transfer-encoding", b"connection"))
WITHOUT_BODY = (204, 304)
"""Statuses of final responses that no content follows (RFC 9112 §6.3)."""
# RFC 9112 §7.1; some servers fill the size up with spaces.
_SIZE = re.compile(rb"0{0,64}([0-9A-Fa-f]{1,16})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
_LONGEST_SIZE = 1024  # bytes of a chunk's size line, its extensions included


class Malformed(GatewayError):
    """A response is not HTTP, or its end is ambiguous."""


class TooLarge(Malformed):
    """A head is larger than the settings allow; the message names the setting."""


class Fields(list[tuple[bytes, bytes]]):
    """The fields of a response as received, and the form of its head, if that is known. They are not changed in
    place."""

    __slots__ = ("form",)

    form: HeadForm | None


class Head(msgspec.Struct, frozen=True):
    """A head. `length` is the body's in bytes; None if it is chunked, or ends with the connection.

    Field names are in lower case; fields that name the upstream's software are left out. `keeps` is whether the
    connection may be reused; with `quiet` only after it was silent for a while, because the head announced content that
    must not follow it.
    """

    status: int
    fields: Fields
    length: int | None
    chunked: bool
    keeps: bool
    quiet: bool = False


def end_of_head(data: bytes, start: int) -> int:
    """The index behind the first empty line in `data`, from `start` on; 0 if there is none."""
    match = _END_OF_HEAD.search(data, start)
    return match.end() if match is not None else 0


def read_head(data: bytes, *, bodiless: bool, most_fields: int = MOST_FIELDS) -> Head:
    """The head in `data`, including its end; `bodiless` for the response to a HEAD. Raises Malformed."""
    first, _, block = data.partition(b"\n")
    status, old = (_status if len(first) <= _REMEMBERED else _read_status)(first)
    try:
        fields = _fields(block, most_fields)
    except Malformed:  # as it is where a line is folded: no name begins with a space
        fields = _fields(_FOLD.sub(b" ", block), most_fields)
    return _framed(status, fields, old=old, bodiless=bodiless)


def _read_status(line: bytes) -> tuple[int, bool]:
    """The status in a status line, and whether it is of HTTP/1.0. Raises Malformed."""
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise Malformed("its head isn't valid HTTP/1.1")
    return int(match[2]), match[1] == b"0"


def _fields(block: bytes, most: int) -> Fields:
    """The fields in a block of lines, none of which is folded. Raises Malformed."""
    lines = block.split(b"\n")[:-2]  # without the empty line, and what follows its end
    if len(lines) > most:
        raise TooLarge(f"its head has {len(lines)} fields, more than max_response_fields ({most})")
    found = [field for line in lines if (field := (_field if len(line) <= _REMEMBERED else _read_field)(line))]
    fields = Fields(found)
    fields.form = None
    return fields


def _read_field(line: bytes) -> tuple[bytes, bytes] | None:
    """A field; None if it is left out. Raises Malformed."""
    name, colon, value = line.removesuffix(b"\r").partition(b":")
    value = value.strip(b" \t")
    if not colon or not NAME.fullmatch(name) or BAD_IN_VALUE.search(value):
        raise Malformed("a malformed header")
    name = name.lower()
    return None if name in SOFTWARE else (name, value)


# Most lines of a server are those that it sent before.
_status = lru_cache(maxsize=64)(_read_status)
_field = lru_cache(maxsize=4096)(_read_field)


def _framed(status: int, fields: Fields, *, old: bool, bodiless: bool) -> Head:
    length: int | None = None
    chunked = False
    keeps, closes = not old, False
    for name, value in fields:
        if name not in _FRAMING:
            continue
        if name == b"content-length":
            if length is not None or not _LENGTH.fullmatch(value):
                raise Malformed("contradictory lengths")
            length = int(value)
        elif name == b"transfer-encoding":
            if chunked or value.lower() != b"chunked":
                raise Malformed("ambiguous framing")
            chunked = True
        else:
            options = [item.strip(b" \t").lower() for item in value.split(b",")]
            keeps = keeps or b"keep-alive" in options
            closes = closes or b"close" in options
    keeps = keeps and not closes
    if chunked and length is not None:
        raise Malformed("ambiguous framing")
    if bodiless or status in WITHOUT_BODY or status < 200:
        return _without_body(Head(status, fields, 0, False, keeps), announced=chunked or bool(length))
    # RFC 9110 §15.3.6: a 205 must not have content. Where it announces some, it is framed as any other (RFC 9112 §6.3),
    # and the connection ends behind it.
    keeps = keeps and not (status == 205 and (chunked or length))
    # RFC 9112 §6.1: a transfer coding in HTTP/1.0 is not reliable for the next response.
    return Head(status, fields, length, chunked, keeps and (length is not None or (chunked and not old)))


def _without_body(head: Head, *, announced: bool) -> Head:
    """A head that no content follows, whatever its fields (RFC 9112 §6.3).

    Announced content may still arrive, and would be read as the next response. A 1xx or a 204 must not announce content
    (RFC 9110 §8.6, RFC 9112 §6.1); a 304 may, but few servers do: both close the connection. Responses to HEAD do: the
    connection is kept, and watched. Content after a 1xx would be read as the final response to the same request, so
    such a 1xx is refused.
    """
    if not announced:
        return head
    if head.status < 200:
        raise Malformed("an interim response with content")
    expected = head.status not in WITHOUT_BODY
    return structs.replace(head, keeps=head.keeps and expected, quiet=True)


class Chunks:
    """A chunked body (RFC 9112 §7.1). Trailers are read and discarded; `most` bounds their bytes."""

    def __init__(self, most: int) -> None:
        self.done = False
        self._most = most
        self._rest = b""
        self._left = 0
        self._step = self._size

    def take(self, data: bytes) -> tuple[list[bytes], bytes]:
        """The pieces of content in `data`, and the bytes behind the body's end. Raises Malformed."""
        data, self._rest = self._rest + data, b""
        at, pieces = 0, []
        while at < len(data) and not self.done:
            if self._left:
                piece = data[at : at + self._left]
                pieces.append(piece)
                self._left -= len(piece)
                at += len(piece)
                continue
            end = data.find(b"\n", at)
            if end < 0:
                self._rest = data[at:]
                if len(self._rest) > (self._most if self._step == self._trailer else _LONGEST_SIZE):
                    raise Malformed("a line of a chunked body is too long")
                break
            line = data[at:end]
            if not line.endswith(b"\r"):
                raise Malformed("a chunked body with a bare line feed")
            self._step(line[:-1])
            at = end + 1
        return pieces, data[at:] if self.done else b""

    def _size(self, line: bytes) -> None:
        match = _SIZE.fullmatch(line) if len(line) <= _LONGEST_SIZE else None
        if match is None:
            raise Malformed("a chunk's size is malformed")
        self._left = int(match[1], 16)
        self._step = self._after_data if self._left else self._trailer

    def _after_data(self, line: bytes) -> None:
        if line:
            raise Malformed("a chunk is longer than it says")
        self._step = self._size

    def _trailer(self, line: bytes) -> None:
        if not line:
            self.done = True
            return
        self._most -= len(line)
        if self._most < 0:
            raise Malformed("trailers that are too large")
        _read_field(line)


_CONSTANT = frozenset(
    (
        *(b"connection", b"content-encoding", b"content-type", b"expires", b"pragma", b"surrogate-control"),
        *(b"transfer-encoding", b"vary", b"x-accel-expires"),
    )
)
_OF_ONE_CLIENT = frozenset((b"set-cookie", b"set-cookie2"))
"""Fields with which a head has no form: their values are kept nowhere else."""
_MOST_FORMS = 256
_LONGEST_FORM = 4096
"""Bytes of a head up to which its form is noted."""
_MOST_LINES = 64
"""Lines of a head up to which its form is noted. A pattern of so many takes 5 ms to make, one of 256 fields 30 ms."""
_TIMES = 64
"""How often a form has come when a pattern is made to read its heads: that takes as long as to read a hundred."""
_MOST_TRIED = 4
"""Patterns that are tried on a head: one that does not match takes a tenth of the time of reading it line by line."""
_ODD_END_OF_LINE = re.compile(rb"(?<!\r)\n|\n[ \t]")
"""A line that ends with a bare line feed, or goes on in a folded one: such lines aren't the fields one by one."""
# Possessive: a value has no control character, so no shorter one ends before the line does.
_VALUE = rb"((?![ \t])[^\x00-\x08\x0a-\x1f\x7f]*+(?<![ \t]))"
_LENGTH_VALUE = rb"([0-9]{1,18})"


class HeadForm:
    """What heads of status 200 have in common that have the same fields in the same order, none twice, and the same
    values in those that are `constant`: all whose values may decide anything. The values of the others, lengths, dates
    and ages among them, are copied or read each time.

    There is one object for each form of an upstream, by whose identity others keep what follows from it.
    """

    __slots__ = ("_chunked", "_head", "_length", "_pattern", "_times", "constant", "names")

    def __init__(self, head: Head) -> None:
        self.names = tuple([name for name, _ in head.fields])
        self.constant = frozenset(filter(_is_constant, self.names))
        self._length = self.names.index(b"content-length") if b"content-length" in self.names else -1
        self._head = head
        """The last one of the form that was no longer than `_LONGEST_FORM`."""
        self._pattern: re.Pattern[bytes] | None = None
        self._times = 0

    def __repr__(self) -> str:
        return f"<HeadForm {b', '.join(self.names).decode('latin-1')}>"

    @property
    def last(self) -> Fields:
        """The fields of the last head that had this form."""
        return self._head.fields

    def came(self, data: bytes, head: Head) -> bool:
        """Note that `data` was read as `head`, which has this form; whether it `matches` from now on."""
        self._head = head
        self._times += 1
        if self._times == _TIMES and not _ODD_END_OF_LINE.search(data):
            pattern = _pattern_of(data)
            match = pattern.fullmatch(data)
            if match is not None and [*match.groups()] == [value for _, value in head.fields]:
                self._pattern = pattern
        return self._pattern is not None

    def match(self, data: bytes) -> tuple[Head, int] | None:
        """The head at the beginning of `data`, and its end, if it has this form."""
        match = None if self._pattern is None else self._pattern.match(data)
        if match is None:
            return None
        last, values = self._head, match.groups()
        # Equal fields are one object, as thousands of responses may be stored with them.
        pairs = zip(last.fields, values)  # noqa: B905 (a pattern gives as many values as fields; `strict` takes time)
        fields = Fields([pair if pair[1] == value else (pair[0], value) for pair, value in pairs])
        fields.form = self
        length = int(values[self._length]) if self._length >= 0 else None
        head, end = Head(200, fields, length, last.chunked, last.keeps), match.end()
        if end <= _LONGEST_FORM:
            self._head = head
        return head, end


class HeadForms:
    """The forms of one upstream's heads that came more than once, at most 256."""

    __slots__ = ("_came_once", "_known", "_tried")

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], HeadForm] = {}
        self._came_once: set[tuple[object, ...]] = set()
        """Apart from those that are known: an `Expires` that is another one in each head displaces no form."""
        self._tried: list[HeadForm] = []
        """Those with a pattern that came last, the latest first."""

    def __len__(self) -> int:
        return len(self._known)

    def match(self, data: bytes) -> tuple[Head, int] | None:
        """The head at the beginning of `data`, and its end, if it has one of the forms that came last: the same as
        `read_head` reads. None says nothing about it."""
        for form in self._tried:
            found = form.match(data)
            if found is not None:
                return found
        return None

    def note(self, data: bytes, head: Head) -> None:
        """Note the form of a head that was read from `data`, for its fields to have it if it came before."""
        if len(data) > _LONGEST_FORM or data.count(b"\n") > _MOST_LINES:
            return
        fields = head.fields
        key = (head.keeps, head.chunked, *[pair if _is_constant(pair[0]) else pair[0] for pair in fields])
        form = self._known.get(key) or self._new(key, head)
        if form is not None:
            fields.form = form
            if form.came(data, head):
                others = [each for each in self._tried if each is not form]
                self._tried = [form, *others[: _MOST_TRIED - 1]]

    def _new(self, key: tuple[object, ...], head: Head) -> HeadForm | None:
        """The form of a head that came for the second time; None before, and for one that has none."""
        names = [name for name, _ in head.fields]
        if len(set(names)) < len(names) or not _OF_ONE_CLIENT.isdisjoint(names):
            return None
        if key not in self._came_once:
            _drop_all(self._came_once)
            self._came_once.add(key)
            return None
        _drop_all(self._known)
        self._came_once.discard(key)
        self._known[key] = form = HeadForm(head)
        return form


def _drop_all(forms: dict[tuple[object, ...], HeadForm] | set[tuple[object, ...]]) -> None:
    """Drop all of `forms`, if there are as many as are kept."""
    if len(forms) >= _MOST_FORMS:
        forms.clear()


@lru_cache(maxsize=1024)
def _is_constant(name: bytes) -> bool:
    return name in _CONSTANT or name.endswith(b"cache-control") or name.startswith(b"access-control-")


def _pattern_of(head: bytes) -> re.Pattern[bytes]:
    """A pattern for heads with the same lines as this one, which has been read, but for values that are not constant;
    its groups are the values of the fields that `read_head` returns."""
    line, *lines = head[:-4].split(b"\r\n")
    pieces = [re.escape(line)]
    for line in lines:
        raw, _, text = line.partition(b":")
        name, value = raw.lower(), text.strip(b" \t")
        before = re.escape(raw + b":" + text[: len(text) - len(text.lstrip(b" \t"))])
        if name in SOFTWARE:
            pieces.append(before + _VALUE.replace(b"(", b"(?:", 1))
        elif name == b"content-length":
            pieces.append(before + _LENGTH_VALUE)
        elif _is_constant(name):
            pieces.append(before + b"(" + re.escape(value) + b")" + re.escape(text[len(text.rstrip(b" \t")) :]))
        else:
            pieces.append(before + _VALUE)
    return re.compile(b"\r\n".join(pieces) + b"\r\n\r\n")
