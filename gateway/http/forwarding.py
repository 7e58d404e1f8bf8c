"""The fields in which proxies describe the client's request: `X-Forwarded-*` and `Forwarded` (RFC 7239).

Decides which of them to trust: only those from a peer in a trusted network, and of a list only the values that trusted
proxies added. Each proxy appends at the right; so the client is the right-most address that is not a trusted proxy's,
and of other lists as many values count as there are trusted proxies in a row. Invalid values are ignored and reported
once. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import unquote as unquote_path

from gateway.errors import RequestRefused
from gateway.http.headers import Headers, combined, has, unquote
from gateway.http.target import check_host, normalise_path

FOR, HOST, PORT, PROTO = b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-port", b"x-forwarded-proto"
PREFIX = b"x-forwarded-prefix"
FORWARDED = b"forwarded"
PLACES = frozenset((HOST, PORT, PROTO, FORWARDED))
"""Fields with the host and scheme of the client's request."""
MOST_HOPS = 32
"""Values of a list that are read, from the right: each takes some microseconds, and clients may send thousands."""
MOST_PREFIX = 1024
"""Characters of a prefix."""

_PAIR = re.compile(r"""\s*([!#$%&'*+\-.^_`|~0-9A-Za-z]+)=("(?:[^"\\]|\\.)*"|[^\s";,]*)\s*(?:;|$)""")
_WITH_PORT = re.compile(r"(\d+\.\d+\.\d+\.\d+)(?::\d{1,5})?|\[([0-9A-Fa-f:.]+)\](?::(?:\d{1,5}|_[\w.\-]+))?")
_PREFIX = re.compile(r"[\w\-.~/@:+=$!]*")
"""What a prefix may have, decoded: it is written to pages, scripts and fields."""
_DEFAULT_PORTS = {"http": "80", "https": "443"}


@dataclass(frozen=True, slots=True)
class Told:
    """The trusted information about one request. `chain` is every address from the client on, the peer's last; other
    members are None if unknown."""

    client: str
    chain: tuple[str, ...]
    scheme: str | None = None
    host: str | None = None
    port: str | None = None
    prefix: str | None = None


class Trusted:
    """The trusted proxies, by network. `ignored` is called with the name and value of a field that a trusted proxy sent
    and that is invalid: once per field."""

    def __init__(self, networks: list[str], ignored: Callable[[str, str], None] | None = None) -> None:
        self._networks: list[IPv4Network | IPv6Network] = [ip_network(network) for network in networks]
        self._ignored = ignored
        self._told: set[bytes] = set()
        """The fields of which something was ignored."""

    def __bool__(self) -> bool:
        return bool(self._networks)

    def __contains__(self, peer: str) -> bool:
        if not self._networks:
            return False
        try:
            address = _unmapped(ip_address(peer))
        except ValueError:
            return False
        return any(address in network for network in self._networks)

    def told(self, peer: str, headers: Headers) -> Told:
        """The trusted information about the request that `peer` sent with these fields."""
        if peer not in self:
            return Told(peer, (peer,) if peer else ())
        elements = self._elements(headers)
        chain = (*self._addresses(headers, elements), peer)
        hops = next((at for at, address in enumerate(reversed(chain)) if address not in self), len(chain))
        client = chain[-1 - hops] if hops < len(chain) else chain[0]
        element = elements[-min(hops, len(elements))] if elements else {}
        return Told(
            client,
            chain,
            self._scheme(headers, hops, element),
            self._host(headers, hops, element),
            self._port(headers, hops),
            self._prefix(headers, hops),
        )

    def chain(self, peer: str, headers: Headers) -> str:
        """`X-Forwarded-For` for the upstream: the addresses that trusted proxies named, and the peer itself."""
        return ", ".join(self.told(peer, headers).chain)

    def client(self, peer: str, headers: Headers) -> str:
        """The client's address: the peer's, or the right-most in the chain that is not a trusted proxy's."""
        return self.told(peer, headers).client if self._networks else peer

    def scheme(self, peer: str, headers: Headers, scheme: str) -> str:
        return self.told(peer, headers).scheme or scheme

    def prefix(self, peer: str, headers: Headers) -> str | None:
        """The path prefix that trusted proxies removed, normalised; None if none sent one."""
        return self.told(peer, headers).prefix if self._networks and has(headers, PREFIX) else None

    # --- one field each ------------------------------------------------------------------------------------

    def _elements(self, headers: Headers) -> list[dict[str, str]]:
        """The elements of `Forwarded`; none if a proxy uses `X-Forwarded-*`."""
        text = combined(headers, FORWARDED)
        if text is None or any(has(headers, name) for name in (FOR, HOST, PORT, PROTO)):
            return []
        elements: list[dict[str, str]] = []
        for item in reversed(_items(text)):
            pairs = _pairs(item)
            if pairs is None:
                self._ignore(FORWARDED, text)
                break
            elements.insert(0, pairs)
        return elements

    def _addresses(self, headers: Headers, elements: list[dict[str, str]]) -> list[str]:
        """The named addresses, the client's first. Everything left of an invalid address is ignored."""
        text = combined(headers, FOR)
        items = _items(text) if text else [each.get("for", "unknown") for each in elements]
        addresses: list[str] = []
        for item in reversed(items):
            address = _address(item)
            if address is None:
                if not (item == "unknown" or item.startswith("_")):
                    self._ignore(FOR if text else FORWARDED, item)
                break
            addresses.insert(0, address)
        return addresses

    def _scheme(self, headers: Headers, hops: int, element: dict[str, str]) -> str | None:
        said = _outermost(headers, PROTO, hops) or element.get("proto")
        if said is None or said.lower() in ("http", "https"):
            return said and said.lower()
        self._ignore(PROTO if has(headers, PROTO) else FORWARDED, said)
        return None

    def _host(self, headers: Headers, hops: int, element: dict[str, str]) -> str | None:
        said = _outermost(headers, HOST, hops) or element.get("host")
        try:
            return None if said is None else check_host([said.encode("latin-1", "replace")], "1.1")
        except RequestRefused:
            self._ignore(HOST if has(headers, HOST) else FORWARDED, said or "")
            return None

    def _port(self, headers: Headers, hops: int) -> str | None:
        said = _outermost(headers, PORT, hops)
        if said is None or (said.isascii() and said.isdigit() and 1 <= int(said[:6]) <= 65535):
            return said and said.lstrip("0")
        self._ignore(PORT, said)
        return None

    def _prefix(self, headers: Headers, hops: int) -> str | None:
        text = combined(headers, PREFIX)
        if text is None:
            return None
        said = _items(text)[-hops:]
        try:
            return normalised_prefix("".join(map(_rooted, said)))
        except ValueError:
            self._ignore(PREFIX, text)
            return None

    def _ignore(self, field: bytes, value: str) -> None:
        if field not in self._told and self._ignored is not None:
            self._told.add(field)
            self._ignored(field.decode("ascii"), value[:100])


