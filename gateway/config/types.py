"""Types of settings: durations, sizes, lists, URLs, header names, and the model that refuses unknown keys.

The URL of a Redis names one server, several Sentinels, or a cluster. Pure.
"""

from __future__ import annotations

import re
import warnings
from datetime import timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    model_validator,
)
from pydantic.fields import FieldInfo

from gateway.config.names import RENAMED, current_name, did_you_mean, misspelt, refuse_modes
from gateway.http.headers import HOP_BY_HOP, is_dangerous
from gateway.http.request_parser import METHODS

NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(B|KiB|MiB|GiB)")
_UNIT_BYTES = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
FIELD_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


def parse_duration(value: object) -> timedelta:
    """A duration such as `250ms`, `30s`, `5m`, `1h`, `2d`; `0` needs no unit. Raises ValueError."""
    if isinstance(value, timedelta):
        return value
    text = str(value).strip()
    if text == "0":
        return timedelta()
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(
            "invalid duration; expected a number and a unit, such as 250ms or 30s (units: ms, s, m, h, d)"
            + _meant_duration(value)
        )
    try:
        return timedelta(seconds=float(match[1]) * _UNIT_SECONDS[match[2]])
    except OverflowError:
        raise ValueError("duration out of range") from None


_WORDS_FOR_UNITS = {
    "milliseconds": "ms", "millisecond": "ms", "millis": "ms", "msec": "ms", "seconds": "s", "second": "s", "secs": "s",
    "sec": "s", "minutes": "m", "minute": "m", "mins": "m", "min": "m", "hours": "h", "hour": "h", "hrs": "h",
    "hr": "h", "days": "d", "day": "d",
}  # fmt: skip
_SPOKEN_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]+)[\s,]*")


def _meant_duration(value: object) -> str:
    """The valid form of common notations of durations: `1h30m`, `30 S`, `5min`, `60`."""
    text = str(value).strip().lower()
    if isinstance(value, bool):
        return " (YAML reads yes and on as true)" if value else "; for none write 0s"
    if re.fullmatch(r"[0-9]*\.?[0-9]+", text):
        return f"; write {text}s for seconds"
    if text in ("never", "none", "off", "no"):
        return "; for none write 0s"
    pieces = _SPOKEN_DURATION.findall(text)
    units = [_WORDS_FOR_UNITS.get(unit, unit) for _, unit in pieces]
    if not pieces or _SPOKEN_DURATION.sub("", text) or not all(unit in _UNIT_SECONDS for unit in units):
        return ""
    if len(pieces) == 1:
        return f"; write {pieces[0][0]}{units[0]}"
    try:
        total = sum(float(number) * _UNIT_SECONDS[unit] for (number, _), unit in zip(pieces, units, strict=True))
        return f"; write {show_duration(timedelta(seconds=total))}"
    except OverflowError:
        return ""


def show_duration(value: timedelta) -> str:
    """`value` in the largest unit that holds it in whole numbers; the inverse of parse_duration."""
    milliseconds = round(value.total_seconds() * 1000)
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds and milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    if milliseconds or not value:
        return f"{milliseconds}ms" if milliseconds else "0s"
    return f"{value.total_seconds() * 1000:g}ms"


def parse_size(value: object) -> int:
    """A size in bytes such as `64KiB`, `256MiB`, `1GiB`, `0`. Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = str(value).strip()
    match = _SIZE.fullmatch(text)
    if match is None:
        if text == "0":
            return 0
        raise ValueError(
            "invalid size; expected a number and a unit, such as 64KiB or 256MiB (units: B, KiB, MiB, GiB)"
            + _meant_size(text)
        )
    try:
        return int(float(match[1]) * _UNIT_BYTES[match[2]])
    except OverflowError:
        raise ValueError("size out of range") from None


def _meant_size(text: str) -> str:
    """The valid form of common notations of sizes: `64k`, `64KB`, `64 kib`."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmg])(?:i?b)?", text.lower())
    return f"; write {match[1]}{match[2].upper()}iB" if match else ""


