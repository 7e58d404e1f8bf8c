"""The URLs by which a Redis is named: one server, several behind Sentinel, or a cluster. Pure."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from .spelling import did_you_mean

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
    CVE-2025-0938 was mended (CPython 3.12.9, 3.13.2)."""
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
            raise ValueError("unix:// wants the path of a socket, as unix:///run/redis.sock")
        return
    hosts_of(url)
    if parts.scheme.endswith("+sentinel") and not parts.path.strip("/"):
        raise ValueError("Sentinel wants the name of the service: redis+sentinel://host:port,host:port/service/db")
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
        return f"the option {name} is ignored: it needs TLS, which rediss:// has and {scheme}:// has not"
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
            raise ValueError(f"the option {name} can't be set: the gateway decodes replies itself; leave it out")
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
            raise ValueError(f"{place!r} is no host:port")
        hosts.append((host.strip("[]"), int(port) if port else default))
    return hosts


def database_of(url: str) -> int:
    """The number at the end of the path; 0 where there is none. Raises ValueError."""
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
