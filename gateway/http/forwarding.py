"""Networks whose word is believed: proxies that speak of the client, peers that may purge. Pure."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from gateway.http.headers import Headers, combined, first, split_list


class Trusted:
    """The proxies whose word about the client is believed."""

    def __init__(self, networks: list[str]) -> None:
        self._networks: list[IPv4Network | IPv6Network] = [ip_network(network) for network in networks]

    def __contains__(self, peer: str) -> bool:
        if not self._networks:
            return False
        try:
            address = ip_address(peer)
        except ValueError:
            return False
        return any(address in network for network in self._networks)

    def chain(self, peer: str, headers: Headers) -> str:
        """`X-Forwarded-For` for the upstream: what a trusted proxy said, and the peer itself."""
        said = combined(headers, b"x-forwarded-for") if peer in self else None
        return ", ".join([*(split_list(said) if said else []), peer]) if peer else ""

    def client(self, peer: str, headers: Headers) -> str:
        """The client's address: the peer's, or the last in `X-Forwarded-For` that is not a trusted proxy's."""
        if not self._networks:
            return peer
        chain = split_list(self.chain(peer, headers))
        return next((address for address in reversed(chain) if address not in self), chain[0] if chain else "")

    def scheme(self, peer: str, headers: Headers, scheme: str) -> str:
        said = first(headers, b"x-forwarded-proto") if peer in self else None
        return said if said in ("http", "https") else scheme