def show_size(value: int) -> str:
    for unit in ("GiB", "MiB", "KiB"):
        if value and value % _UNIT_BYTES[unit] == 0:
            return f"{value // _UNIT_BYTES[unit]}{unit}"
    return f"{value}B"


def split_commas(value: object) -> object:
    """A list from the environment: `a, b` means two values."""
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return value


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    Field(ge=timedelta()),
    PlainSerializer(show_duration, return_type=str),
]
Size = Annotated[int, BeforeValidator(parse_size), Field(ge=0), PlainSerializer(show_size, return_type=str)]


def is_size(field: FieldInfo | None) -> bool:
    """Whether a model's field is a `Size`."""
    return field is not None and any(getattr(each, "func", None) is parse_size for each in field.metadata)


TextList = Annotated[list[str], BeforeValidator(split_commas)]


def _origin_or_duration(value: object) -> object:
    return value if value == "origin" else parse_duration(value)


def _show_ttl(value: object) -> str:
    return show_duration(value) if isinstance(value, timedelta) else str(value)


def _check_ttl(value: Any) -> Any:
    if isinstance(value, timedelta) and value < timedelta():
        raise ValueError("must not be negative")
    return value


Ttl = Annotated[
    Literal["origin"] | timedelta,
    BeforeValidator(_origin_or_duration),
    AfterValidator(_check_ttl),
    PlainSerializer(_show_ttl, return_type=str),
]


_HOST_NAME = re.compile(r"[A-Za-z0-9\-._~]+|[0-9A-Fa-f:.]+")


def check_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an http:// or https:// URL with a host, such as http://catalog:8080")
    if parts.username or parts.password:
        raise ValueError("must not carry credentials; set them as `headers` of the upstream")
    if "?" in value or "#" in value:
        raise ValueError("must not have a query or fragment")
    if not _HOST_NAME.fullmatch(parts.hostname) or not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("has a host or path with characters that are invalid in a URL; encode them")
    if any(segment in (".", "..") for segment in parts.path.split("/")):
        raise ValueError("must not have dot segments")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError("has an invalid port; expected 1 to 65535")
    return value.rstrip("/")


Url = Annotated[str, AfterValidator(check_url)]


def is_public(address: str) -> bool:
    """Whether an IP address is public: not loopback, link-local, private, shared or reserved.

    For an IPv6 address that embeds an IPv4 address, that one counts.
    """
    found = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address):
        inner = (
            found.ipv4_mapped or found.sixtofour or (IPv4Address(int(found) & 0xFFFFFFFF) if found in _NAT64 else None)
        )
        if inner is not None:
            return inner.is_global
    return found.is_global and not found.is_multicast


def is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


_NAT64 = ip_network("64:ff9b::/96")


def check_field_names(names: list[str]) -> list[str]:
    for name in names:
        if not FIELD_NAME.fullmatch(name):
            raise ValueError(f"{name!r} isn't a valid header name")
    return [name.lower() for name in names]


FieldNames = Annotated[TextList, AfterValidator(check_field_names)]


# Fields that belong to this hop, to the cache itself, or have a rule of their own.
_NEVER_IN_VARY = HOP_BY_HOP | frozenset(
    (b"host", b"content-length", b"expect", b"range", b"if-range", b"if-match", b"if-unmodified-since", b"via")
) | frozenset((b"if-none-match", b"if-modified-since", b"authorization", b"cookie", b"x-request-id"))  # fmt: skip


def check_vary(names: list[str]) -> list[str]:
    refuse_modes("vary", names)
    for name in names:
        if name.encode("latin-1") in _NEVER_IN_VARY or is_dangerous(name.encode("latin-1")):
            raise ValueError(f"{name} can't be part of the cache key")
    return names


def _check_networks(networks: list[str]) -> list[str]:
    for network in networks:
        try:
            ip_network(network)
        except ValueError:
            raise ValueError(f"{network!r} isn't a valid network; expected 10.0.0.0/8 or 192.0.2.7") from None
    return networks


Networks = Annotated[TextList, AfterValidator(_check_networks)]


