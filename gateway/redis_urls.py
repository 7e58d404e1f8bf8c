"""The URLs by which a Redis is named: one server, several behind Sentinel, or a cluster. Pure."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, unquote, urlsplit

SCHEMES = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel")
DEFAULT_PORT = 6379
SENTINEL_PORT = 26379


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
    if parts.scheme == "unix":
        if not parts.path.startswith("/") or parts.netloc.rpartition("@")[2]:
            raise ValueError("unix:// wants the path of a socket, as unix:///run/redis.sock")
        return
    hosts_of(url)
    if parts.scheme.endswith("+sentinel") and not parts.path.strip("/"):
        raise ValueError("Sentinel wants the name of the service: redis+sentinel://host:port,host:port/service/db")
    database_of(url)


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
