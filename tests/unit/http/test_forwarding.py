"""proxies: whose word about the client is believed."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http.forwarding import FOR, MOST_HOPS, PLACES, PREFIX, Told, Trusted, normalised_prefix, place
from gateway.http.target import check_host

SAID = ((b"x-forwarded-for", b"203.0.113.7, 10.0.0.9"), (b"x-forwarded-proto", b"https"))
TRUSTED = Trusted(["10.0.0.0/8", "::1"])


def test_nobody_is_believed_unless_configured() -> None:
    assert "10.0.0.1" not in Trusted([])
    assert (bool(Trusted([])), bool(TRUSTED)) == (False, True)
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


def _told(*fields: tuple[str, str], peer: str = "10.0.0.1") -> Told:
    return TRUSTED.told(peer, [(name.encode(), value.encode()) for name, value in fields])


@pytest.mark.parametrize(
    ("written", "client"),
    [
        ("203.0.113.7:4711", "203.0.113.7"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ('"[2001:db8::1]:4711"', "2001:db8::1"),
        ('"203.0.113.7"', "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("203.0.113.7:4711, 10.0.0.9:80", "203.0.113.7"),
        ("198.51.100.66, 203.0.113.7:1, [::1]:2, 10.9.9.9", "203.0.113.7"),
    ],
)
def test_an_address_is_read_with_its_port_brackets_and_quotes(written: str, client: str) -> None:
    assert _told(("x-forwarded-for", written)).client == client
    assert client in TRUSTED.chain("10.0.0.1", [(b"x-forwarded-for", written.encode())])


@pytest.mark.parametrize(
    "malformed",
    ["nobody", "203.0.113.7:port", "203.0.113.256", "[203.0.113.7", "1.2.3.4 5.6.7.8", '"', "\x80", "::1::"],
)
def test_left_of_what_is_no_address_nobody_is_believed(malformed: str) -> None:
    ignored: list[tuple[str, str]] = []
    trusted = Trusted(["10.0.0.0/8"], lambda *said: ignored.append(said))
    headers = [(b"x-forwarded-for", f"198.51.100.66, {malformed}, 10.0.0.9".encode("latin-1"))]
    assert trusted.client("10.0.0.1", headers) == "10.0.0.9"
    assert trusted.chain("10.0.0.1", headers) == "10.0.0.9, 10.0.0.1"
    assert [name for name, _ in ignored] == ["x-forwarded-for"]


def test_an_ipv4_peer_of_an_ipv6_socket_is_in_its_network() -> None:
    assert "::ffff:10.0.0.1" in TRUSTED


@pytest.mark.parametrize(
    ("fields", "host", "scheme"),
    [
        ([("x-forwarded-host", "Shop.Example")], "shop.example", "http"),
        ([("x-forwarded-host", "shop.example:8443"), ("x-forwarded-port", "443")], "shop.example:8443", "http"),
        ([("x-forwarded-host", "shop.example"), ("x-forwarded-port", "8080")], "shop.example:8080", "http"),
        ([("x-forwarded-proto", "https"), ("x-forwarded-port", "443")], "inside.test", "https"),
        ([("x-forwarded-proto", "HTTPS"), ("x-forwarded-port", "8443")], "inside.test:8443", "https"),
        ([("x-forwarded-host", "evil.example, shop.example")], "shop.example", "http"),
        ([("x-forwarded-for", "203.0.113.7, 10.0.0.9"), ("x-forwarded-host", "a.test, b.test")], "a.test", "http"),
        ([("x-forwarded-host", "not a host")], "inside.test", "http"),
        ([("x-forwarded-host", "a.test/path")], "inside.test", "http"),
        ([("x-forwarded-host", "a.test:99999")], "inside.test", "http"),
        ([("x-forwarded-port", "-1")], "inside.test", "http"),
        ([("x-forwarded-port", "99999999999999999999")], "inside.test", "http"),
        ([("x-forwarded-proto", "gopher")], "inside.test", "http"),
        ([("forwarded", 'for=203.0.113.7;host="shop.example";proto=https')], "shop.example", "https"),
        ([("forwarded", 'For="[2001:db8::1]:80";Host=a.test, for=10.0.0.9;host=b.test')], "a.test", "http"),
        ([("forwarded", "for=1.2.3.4;host=evil.test, for=203.0.113.7;host=b.test")], "b.test", "http"),
        ([("forwarded", "for=203.0.113.7;host=f.test"), ("x-forwarded-host", "x.test")], "x.test", "http"),
        ([("forwarded", "host=a.test;host=b.test")], "inside.test", "http"),
        ([("forwarded", ";;==")], "inside.test", "http"),
    ],
)
def test_the_place_is_what_the_outermost_trusted_proxy_says(
    fields: list[tuple[str, str]], host: str, scheme: str
) -> None:
    assert place(_told(*fields), "inside.test", "http") == (host, scheme)
    assert place(_told(*fields, peer="198.51.100.1"), "inside.test", "http") == ("inside.test", "http")


@pytest.mark.parametrize("begun", ['"', 'for="', 'a="\\"', "for=1.2.3.4;;", "x"])
def test_what_a_client_begins_hides_nothing_that_a_proxy_adds(begun: str) -> None:
    for name, added in (("x-forwarded-for", "203.0.113.7"), ("forwarded", "for=203.0.113.7;host=b.test")):
        assert _told((name, f"{begun}, {added}")).client == "203.0.113.7"


def test_forwarded_names_the_client() -> None:
    told = _told(("forwarded", 'for=198.51.100.66, for="[2001:db8::1]:4711";proto=https, for=10.0.0.9'))
    assert (told.client, told.scheme) == ("2001:db8::1", "https")
    assert told.chain == ("198.51.100.66", "2001:db8::1", "10.0.0.9", "10.0.0.1")
    assert _told(("forwarded", "for=198.51.100.66, for=_hidden, for=unknown")).client == "10.0.0.1"


@pytest.mark.parametrize(
    ("lines", "prefix"),
    [
        (["/shop"], "/shop"),
        (["/shop/"], "/shop"),
        (["/"], ""),
        (["/a b"], None),
        (["/caf%c3%a9"], "/caf%C3%A9"),
        (["shop"], None),
        (["//evil.example"], None),
        (["/\\evil.example"], None),
        (["/a/../b"], None),
        (["/a?b"], None),
        (["/a'b"], None),
        (["/a%27b"], None),
        (["/a%22%3Cscript%3E"], None),
        (["/a;b"], None),
        (["/evil", "/shop"], "/shop"),
    ],
)
def test_a_prefix_is_a_path_or_is_ignored(lines: list[str], prefix: str | None) -> None:
    headers = [(b"x-forwarded-prefix", line.encode()) for line in lines]
    assert TRUSTED.prefix("10.0.0.1", headers) == prefix
    assert TRUSTED.prefix("198.51.100.1", headers) is None


def test_each_of_several_proxies_may_take_a_prefix_off() -> None:
    fields = [("x-forwarded-for", "203.0.113.7, 10.0.0.9"), *[("x-forwarded-prefix", each) for each in ("/a", "/b/")]]
    assert _told(*fields).prefix == "/a/b"


def test_of_a_long_chain_the_end_counts() -> None:
    told = _told(("x-forwarded-for", "198.51.100.66, " * 5000 + "203.0.113.7, 10.0.0.9"))
    assert told.client == "203.0.113.7"
    assert len(told.chain) == MOST_HOPS + 1


@given(st.lists(st.tuples(st.sampled_from(sorted(PLACES | {FOR, PREFIX})), st.binary(max_size=40)), max_size=6))
def test_nothing_that_a_proxy_sends_raises(fields: list[tuple[bytes, bytes]]) -> None:
    told = TRUSTED.told("10.0.0.1", fields)
    host, scheme = place(told, "inside.test", "http")
    assert check_host([host.encode()], "1.1") == host
    assert scheme in ("http", "https")
    assert told.prefix is None or told.prefix == normalised_prefix(told.prefix)
    ip_address(told.client)
