"""The one rule for request targets: what is the same, what is different, what is refused.

Pure. Routing, the cache key and the upstream's URL all use what `normalise` returns, so no two of them can
understand one target differently. What it does (RFC 3986 §6.2.2, and where that leaves room, the safe side):

- percent-encoded unreserved characters are decoded, hex digits are upper case, characters that may not stand
  in a URL are encoded;
- dot segments are removed; those that leave the root are refused, as are `..;` (a dot segment to Java servers)
  and doubly encoded dots, slashes, backslashes and NULs (one after decoding twice);
- `%5C`, backslashes and encoded controls are refused in a path: servers disagree about them;
- so is `%2F`, unless the route allows it (`resolve`): kept, it is a character of its segment, in the key,
  for routing and for the upstream; decoded, it is a slash before anything else is looked at;
- empty segments (`//`) and a trailing slash are kept: they name other resources;
- query pairs are sorted by name, their order within a name kept; empty pairs go; a stray `%` becomes `%25`;
- `;` separates nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Literal
from urllib.parse import unquote

import msgspec

from gateway.errors import RequestRefused

# What marketing adds to links and no API answers by.
TRACKING_PARAMETERS = (
    "utm_*", "gclid", "gclsrc", "dclid", "gbraid", "wbraid", "fbclid", "msclkid", "twclid", "ttclid",
    "yclid", "igshid", "mc_cid", "mc_eid", "_hsenc", "_hsmi",
)  # fmt: skip

_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_PATH_CHARS = _UNRESERVED | frozenset("!$&'()*+,;=:@/")
_QUERY_CHARS = _PATH_CHARS | frozenset("?")
PATH_CHARS = "/%:@!$&'()*+,;=~-._"
"""The characters that `urllib.parse.quote` keeps in a path that is encoded already."""
_SLASH = 0x2F
_FORBIDDEN_IN_PATH = frozenset((_SLASH, 0x5C, 0x7F, *range(0x20)))
Slashes = Literal["refuse", "keep", "decode"]
"""The handling of encoded slashes in a path."""
_ENCODED_SLASH = re.compile("%2f|%252f", re.IGNORECASE)
_TWICE_ENCODED_BUT_SLASHES = re.compile(r"%25(?:2e|5c|00)", re.IGNORECASE)
_ANY_SLASH = re.compile("/|%2F|%252F", re.IGNORECASE)
_HEX = re.compile("[0-9A-Fa-f]{2}")
_TWICE_ENCODED = re.compile(r"%25(?:2e|2f|5c|00)", re.IGNORECASE)
_DOT_SEGMENT_WITH_PARAMETERS = re.compile(r"\.{1,2}(?:;|%3B)")

# RFC 3986 §3.2.2 and §3.2.3, without user information.
_HOST = re.compile(r"(?:[A-Za-z0-9\-._~]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


class Target(msgspec.Struct, frozen=True):
    """A normalised request target. `path` is encoded, `query` its pairs, sorted by name.

    `decoded` is the path as a framework matches it: it has the segments that `path` has, as an encoded slash that is
    kept stays encoded in it.
    """

    path: str
    query: tuple[str, ...]
    decoded: str

    @property
    def query_string(self) -> str:
        return "&".join(self.query)

    def __str__(self) -> str:
        return f"{self.path}?{'&'.join(self.query)}" if self.query else self.path


def below(target: Target, prefix: str) -> Target:
    """`target` without the path prefix under which clients reach the gateway; unchanged if it does not begin with it,
    as behind a proxy that strips the prefix."""
    if not prefix or not (target.path + "/").startswith(prefix + "/"):
        return target
    path = target.path[len(prefix) :] or "/"
    return Target(path, target.query, _decoded(path))


_PLAIN_PATH = re.compile(rb"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")
"""A path that is in its one form already: unreserved characters alone, and no dot segments."""
REMEMBERED = 512
"""The longest target, in bytes, whose normal form is remembered: 8,192 of them take some 10 MB at most."""


def normalise(raw_path: bytes, query_string: bytes, slashes: Slashes = "refuse") -> Target:
    """The target of these bytes of a request line. Raises RequestRefused if they are ambiguous or invalid."""
    if not query_string and _PLAIN_PATH.fullmatch(raw_path):
        path = raw_path.decode("ascii")
        return Target(path, (), path)
    short = len(raw_path) + len(query_string) <= REMEMBERED
    return (_remembered if short else _normalise)(raw_path, query_string, slashes)


def _normalise(raw_path: bytes, query_string: bytes, slashes: Slashes) -> Target:
    path = normalise_path(raw_path.decode("latin-1"), slashes)
    return Target(path, normalise_query(query_string.decode("latin-1")), _decoded(path))


def _decoded(path: str) -> str:
    return unquote(path.replace("%2F", "%252F") if "%2F" in path else path)


_remembered = lru_cache(maxsize=8192)(_normalise)


def resolve(raw_path: bytes, query_string: bytes, slashes: Callable[[Target], Slashes]) -> Target:
    """`normalise`, with the handling of encoded slashes by the route of the target. The route of the received path
    decides first; if that does not keep them, the route of the decoded path must decode them. So a path has one
    meaning, whatever the routes. Raises RequestRefused."""
    if _ENCODED_SLASH.search(raw_path.decode("latin-1")) is None:
        return normalise(raw_path, query_string)
    kept = normalise(raw_path, query_string, "keep")
    if slashes(kept) == "keep":
        return kept
    if "%2F" in kept.path:
        decoded = normalise(raw_path, query_string, "decode")
        if slashes(decoded) == "decode":
            return decoded
    return normalise(raw_path, query_string)


def resolve_below(raw_path: bytes, query_string: bytes, root: str, slashes: Callable[[Target], Slashes]) -> Target:
    """`resolve`, where `slashes` gets the part of a target below `root`. Raises RequestRefused."""
    return resolve(raw_path, query_string, lambda target: slashes(below(target, root)))


def normalise_path(path: str, slashes: Slashes = "refuse") -> str:
    """`path` in its one form. Raises RequestRefused."""
    if not path.startswith("/"):
        raise RequestRefused("The request target must begin with a slash.")
    if "\\" in path:
        raise RequestRefused("The path contains a backslash.")
    if slashes == "decode":
        path = path.replace("%2F", "/").replace("%2f", "/")
    keep = slashes == "keep"
    path = recode_path(path, keep_slashes=keep)
    if (_TWICE_ENCODED_BUT_SLASHES if keep else _TWICE_ENCODED).search(path):
        raise RequestRefused("The path contains a doubly encoded character.")
    path = _remove_dot_segments(path)
    if keep:
        _check_kept(path)
    return path


def _check_kept(path: str) -> None:
    """A path with encoded slashes must not contain a dot segment after decoding it once or twice: it would be another
    resource than the one that the route means, or one outside of the upstream's base. Raises RequestRefused."""
    for piece in _ANY_SLASH.split(path):
        if piece in (".", "..") or _DOT_SEGMENT_WITH_PARAMETERS.match(piece):
            raise RequestRefused("The path contains a dot segment beside an encoded slash.")