def place(told: Told, host: str, scheme: str) -> tuple[str, str]:
    """The host, with its port unless it is the scheme's default, and the scheme of the client's request. `host` is the
    request's own."""
    scheme = told.scheme or scheme
    host = told.host or host
    has_port = ":" in host.rpartition("]")[2]
    if told.port is not None and host and not has_port and told.port != _DEFAULT_PORTS.get(scheme):
        host = f"{host}:{told.port}"
    return host, scheme


@lru_cache(maxsize=64)  # 64 KiB of texts that clients may choose
def normalised_prefix(text: str) -> str:
    """A path prefix in its one form, encoded, without a slash at its end; empty for the root. Raises ValueError."""
    if not text.rstrip("/"):
        return ""
    if not text.isascii() or len(text) > MOST_PREFIX or any(char in text for char in "?#,; \t"):
        raise ValueError("must be a path such as /shop")
    try:
        path = normalise_path(text.rstrip("/"))
    except RequestRefused as refused:
        raise ValueError(str(refused.detail)) from None
    if (
        not _PREFIX.fullmatch(unquote_path(path))
        or "//" in path
        or any(segment in (".", "..") for segment in text.split("/"))
    ):
        raise ValueError("must be a path such as /shop, without empty or dot segments")
    return path


def _items(text: str) -> list[str]:
    """The last values of a list, `MOST_HOPS` at most. No address, host or path has a comma, so that a quote which a
    client leaves open hides nothing of what a proxy adds behind it."""
    return [item for part in text.rsplit(",", MOST_HOPS)[-MOST_HOPS:] if (item := part.strip(" \t"))]


def _rooted(prefix: str) -> str:
    if not prefix.startswith("/"):
        raise ValueError("must be a path such as /shop")
    return prefix.rstrip("/")


def _outermost(headers: Headers, name: bytes, hops: int) -> str | None:
    """The value in a list that the trusted proxy nearest to the client added; None where there is none."""
    text = combined(headers, name)
    items = _items(text) if text else []
    return items[-min(hops, len(items))] if items else None


def _pairs(element: str) -> dict[str, str] | None:
    """An element of `Forwarded`, its parameters by name in lower case; None where it can't be read."""
    pairs: dict[str, str] = {}
    end = 0
    while end < len(element):
        found = _PAIR.match(element, end)
        if found is None or found[1].lower() in pairs:
            return None
        pairs[found[1].lower()] = unquote(found[2])
        end = found.end()
    return pairs


def _address(text: str) -> str | None:
    """An address, with or without port, brackets and quotes, as it is compared; None where it is none."""
    text = unquote(text.strip())
    found = _WITH_PORT.fullmatch(text)
    try:
        return str(_unmapped(ip_address(text if found is None else found[1] or found[2])))
    except ValueError:
        return None


def _unmapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 socket shows as `::ffff:192.0.2.1`."""
    return getattr(address, "ipv4_mapped", None) or address
