"""Header fields: their meaning for a cache, and which of them are forwarded.

Pure. Fields are pairs of bytes in their order on the wire, names in lower case, as in ASGI. Nothing here raises on
malformed input: an invalid field has no effect, or the effect that is safe for a cache (an invalid freshness lifetime
is zero, RFC 9111 §4.2.1).

Structured fields as far as a cache needs them: the members of a dictionary (RFC 9651 §3.2, §4.2.2). A field with a
syntax error anywhere is ignored as a whole (§4.2).
"""

from __future__ import annotations

import re
from calendar import timegm
from collections.abc import Iterable, Sequence
from email.utils import formatdate
from functools import lru_cache

import http_sf
import msgspec

Headers = Sequence[tuple[bytes, bytes]]

# RFC 9111 §1.2.2: a value too large to represent is treated as 2^31.
MAX_DELTA = 2**31

HOP_BY_HOP = frozenset(
    # RFC 9110 §7.6.1, and the fields it names from older practice.
    (b"connection", b"proxy-connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade")
) | frozenset((b"proxy-authenticate", b"proxy-authorization", b"proxy-authentication-info"))

WITHOUT_CONTENT = frozenset((204, 205, 304))
"""Statuses of final responses that have no content (RFC 9110 §15.3.5, §15.3.6, §15.4.5)."""

CONTENT_DIGESTS = (b"content-digest", b"content-md5")
"""Fields that describe the bytes of one message (RFC 9530 §2, RFC 1864): they differ for a range, or without a body."""
DIGESTS = (*CONTENT_DIGESTS, b"repr-digest", b"digest")
"""Fields that describe the bytes of a message or of the representation in its content coding (RFC 9530 §3, RFC
3230)."""

SOFTWARE = frozenset((b"server", b"x-powered-by", b"x-aspnet-version", b"x-aspnetmvc-version", b"x-generator"))
"""Fields that name an upstream's software: they are removed, as they only help attackers."""

# Fields that change what an upstream does without being in any cache key: known ways to poison a cache
# (Kettle, "Practical Web Cache Poisoning", 2018), and those in which a proxy describes the client.
UNKEYED_DANGERS = frozenset(
    (
        b"forwarded",
        b"x-original-url",
        b"x-rewrite-url",
        b"x-original-host",
        b"x-http-method",
        b"x-http-method-override",
        b"x-method-override",
        b"x-host",
        b"x-real-ip",
        b"x-client-ip",
        b"x-cluster-client-ip",
        b"true-client-ip",
        b"cf-connecting-ip",
        b"fastly-client-ip",
        b"x-scheme",
        b"x-url-scheme",
        b"x-wap-profile",
        b"x-envoy-original-path",
        b"x-accel-redirect",
        b"front-end-https",
    )
)


# Families of them: what proxies and frameworks (Symfony, IIS, Next.js, Envoy) take for the true host, path or method.
_DANGEROUS_BEGINNINGS = (
    *(
        b"x-forwarded",
        b"x-original-",
        b"x-rewrite-",
        b"x-http-method",
        b"x-middleware-",
        b"x-invoke-",
        b"x-matched-path",
    ),
    *(b"x-proxy-", b"x-backend-", b"x-remote-", b"x-azure-", b"x-override-", b"x-envoy-", b"x-sendfile", b"x-accel-"),
)


def values(headers: Headers, name: bytes) -> list[bytes]:
    """Every field line of `name`, in order."""
    return [value for key, value in headers if key == name]


def combined(headers: Headers, name: bytes) -> str | None:
    """The field's lines joined by a comma (RFC 9110 §5.3); None if it is absent."""
    lines = [value for key, value in headers if key == name]
    return b", ".join(lines).decode("latin-1") if lines else None


def first(headers: Headers, name: bytes) -> str | None:
    """The first field line of `name`; None if it is absent."""
    for key, value in headers:
        if key == name:
            return value.decode("latin-1")
    return None


def has(headers: Headers, name: bytes) -> bool:
    for key, _ in headers:  # noqa: SIM110 - half as long as any() of a generator, and called some twenty times per request
        if key == name:
            return True
    return False


def without(headers: Headers, *names: bytes) -> list[tuple[bytes, bytes]]:
    return [pair for pair in headers if pair[0] not in names]