def recode_path(piece: str, *, keep_slashes: bool = False) -> str:
    """A piece of a path with each character encoded as in a normalised path. Raises RequestRefused."""
    return _recode(piece, _PATH_CHARS, in_path=True, keep_slashes=keep_slashes)


def normalise_query(query: str) -> tuple[str, ...]:
    """The pairs of `query`, sorted by name. Raises RequestRefused."""
    pairs = [_recode(pair, _QUERY_CHARS, in_path=False) for pair in query.split("&") if pair]
    pairs.sort(key=pair_name)
    return tuple(pairs)


def pair_name(pair: str) -> str:
    return pair.partition("=")[0]


def query_name(pair: str) -> str:
    """The name of a pair as settings have it: without percent-encoding."""
    return unquote(pair_name(pair))


_CREDENTIAL = re.compile(
    "token|secret|passw|passphrase|credential|signature|jwt|assertion|authorization|api[-_]?key|access[-_]?key"
)
_CREDENTIAL_WORDS = frozenset(("auth", "hmac", "key", "otp", "pwd", "session", "sessionid", "sid", "sig"))
HIDDEN = "***"


def is_credential(name: str) -> bool:
    """Whether a query parameter of that encoded name holds a credential, by its words: `access_token`, `api_key`,
    `X-Amz-Signature`, `sig`. Its value is in no key, log or trace."""
    return (_known_credential if len(name) <= _LONGEST_KNOWN else _is_credential)(name)