NEVER_CONSTANT = HOP_BY_HOP | frozenset((b"content-length", b"host", b"expect", b"x-request-id"))


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _current_names(cls, given: Any) -> Any:
        """Settings written in Python; those of files and variables have their current names by now."""
        if not isinstance(given, dict) or RENAMED.keys().isdisjoint(given):
            return given
        renamed: dict[Any, Any] = {}
        for name, value in given.items():
            current = current_name(name, cls.model_fields) if isinstance(name, str) else name
            if current != name:
                if current in given:
                    raise ValueError(f"{current} is set twice: {name} is its deprecated name; remove {name}")
                warnings.warn(f"{name} is deprecated; use {current}", FutureWarning, stacklevel=2)
            renamed[current] = value
        return renamed


NAMES_ARE_CHECKED = {"names": "checked"}
"""The validation context in which names of routes, upstreams and parts are not checked because the caller checks
them."""


def checked_names(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, dict) and info.context is not NAMES_ARE_CHECKED:
        for name in value:
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise ValueError(
                    f"{name!r} isn't a valid name; expected lower-case words joined by _, such as price_list"
                )
    return value if value is not None else {}


_ALL_METHODS = ("any", "all", "*")


def check_methods(methods: list[str]) -> list[str]:
    """The methods of a route, in upper case. Raises ValueError."""
    known = sorted(name.decode("ascii") for name in METHODS - {b"CONNECT", b"TRACE", b"PURGE"})
    if not methods:
        raise ValueError("methods must name at least one method, such as [GET]")
    for name in methods:
        if name.upper() == "PURGE":
            raise ValueError("PURGE is not one of `methods`: `purge_from` says who may purge")
        if name.upper() not in known:
            near = "; for all methods write: any" if name.lower() in _ALL_METHODS else misspelt(name, known)
            raise ValueError(
                f"{name} is no method that can pass; expected GET, POST, PUT, PATCH, DELETE … or any{near}"
            )
    return [name.upper() for name in methods]


def check_tags(tags: list[str]) -> list[str]:
    """Names for purging. Raises ValueError."""
    for tag in tags:
        if not tag or not tag.isprintable() or any(char in tag for char in " ,"):
            raise ValueError(f"the tag {tag!r} is empty or has a space, comma or control character")
    return tags


SCHEMES = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel")
DEFAULT_PORT = 6379
SENTINEL_PORT = 26379
TRUE, FALSE = ("true", "yes", "1", "on"), ("false", "no", "0", "off")
_PLAIN_OPTIONS = ("client_name", "socket_timeout", "socket_connect_timeout", "socket_keepalive")
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_ca_data", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")
FILE_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_SET_HERE = ("decode_responses", "encoding", "encoding_errors", "protocol", "legacy_responses", "parser_class")
"""Options of redis-py by which replies would be decoded otherwise than the gateway reads them."""


def split_redis_url(url: str) -> SplitResult:
    """The parts of a URL that may list several hosts. `urlsplit` alone refuses a list with an IPv6 address in it, since
    CVE-2025-0938 was fixed (CPython 3.12.9, 3.13.2)."""
    scheme, separator, rest = url.partition("://")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    return urlsplit(scheme + separator + rest[len(authority) :])._replace(netloc=authority)


def check_redis_url(url: str) -> None:
    """Raises ValueError where `url` names no Redis."""
    parts = split_redis_url(url)
    if parts.scheme not in SCHEMES:
        raise ValueError(f"the scheme must be one of {', '.join(SCHEMES)}")
    _check_options(url)
    if parts.scheme == "unix":
        if not parts.path.startswith("/") or parts.netloc.rpartition("@")[2]:
            raise ValueError("unix:// requires a socket path, such as unix:///run/redis.sock")
        return
    hosts_of(url)
    if parts.scheme.endswith("+sentinel") and not parts.path.strip("/"):
        raise ValueError("Sentinel requires the service name: redis+sentinel://host:port,host:port/service/db")
    database_of(url)


def shown_url(url: str) -> str:
    """The URL without credentials and options, for the log."""
    parts = split_redis_url(url)
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    _, at, hosts = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"***@{hosts}" if at else hosts, query=""))


def options_of(url: str) -> dict[str, str]:
    """The options in a URL's query that have an effect."""
    return {name: text for name, text in _all_options(url).items() if name in _allowed(split_redis_url(url).scheme)}