def split_list(text: str) -> list[str]:
    """The elements of a comma-separated list, commas within quoted strings respected (RFC 9110 §5.6.1)."""
    if '"' not in text:
        return [item for part in text.split(",") if (item := part.strip(" \t"))]
    items, start, quoted, escaped = [], 0, False, False
    for index, char in enumerate(text):
        if escaped:
            escaped = False
        elif quoted and char == "\\":
            escaped = True
        elif char == '"':
            quoted = not quoted
        elif char == "," and not quoted:
            items.append(text[start:index])
            start = index + 1
    items.append(text[start:])
    return [item for part in items if (item := part.strip(" \t"))]


def unquote(text: str) -> str:
    """The content of a quoted string, or the text itself where it isn't one (RFC 9110 §5.6.4)."""
    if len(text) >= 2 and text[0] == '"' and text[-1] == '"':
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    return text


def connection_named(headers: Headers) -> frozenset[bytes]:
    """The field names that `Connection` lists: they end at this hop (RFC 9110 §7.6.1)."""
    named = combined(headers, b"connection")
    return frozenset(item.lower().encode("latin-1") for item in split_list(named)) if named else frozenset()


def connection_options(headers: Headers) -> frozenset[bytes]:
    """The connection options in `Connection`: `close`, `keep-alive` (RFC 9112 §9.3)."""
    lines = values(headers, b"connection")
    return frozenset(item.strip(b" \t").lower() for value in lines for item in value.split(b","))


def framed(status: int, headers: Headers) -> Headers:
    """The fields with which a response of `status` may be sent: those that frame content that it must not have are
    removed (RFC 9110 §8.6, §15.3.6; RFC 9112 §6.1), and so is `Transfer-Encoding`, which the next hop sets itself.

    A 304 may have the length of the response it stands for; few clients need that, and uvicorn would wait for the
    bytes.
    """
    if status not in WITHOUT_CONTENT:
        return without(headers, b"transfer-encoding") if has(headers, b"transfer-encoding") else headers
    left = without(headers, b"content-length", b"transfer-encoding")
    return [*left, (b"content-length", b"0")] if status == 205 else left


def end_to_end(headers: Headers, ending: frozenset[bytes] = HOP_BY_HOP) -> list[tuple[bytes, bytes]]:
    """The fields that travel on: neither in `ending`, which has those of a hop at least, nor named by `Connection`."""
    kept = [pair for pair in headers if pair[0] not in ending]
    if len(kept) == len(headers):
        return kept  # no Connection either
    named = connection_named(headers)
    return [pair for pair in kept if pair[0] not in named]


def is_dangerous(name: bytes) -> bool:
    """Whether a request field may change an upstream's answer behind a key's back.

    Names with an underscore are among them: CGI and WSGI turn `-` into `_`, so `X_User` shadows `X-User`.
    """
    return (
        name in UNKEYED_DANGERS or b"_" in name or name.startswith(_DANGEROUS_BEGINNINGS) or name.endswith(b"-override")
    )


_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_DIRECTIVE = re.compile(_TOKEN.pattern + r"""(?:[ \t]*=[ \t]*(?:[^"\s;]*|"(?:[^"\\]|\\.)*"))?""")
# What forbids something counts also where what stands around it can't be read: `max-age=60;private`.
_RESTRICTIVE = re.compile(r"(?<![\w-])(?:no-store|no-cache|private)(?![\w-])")


class CacheControl(msgspec.Struct, frozen=True):
    """A parsed `Cache-Control` (RFC 9111 §5.2), or another field of its syntax (RFC 9213 §2.1).

    `directives` maps a name in lower case to its argument, unquoted, or to None. Of a duplicate directive the first
    counts (§4.2.1); if the arguments of a lifetime differ, the shortest counts: both are allowed, and the shorter can't
    make a stale response fresh. In an invalid field, the words that forbid storing or sharing still count: a typo must
    not make a private response public.
    """

    directives: dict[str, str | None] = msgspec.field(default_factory=dict)

    @classmethod
    def parse(cls, lines: Iterable[str]) -> CacheControl:
        directives: dict[str, str | None] = {}
        for item in (item for line in lines for item in split_list(line)):
            name, equals, argument = item.partition("=")
            name = name.strip(" \t").lower()
            if not _DIRECTIVE.fullmatch(item):
                directives.update(dict.fromkeys(_RESTRICTIVE.findall(item.lower())))
            if not _TOKEN.fullmatch(name):
                continue
            value = unquote(argument.strip(" \t")) if equals else None
            if name not in directives or (
                name in ("max-age", "s-maxage") and delta_seconds(value) < delta_seconds(directives[name])
            ):
                directives[name] = value
            elif name in ("no-cache", "private") and value is None:
                directives[name] = None
        return cls(directives)

    @classmethod
    def of(cls, headers: Headers, name: bytes = b"cache-control") -> CacheControl:
        lines = tuple(values(headers, name))
        if not lines:
            return NO_DIRECTIVES
        return (_parsed if sum(map(len, lines)) <= _SHORT else _parse_lines)(lines)

    def __contains__(self, name: str) -> bool:
        return name in self.directives

    def __bool__(self) -> bool:
        return bool(self.directives)

    def seconds(self, name: str) -> int | None:
        """The directive's delta-seconds; None if it is absent, 0 if it is invalid."""
        return delta_seconds(self.directives[name]) if name in self.directives else None

    def unqualified(self, name: str) -> bool:
        """Whether `no-cache` or `private` stands without a list of field names."""
        return name in self.directives and not self.directives[name]

    def fields(self, name: str) -> frozenset[bytes]:
        """The field names that `no-cache="…"` or `private="…"` lists, in lower case."""
        argument = self.directives.get(name)
        return frozenset(item.lower().encode("latin-1") for item in split_list(argument or ""))

    def render(self) -> str:
        """The field's value; parsing it gives an equal CacheControl."""
        return ", ".join(
            name if value is None else f"{name}={_quoted(value)}" for name, value in self.directives.items()
        )


