"""proxies: whose word about the client is believed."""

from __future__ import annotations

import pytest

from gateway.http.forwarding import Trusted

SAID = ((b"x-forwarded-for", b"203.0.113.7, 10.0.0.9"), (b"x-forwarded-proto", b"https"))
TRUSTED = Trusted(["10.0.0.0/8", "::1"])


def test_nobody_is_believed_unless_configured() -> None:
    assert "10.0.0.1" not in Trusted([])
    assert Trusted([]).client("10.0.0.1", SAID) == "10.0.0.1"


@pytest.mark.parametrize(("peer", "trusted"), [("10.1.2.3", True), ("::1", True), ("11.0.0.1", False), ("", False)])
def test_a_peer_is_believed_by_its_network(peer: str, trusted: bool) -> None:
    assert (peer in TRUSTED) is trusted


def test_what_is_no_address_is_not_believed() -> None:
    assert "unix:/run/x.sock" not in TRUSTED


def test_the_client_is_the_last_address_that_is_no_proxys() -> None:
    assert TRUSTED.client("10.0.0.1", SAID) == "203.0.113.7"
    assert TRUSTED.client("198.51.100.1", SAID) == "198.51.100.1"
    assert TRUSTED.client("10.0.0.1", ((b"x-forwarded-for", b"10.0.0.2"),)) == "10.0.0.2"
    assert TRUSTED.client("", SAID) == ""


def test_the_chain_is_what_a_proxy_said_and_the_peer() -> None:
    assert TRUSTED.chain("10.0.0.1", SAID) == "203.0.113.7, 10.0.0.9, 10.0.0.1"
    assert TRUSTED.chain("198.51.100.1", SAID) == "198.51.100.1"
    assert TRUSTED.chain("10.0.0.1", ()) == "10.0.0.1"
    assert TRUSTED.chain("", SAID) == ""


def test_the_scheme_is_a_proxys_word_where_it_is_one() -> None:
    assert TRUSTED.scheme("10.0.0.1", SAID, "http") == "https"
    assert TRUSTED.scheme("198.51.100.1", SAID, "http") == "http"
    assert TRUSTED.scheme("10.0.0.1", ((b"x-forwarded-proto", b"gopher"),), "http") == "http"