def _is_credential(name: str) -> bool:
    name = unquote(name)
    words = re.split(r"[^a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())
    return bool(_CREDENTIAL.search(name.lower())) or not _CREDENTIAL_WORDS.isdisjoint(words)


_LONGEST_KNOWN = 64
"""Characters of a name for which it is remembered: clients choose names, of up to several KiB."""
_known_credential = lru_cache(maxsize=4096)(_is_credential)


def without_credentials(target: str) -> str:
    """A target with `***` for the value of each query parameter that holds a credential."""
    path, mark, query = target.partition("?")
    if not mark:
        return target
    return path + mark + "&".join(map(_hidden, query.split("&")))


def credentials_in(target: str) -> str:
    """The query's pairs whose values `without_credentials` hides."""
    _, mark, query = target.partition("?")
    return "&".join(pair for pair in query.split("&") if pair != _hidden(pair)) if mark else ""


def _hidden(pair: str) -> str:
    name, equals, _ = pair.partition("=")
    return f"{name}={HIDDEN}" if equals and is_credential(name) else pair


def select_query(
    pairs: Iterable[str],
    allowed: frozenset[str] | None,
    dropped: tuple[str, ...],
    kept: frozenset[str] = frozenset(),
) -> tuple[str, ...]:
    """The keyed pairs: those whose names are `allowed`, which are never dropped; if all are (None), those that match no
    pattern of `dropped`. And those whose names are `kept`."""
    return tuple(pair for pair in pairs if (name := query_name(pair)) in kept or _counts(name, allowed, dropped))


def _counts(name: str, allowed: frozenset[str] | None, dropped: tuple[str, ...]) -> bool:
    return not any(fnmatchcase(name, pattern) for pattern in dropped) if allowed is None else name in allowed


def _recode(text: str, allowed: frozenset[str], *, in_path: bool, keep_slashes: bool = False) -> str:
    if allowed.issuperset(text):
        return text
    out: list[str] = []
    index, end = 0, len(text)
    while index < end:
        char = text[index]
        if char == "%":
            digits = text[index + 1 : index + 3]
            if _HEX.fullmatch(digits):
                octet = int(digits, 16)
                out.append("%2F" if keep_slashes and octet == _SLASH else _recoded_octet(octet, in_path=in_path))
                index += 3
                continue
            if in_path:
                raise RequestRefused("The path contains an invalid percent-encoding.")
            out.append("%25")
        elif char in allowed:
            out.append(char)
        elif char < "\x20" or char == "\x7f":
            raise RequestRefused("The request target contains a control character.")
        else:
            out.append(f"%{ord(char):02X}")
        index += 1
    return "".join(out)


def _recoded_octet(octet: int, *, in_path: bool) -> str:
    if octet == 0:
        raise RequestRefused("The request target contains an encoded NUL.")
    if in_path and octet in _FORBIDDEN_IN_PATH:
        raise RequestRefused("The path contains an encoded slash, backslash or control character.")
    char = chr(octet)
    return char if char in _UNRESERVED else f"%{octet:02X}"


def _remove_dot_segments(path: str) -> str:
    if "/." not in path:
        return path
    out: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if _DOT_SEGMENT_WITH_PARAMETERS.match(segment):
            raise RequestRefused("The path contains a dot segment with parameters.")
        if segment == "..":
            if not out:
                raise RequestRefused("The path leaves the root.")
            out.pop()
        elif segment != ".":
            out.append(segment)
    if segments[-1] in (".", ".."):
        out.append("")
    return "/" + "/".join(out)


def check_host(hosts: list[bytes], http_version: str) -> str:
    """The request's `Host`, in lower case; empty if HTTP/1.0 sent none (RFC 9112 §3.2).

    Raises RequestRefused if it is missing, duplicate or malformed.
    """
    if not hosts and http_version == "1.0":
        return ""
    if len(hosts) != 1:
        raise RequestRefused("The request must have exactly one Host header.", reason="host")
    host = hosts[0].decode("latin-1")
    if not _HOST.fullmatch(host) or int(host.rpartition("]")[2].partition(":")[2] or 0) > 65535:
        raise RequestRefused("The Host header is malformed.", reason="host")
    return host.lower()


_ABSOLUTE = re.compile(r"(?i:https?)://([^/?#]*)([^?#]*)(?:\?([^#]*))?")


def split_raw_target(raw: bytes, host: str, *, scheme: str) -> tuple[bytes, bytes]:
    """The path and query of a request line's target, in origin or absolute form (RFC 9112 §3.2).

    Raises RequestRefused for the other forms, and for the absolute form of another authority than `host`.
    """
    text = raw.decode("latin-1")
    if text.startswith("/"):
        path, _, query = text.partition("?")
        if "#" in text:
            raise RequestRefused("The request target contains a fragment.")
        return path.encode("latin-1"), query.encode("latin-1")
    match = _ABSOLUTE.fullmatch(text)
    if match is None:
        raise RequestRefused("The request target must be a path or an http URL.")
    authority = match[1].lower()
    if not _HOST.fullmatch(authority) or _without_default_port(authority, scheme) != _without_default_port(
        host or authority, scheme
    ):
        raise RequestRefused("The request target and the Host header name different authorities.")
    return (match[2] or "/").encode("latin-1"), (match[3] or "").encode("latin-1")


def _without_default_port(authority: str, scheme: str) -> str:
    return authority.removesuffix(":443" if scheme == "https" else ":80")


def other_slash(path: str) -> str:
    """The path without its trailing slashes, or with one; empty if there is none."""
    return path.rstrip("/") if path.endswith("/") else path + "/"