NO_DIRECTIVES = CacheControl()
_SHORT = 256
"""Bytes of a field whose parsed form is kept: an upstream sends the same few over and over."""


def _parse_lines(lines: tuple[bytes, ...]) -> CacheControl:
    return CacheControl.parse(line.decode("latin-1") for line in lines)


_parsed = lru_cache(maxsize=512)(_parse_lines)


def _quoted(value: str) -> str:
    if _TOKEN.fullmatch(value):
        return value
    escaped = re.sub(r'(["\\])', r"\\\1", value)
    return f'"{escaped}"'


_DIGITS = re.compile(r"[0-9]+")


def delta_seconds(text: str | None) -> int:
    """Delta-seconds (RFC 9111 §1.2.2), at most 2^31; 0 for what isn't one, which makes a response stale."""
    if text is None or not _DIGITS.fullmatch(text):
        return 0
    return min(int(text), MAX_DELTA) if len(text) <= 10 else MAX_DELTA


def parse_age(headers: Headers) -> int:
    """The `Age` of an upstream: its first value, 0 if it is invalid (RFC 9111 §5.1)."""
    text = combined(headers, b"age")
    return delta_seconds(split_list(text)[0]) if text and split_list(text) else 0


_MONTHS = {
    name: index
    for index, name in enumerate(
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"], start=1
    )
}
_MONTH = "(?P<month>" + "|".join(_MONTHS) + ")"
_CLOCK = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
# Case-sensitive in RFC 9110 §5.6.7, but a cache matches dates without regard to case (RFC 9111 §4.2).
_DATE_FORMS = (
    re.compile(
        rf"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_CLOCK} GMT",
        re.IGNORECASE,
    ),
    re.compile(
        rf"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_CLOCK} GMT",
        re.IGNORECASE,
    ),
    re.compile(
        rf"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) {_MONTH} (?P<day>[0-9 ][0-9]) {_CLOCK} (?P<year>[0-9]{{4}})", re.IGNORECASE
    ),
)  # fmt: skip


DATE_LENGTH = 40
"""Characters of a text that are read as a date; the longest valid one has 33, so that what is longer is none."""
_DAY = 86_400