def without_ignored_options(url: str) -> str:
    """The URL with the options alone that have an effect."""
    return urlunsplit(split_redis_url(url)._replace(query=urlencode(options_of(url))))


def ignored_options(url: str) -> list[str]:
    """What to warn of: each option that has no effect, and why."""
    scheme = split_redis_url(url).scheme
    allowed = _allowed(scheme)
    return [_why_ignored(name, scheme, allowed) for name in _all_options(url) if name not in allowed]


def _why_ignored(name: str, scheme: str, allowed: tuple[str, ...]) -> str:
    if name in _TLS_OPTIONS:
        return f"the option {name} is ignored: it requires TLS (rediss://), and the scheme is {scheme}://"
    hint = did_you_mean(name, allowed) or f"; there are: {', '.join(allowed)}"
    return f"the option {name} is unknown and ignored{hint}"


def _all_options(url: str) -> dict[str, str]:
    return dict(parse_qsl(split_redis_url(url).query, keep_blank_values=True))


def _allowed(scheme: str) -> tuple[str, ...]:
    plain = _PLAIN_OPTIONS if scheme != "unix" else _PLAIN_OPTIONS[:2]
    tls = _TLS_OPTIONS if scheme.startswith("rediss") else ()
    sentinel = _SENTINEL_OPTIONS if scheme.endswith("+sentinel") else ()
    single = ("db",) if scheme in ("redis", "rediss", "unix") else ()
    return (*plain, *tls, *sentinel, *single)


def _check_options(url: str) -> None:
    """Raises ValueError for an option by which replies couldn't be read, or with a value that it can't have."""
    for name in _all_options(url):
        if name in _SET_HERE:
            raise ValueError(f"the option {name} can't be set: the gateway decodes replies itself")
    for name, text in options_of(url).items():
        _check_option(name, text)


def _check_option(name: str, text: str) -> None:
    if name in ("socket_timeout", "socket_connect_timeout") and not re.fullmatch(r"\d*\.?\d+", text):
        raise ValueError(f"the option {name} must be seconds, such as {name}=0.5")
    if name in ("socket_keepalive", "ssl_check_hostname") and text.lower() not in (*TRUE, *FALSE):
        raise ValueError(f"the option {name} must be true or false")
    if name == "ssl_cert_reqs" and text not in ("none", "optional", "required"):
        raise ValueError(f"the option {name} must be none, optional or required")
    if name == "db" and not text.isdigit():
        raise ValueError("the option db must be the number of a database")


def hosts_of(url: str) -> list[tuple[str, int]]:
    """The hosts of a URL that may list several. Raises ValueError."""
    parts = split_redis_url(url)
    default = SENTINEL_PORT if parts.scheme.endswith("+sentinel") else DEFAULT_PORT
    hosts = []
    for place in parts.netloc.rpartition("@")[2].split(","):
        host, colon, port = place.rpartition(":") if ":" in place.rpartition("]")[2] else (place, "", "")
        if not host or (colon and not (port.isdigit() and 0 < int(port) < 65536)):
            raise ValueError(f"{place!r} isn't host:port")
        hosts.append((host.strip("[]"), int(port) if port else default))
    return hosts


def database_of(url: str) -> int:
    """The number at the end of the path; 0 if there is none. Raises ValueError."""
    parts = split_redis_url(url)
    pieces = [piece for piece in parts.path.split("/") if piece]
    if parts.scheme.endswith("+sentinel"):
        pieces = pieces[1:]
    if not pieces:
        return 0
    if len(pieces) > 1 or not pieces[0].isdigit():
        raise ValueError(f"{parts.path!r} must end with the number of a database")
    return int(pieces[0])


def credentials_of(url: str) -> dict[str, str]:
    """The user and password of a URL, decoded; those that are empty are left out."""
    user, _, password = split_redis_url(url).netloc.rpartition("@")[0].partition(":")
    named = {"username": unquote(user), "password": unquote(password)}
    return {name: value for name, value in named.items() if value}


DEFAULT_VARY = ("accept", "accept-language")
