"""Heads that only seem to repeat, and tokens that only seem valid: the edge answers what a gateway without it does."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from joserfc.jws import JWSRegistry

from gateway.edge.protocol import GatewayProtocol
from gateway.testing import TurnedClock
from tests.support.edge_lines import Line, asked, masked
from tests.support.gateways import served
from tests.support.token_site import OWN, Site, issuer
from tests.support.tokens import encoded, unsigned

ROUTES: dict[str, dict[str, Any]] = {
    "own": OWN,
    "maybe": {**OWN, "optional": True},
    "staff": {"require": {"scopes": ["staff"], "claims": {"org.id": [7]}}},
}
KID = {"alg": "Ed25519", "typ": "JWT", "kid": "ed"}


class Two:
    """Two gateways that get the same, one with the edge and one without."""

    def __init__(self, clock: TurnedClock) -> None:
        self.edge, self.plain = self.sites = [Site(clock, **ROUTES) for _ in range(2)]
        self.plain.app.edge = None
        for site in self.sites:
            site.app.engine._storing.jitter = lambda: 0.5

    async def same(self, before: list[bytes], last: bytes) -> tuple[bytes, bool]:
        """What both answer to `last` on a connection on which all of `before` was answered; and whether the edge did
        without the app."""
        found, at_edge = [], False
        for site in self.sites:
            line = Line(site.counted)
            for each in before:
                await asked(line, each)
            asks = site.counted.asked
            found.append((masked(await asked(line, last)), line.pipe.closed))
            if site is self.edge:
                at_edge = site.counted.asked == asks and found[0][0] != b""
            line.hang_up()
        assert found[0] == found[1], last
        return found[0][0], at_edge


# --- bytes around a credential -------------------------------------------------------------------------------------

SHAPES = (
    b"GET /own HTTP/1.1\r\nHost: gateway.test\r\nAuthorization: Bearer %b\r\n\r\n",
    b"GET /own HTTP/1.1\r\nHost: gateway.test\r\nAuthorization: Bearer %b\r\nX-Request-ID: abc\r\n\r\n",
    b"GET /own HTTP/1.1\r\nHost: gateway.test\r\nX-Request-ID: abc\r\nauthorization:Bearer  %b\r\nAccept: a/b\r\n\r\n",
    b"GET /maybe HTTP/1.1\r\nAuthorization: bearer %b\r\nHost: gateway.test\r\nX-Request-ID: abc\r\nA: b\r\n\r\n",
)
INSERTED = (
    *(b"\r", b"\n", b"\0", b" ", b"\t", b":", b",", b"a", b".", b"\x7f", b"\xa0", b"\x85", b"\r\n", b"\r\n "),
    *(b"\r\nx: y\r\n", b"\r\n\r\n", b"\r\nX-Request-ID: \r\n", b"\r\nAuthorization: Bearer a.b.c\r\n"),
)


def altered(head: bytes, token: bytes, seed: int) -> Iterator[bytes]:
    """Heads that differ from `head` by a few bytes: anywhere outside its token, and near the ends of that."""
    draw, start = random.Random(seed), head.index(token)
    for at in range(len(head) + 1):
        if start + 3 < at < start + len(token) - 3:
            continue
        yield head[:at] + draw.choice(INSERTED) + head[at:]
        yield head[:at] + head[at + 1 :]
        yield head[:at] + bytes((draw.choice(b"\r\n\0 \t:aA.=;\xff"),)) + head[at + 1 :]
    yield from (head + head, head + b"\r\n", head + b"x", head[:-2] + b"Content-Length: 2\r\n\r\nab")


@pytest.mark.parametrize("shape", SHAPES)
async def test_bytes_around_a_credential_mean_what_they_mean_at_first(clock: TurnedClock, shape: bytes) -> None:
    two = Two(clock)
    anna, berta = (shape % two.edge.token(user) for user in ("anna", "berta"))
    served_at_edge = 0
    for seed, last in enumerate((anna, berta)):
        token = last.partition(b"earer ")[2].strip(b" ").partition(b"\r")[0]
        for each in altered(last, token, seed):
            _, at_edge = await two.same([anna, anna, berta, anna], each)
            served_at_edge += at_edge
    assert served_at_edge > 20  # such as those with another request ID


# --- tokens --------------------------------------------------------------------------------------------------------


def signed(clock: TurnedClock, claims: str = "", /, header: str = "", **more: Any) -> bytes:
    """A token with `claims` as the text of further ones, in the form that msgspec writes."""
    now = int(clock.now())
    said = {"iss": issuer.url, "aud": "shop-api", "sub": "anna", "iat": now - 10, "exp": now + 600, **more}
    head = header or json.dumps(KID)
    text = json.dumps({name: value for name, value in said.items() if value is not None}, separators=(",", ":"))
    signed = encoded(head.encode()) + b"." + encoded((text[:-1] + claims + "}").encode())
    return signed + b"." + encoded(JWSRegistry.algorithms["Ed25519"].sign(signed, issuer.keys["Ed25519"]))


def of_header(clock: TurnedClock, **changes: Any) -> bytes:
    return signed(clock, header=json.dumps({**KID, **changes}))


def by_public_key(clock: TurnedClock) -> bytes:
    """Signed with what everybody knows, as if that were a secret (RFC 8725 §2.1)."""
    text = b".".join((encoded(json.dumps({"alg": "HS256", "kid": "rsa"}).encode()), signed(clock).split(b".")[1]))
    public = issuer.keys["RS256"].as_pem(private=False)
    return text + b"." + encoded(hmac.new(public, text, hashlib.sha256).digest())


def refused(clock: TurnedClock) -> dict[str, bytes]:
    good, now = signed(clock), clock.now()
    claims = issuer.claims(iat=now - 10, exp=now + 600)
    return {
        "unsigned": unsigned({"alg": "none"}, claims, b""),
        "unsigned, of a key": unsigned({**KID, "alg": "None"}, claims),
        "a public key as a secret": by_public_key(clock),
        "of another algorithm": of_header(clock, alg="RS256"),
        "with an extension": of_header(clock, crit=["x"], x=1),
        "with a key": of_header(clock, jwk=issuer.keys["Ed25519"].as_dict(private=False)),
        "with a place of keys": of_header(clock, jku="https://evil.test"),
        "of a path": of_header(clock, kid="../../ed"),
        "of several keys": of_header(clock, kid=["ed"]),
        "of another kind": of_header(clock, typ="dpop+jwt"),
        "of no kind": of_header(clock, typ=None),
        "with two algorithms": signed(clock, header='{"alg":"Ed25519","alg":"none","kid":"ed"}'),
        "with two users": signed(clock, ',"sub":"berta"'),
        "with two users, one escaped": signed(clock, ',"\\u0073ub":"berta"'),
        "with two of a claim within": signed(clock, ',"org":{"id":7,"id":8}'),
        "with no number": signed(clock, ',"x":NaN'),
        "with an endless life": signed(clock, ',"exp":1e400', exp=None),
        "with a text for a date": signed(clock, exp=str(now + 600)),
        "without an end": signed(clock, exp=None),
        "ended": signed(clock, exp=now - 31),
        "not begun": signed(clock, nbf=now + 60),
        "for another audience": signed(clock, aud="web"),
        "for an object": signed(clock, aud={"shop-api": 1}),
        "of an issuer alike": signed(clock, iss=issuer.url + "/"),
        "of a user that is no text": signed(clock, sub=True),
        "nested too deeply": signed(clock, ',"x":' + "[" * 2500 + "]" * 2500),
        "of another signature": good[:-4] + (b"AAAA" if good[-4:] != b"AAAA" else b"BBBA"),
        "cut": good[:-1],
        "with a piece more": good + b".e30",
        "padded": good + b"=",
        "in another form of base64": good[:-1] + bytes((good[-1] + 1,)),
        "too long": signed(clock, x="a" * 6100),
        "no token": b"..",
    }


def accepted(clock: TurnedClock) -> dict[str, bytes]:
    return {
        "of the longest length": signed(clock, x="a" * 5850),
        "with spaces": signed(clock, ' , "x" : 1.50 '),
        "of no named key": of_header(clock, kid=None),
        "ended within the leeway": signed(clock, exp=clock.now() - 29),
        "for several": signed(clock, aud=["web", "shop-api"]),
    }


@pytest.mark.parametrize("place", [b"%b", b"%b\r\nX-Request-ID: abc", b"  %b  \r\nA: b"])
async def test_a_token_that_the_app_refuses_is_refused_on_any_connection(clock: TurnedClock, place: bytes) -> None:
    two = Two(clock)
    berta = two.edge.token("berta")
    for name, token in {**refused(clock), **accepted(clock)}.items():
        for path in (b"own", b"maybe"):
            shape = b"GET /" + path + b" HTTP/1.1\r\nHost: gateway.test\r\nAuthorization: Bearer " + place + b"\r\n\r\n"
            warm, request = shape % berta, shape % token
            for before in ([warm, warm], [warm, request, request, warm]):
                answer, at_edge = await two.same(before, request)
                good = name in accepted(clock)
                assert answer.startswith(b"HTTP/1.1 200 " if good else b"HTTP/1.1 401 "), name
                assert answer.endswith(b"anna") is good
                assert at_edge or not good or len(before) == 2


@pytest.mark.parametrize(
    ("claims", "enough"),
    [
        ({"scope": "staff", "org": {"id": 7}}, True),
        ({"scp": ["other", "staff"], "org.id": 7, "org": {"id": 8}}, True),
        ({"scope": "staff", "org": {"id": [6, 7]}}, True),
        ({"scope": "staff", "org": {"id": 7.0}}, False),
        ({"scope": "staff", "org": {"id": "7"}}, False),
        ({"scope": "staff", "org": {"id": None}}, False),
        ({"scope": "staff\tother", "org": {"id": 7}}, False),
        ({"scope": "Staff", "org": {"id": 7}}, False),
        ({"org": {"id": 7}}, False),
    ],
)
async def test_a_new_token_must_have_what_a_route_requires(
    clock: TurnedClock, claims: dict[str, Any], enough: bool
) -> None:
    two = Two(clock)
    shape = b"GET /staff HTTP/1.1\r\nHost: gateway.test\r\nAuthorization: Bearer %b\r\n\r\n"
    warm = shape % two.edge.token("berta", scope="staff", org={"id": 7})
    answer, at_edge = await two.same([warm, warm], shape % two.edge.token(**claims))
    assert answer.startswith(b"HTTP/1.1 200 " if enough else b"HTTP/1.1 403 ")
    assert at_edge is enough


# --- on real connections -------------------------------------------------------------------------------------------


async def test_the_bytes_of_a_connection_are_answered_the_same_however_they_are_cut(clock: TurnedClock) -> None:
    two = Two(clock)
    draw, tokens = random.Random(7), [two.edge.token(user, jti=str(n)) for user in ("anna", "berta") for n in (1, 2)]
    plain = {"http": GatewayProtocol, "date_header": False, "server_header": False}
    async with served(two.edge.app, **plain) as edge, served(two.plain.app, **plain) as other:
        for _ in range(60):
            stream = b"".join(_requests(draw, tokens))
            cuts = sorted(draw.sample(range(1, len(stream)), draw.randrange(5)))
            pieces = [stream[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
            first, second = [masked(each) for each in await asyncio.gather(_sent(edge, pieces), _sent(other, pieces))]
            assert first == second, pieces


def _requests(draw: random.Random, tokens: list[bytes]) -> Iterator[bytes]:
    shape, path = draw.choice(SHAPES), draw.choice((b"/own", b"/maybe"))
    for _ in range(draw.randrange(3, 8)):
        token = draw.choice((*tokens, *tokens, tokens[0][:-3] + b"AAA", b"a.b.c"))
        each = (shape % token).replace(b"/own", path).replace(b"abc", draw.choice((b"abc", b"abcd", b"", b"a b")))
        if not draw.randrange(6):
            each = each[:-2] + draw.choice((b"A: b\r\n", b"X-User: berta\r\n", b"Connection: x-user\r\n")) + b"\r\n"
        if not draw.randrange(12):
            each = each[:-2] + b"Content-Length: %d\r\n\r\n%b" % (len(each), each)
        yield each.replace(b"GET", b"HEAD", 1) if not draw.randrange(9) else each
    yield b"GET /own HTTP/1.1\r\nHost: gateway.test\r\nConnection: close\r\n\r\n"


async def _sent(url: str, pieces: list[bytes]) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()