def parse_date(text: str | None, now: float) -> float | None:
    """An HTTP date as seconds since 1970, in any of the three forms of RFC 9110 §5.6.7; None for others.

    `now` settles the century of the two-digit form: a date over fifty years ahead is in the past.
    """
    return date_on(text[:DATE_LENGTH].encode("latin-1", "replace"), now // _DAY) if text else None


@lru_cache(maxsize=512)
def date_on(text: bytes, day: float) -> float | None:
    """The same for a text cut to `DATE_LENGTH`, `day` days after the beginning of 1970, and kept by both."""
    match = next((found for form in _DATE_FORMS if (found := form.fullmatch(text.decode("latin-1")))), None)
    if match is None:
        return None
    year, date = int(match["year"]), int(match["day"])
    hour, minute, second = int(match["hour"]), int(match["minute"]), int(match["second"])
    if not (1 <= date <= 31 and hour < 24 and minute < 60 and second <= 60):
        return None
    if len(match["year"]) == 2:
        this_year = int(formatdate(day * _DAY, usegmt=True)[12:16])
        year += this_year - this_year % 100
        if year > this_year + 50:
            year -= 100
    if year == 0:
        return None
    return float(timegm((year, _MONTHS[match["month"].capitalize()], date, hour, minute, second, 0, 0, 0)))


@lru_cache(maxsize=512)
def http_date(second: int) -> bytes:
    """The preferred form of an HTTP date, as in `Date` (RFC 9110 §5.6.7). It is kept by the second: a fraction would
    be kept by itself."""
    return formatdate(second, usegmt=True).encode("ascii")


def opaque_tag(tag: str) -> str:
    """An entity tag without its weakness mark, for the weak comparison of RFC 9110 §8.8.3.2."""
    return tag[2:] if tag.startswith("W/") else tag


def is_strong(tag: str) -> bool:
    return not tag.startswith("W/")


def vary_names(headers: Headers) -> tuple[str, ...] | None:
    """The field names in `Vary`, sorted, in lower case; None if it contains `*` or an invalid name (RFC 9110
    §12.5.5)."""
    text = combined(headers, b"vary")
    if text is None:
        return ()
    names = {item.lower() for item in split_list(text)}
    if "*" in names or not all(_TOKEN.fullmatch(name) for name in names):
        return None
    return tuple(sorted(names))


# --- the one value of a request field -------------------------------------------------------------------

_CASELESS = frozenset((b"accept-encoding", b"accept-language", b"accept-charset"))
_NO_LISTS = frozenset((b"authorization", b"cookie", b"from", b"host", b"origin", b"referer", b"user-agent"))
"""Fields whose commas don't separate: a URL, a comment, credentials. Their lines are only joined."""
_QUOTED = re.compile(r'(?:[^"]|"(?:[^"\\]|\\.)*")*')
_QUALITY = re.compile(r";q=([01](?:\.[0-9]{1,3})?)")


def sent_value(headers: Headers, name: str) -> str | None:
    """The single value of a request field; None if it is absent.

    Keys and variants hold this value, templates are filled with it, and a fetch whose response may be stored sends it,
    in one field line: a field that is compared in a different form than it is sent serves one client's response to
    another.
    """
    field = name.encode("latin-1")
    lines = values(headers, field)
    return _one_value(field, lines).decode("latin-1") if lines else None


def in_one_line(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Every field once, with its `sent_value`, in the order of their first lines."""
    lines: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        lines.setdefault(name, []).append(value)
    return [(name, _one_value(name, given)) for name, given in lines.items()]


def _one_value(name: bytes, lines: list[bytes]) -> bytes:
    """The lines joined (RFC 9110 §5.3), without empty elements and with one space after each comma, unless a quote is
    not closed. Case-insensitive values are folded, and lists with qualities are sorted by them (RFC 9110 §12.5.3,
    §12.5.4)."""
    if len(lines) == 1 and b"," not in lines[0] and name not in _CASELESS:
        return lines[0]
    text = (b"; " if name == b"cookie" else b", ").join(lines).decode("latin-1")
    if name in _NO_LISTS or not _QUOTED.fullmatch(text):
        return text.encode("latin-1")
    items = split_list(text)
    if name in _CASELESS:
        items = sorted((re.sub(r"\s*([;=])\s*", r"\1", item.lower()) for item in items), key=_rank)
    return ", ".join(items).encode("latin-1")


def _rank(item: str) -> tuple[float, str]:
    quality = _QUALITY.search(item)
    return (-float(quality[1]) if quality else -1.0, item)


def cookie_pairs(headers: Headers, name: str) -> str | None:
    """All pairs of the cookie `name`, as sent and in order, because readers differ in which of them they use; None if
    there is none. Field lines are kept apart, as some readers use only the first."""
    found = [
        ";".join(pair for item in line.decode("latin-1").split(";") if _cookie_name(pair := item.strip()) == name)
        for line in values(headers, b"cookie")
    ]
    return ";;".join(filter(None, found)) or None


def _cookie_name(pair: str) -> str | None:
    name, equals, _ = pair.partition("=")
    return name.strip() if equals else None


def dictionary(text: str) -> dict[str, object] | None:
    """The members of a dictionary of structured fields (RFC 9651), each value without its parameters; a key alone is
    True. Of a key that stands twice the last counts. None where `text` is not a dictionary; an empty one is."""
    try:
        members = http_sf.parse(text.encode("latin-1"), tltype="dictionary")
    except (ValueError, OverflowError):  # the latter for a date that Python has not
        return None
    assert isinstance(members, dict)
    return {name: member[0] for name, member in members.items() if isinstance(member, tuple)}
