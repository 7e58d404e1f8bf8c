"""Credentials at the edge: it answers what the app would, to whom the app would, or not at all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec import structs

from gateway.edge.credentials import LONGEST_CREDENTIAL
from gateway.identity.key_source import Stored
from gateway.testing import TurnedClock
from tests.support.edge_lines import Both, Changing, Line, Side, living
from tests.support.scale import size
from tests.support.token_site import OWN, SHOP, Site, issuer
from tests.support.tokens import TestIssuer

EXAMPLES = size("identity_stories")
other = TestIssuer()
WEB = {**SHOP, "audience": ["web"], "from": ["cookie:session", "x-token"], "leeway": "0s"}
IDENTITY = {"shop": SHOP, "web": WEB}
CACHED: dict[str, Any] = {"upstream": "api", "ttl": "10s", "identity": ["shop"]}
ROUTES: dict[str, Any] = {
    "all": {**CACHED, "path": "/all/{id}"},
    "own": {**CACHED, "path": "/own/{id}", "per": ["sub"], "forward": {"x-user": "sub"}},
    "plan": {**CACHED, "path": "/plan/{id}", "per": ["plan"], "identity": ["web", "shop"], "tags": ["plan"]},
    "maybe": {**CACHED, "path": "/maybe/{id}", "per": ["sub"], "optional": True, "forward": {"x-user": "sub"}},
    "staff": {**CACHED, "path": "/staff/{id}", "require": {"scopes": ["staff"], "claims": {"plan": ["gold", 1]}}},
    "stale": {**CACHED, "path": "/stale/{id}", "ttl": "2s", "stale_while_revalidate": "20s", "per": ["sub"]},
    "origin": {**CACHED, "path": "/origin/{id}", "ttl": "origin", "per": ["sub"], "forward": {"x-user": "sub"}},
    "token": {**CACHED, "path": "/token/{id}", "ttl": "origin", "forward_token": True, "per": ["sub"]},
    "kept": {**CACHED, "path": "/kept/{id}", "ttl": "origin", "cookies": "pass", "identity": ["web"], "per": ["sub"]},
    "shared": {**CACHED, "path": "/shared/{id}", "downstream": "shared", "vary": ["accept"], "client_ttl": "3s"},
    "open": {"path": "/open/{id}", "upstream": "api", "ttl": "10s", "authorization": "ignore"},
    "plain": {"path": "/plain/{id}", "upstream": "api", "ttl": "10s"},
}
SETTINGS: dict[str, Any] = {
    "upstreams": {
        "api": {"url": "http://api.test", "timeout": "5s", "breaker_failures": 0}
    },  # it has a clock of its own
    "routes": ROUTES,
    "identity": IDENTITY,
    "cors": {"allow_origins": ["https://app.test"]},
}
USERS: dict[str, dict[str, Any]] = {
    "anna": {"sub": "anna", "plan": "gold", "scope": "staff"},
    "berta": {"sub": "berta", "plan": ["gold"], "scope": "staff other"},
    "one": {"sub": 1, "plan": 1},
    "text": {"sub": "1", "plan": "1"},
    "comma": {"sub": "1,", "plan": True},
    "umlaut": {"sub": "b\u00e4rbel", "plan": {"a": ["x"]}},
    "nobody": {"sub": None},
}
LIVES: dict[str, dict[str, float]] = {
    "now": {"iat": -10, "exp": 600},
    "refreshed": {"iat": 0, "exp": 900},
    "short": {"iat": -10, "exp": 4},
    "ended": {"iat": -600, "exp": -31},
    "early": {"iat": 33, "exp": 600},
}


class Speaking(Changing):
    """An upstream whose response says whom it is for."""

    def __call__(self, request: httpx.Request) -> httpx.Response:
        response = super().__call__(request)
        names = ("x-user", "authorization", "cookie", "x-token")
        seen = json.dumps([request.headers.get(name) for name in names if request.headers.get(name) is not None])
        content = response.content + seen.encode() if response.content else b""
        return httpx.Response(
            response.status_code,
            content=content,
            headers=[pair for pair in response.headers.raw if pair[0].lower() != b"content-length"],
        )


class Authenticated(Both):
    """Stories in which `{token NAME LIFE}` stands for a token that is signed for the story's clock."""

    async def live(self, story: list[tuple[str, Any]]) -> None:
        begins = self.clock.now() + 100_000
        for side in self.sides:
            self._use_keys(side, issuer, begins)
        made = [(kind, self._written(what, begins) if kind == "ask" else what) for kind, what in story]
        await super().live(made)

    def _written(self, request: bytes, now: float) -> bytes:
        head, *rest = request.split(b"{token ")
        for each in rest:
            name, _, after = each.partition(b"}")
            head += self._token(*name.decode().split(" "), now) + after
        return head

    @staticmethod
    def _token(user: str, life: str, audience: str, now: float) -> bytes:
        dates = {name: now + seconds for name, seconds in LIVES[life].items()}
        return issuer.sign("Ed25519", **USERS[user], **dates, aud=audience)

    @staticmethod
    def _use_keys(side: Side, of: TestIssuer, now: float) -> None:
        for name in IDENTITY:
            source: Any = side.app.worker_state.providers[name].source
            source._use(Stored(now, of.jwks))

    async def step(self, kind: str, what: Any) -> None:
        if kind == "rotate":
            for side in self.sides:
                self._use_keys(side, other if what else issuer, self.clock.now())
        else:
            await super().step(kind, what)


BEARER = ("Authorization: Bearer {token %s}", "authorization:bearer  {token %s} ", "AUTHORIZATION: BEARER {token %s}")
PLACES = (
    *BEARER[:1] * 12,
    *BEARER,
    "X-Token: {token %s}",
    "Cookie: a=1; session={token %s}; b=2",
    "Cookie: session={token %s}",
)
NOISE = (
    *(
        "Accept: a/b",
        "Accept: a/b",
        "X-Request-ID: abc",
        "X-Request-ID: {token anna now shop-api}",
        "Connection: close",
    ),
    *('If-None-Match: "v1"', "Accept-Encoding: gzip", "Origin: https://app.test", "X-User: berta", "Cookie: a=1"),
    *("Connection: authorization", "Connection: x-user", "Authorization: Basic YTpi", "Authorization: Bearer a b"),
    *("Authorization: Bearer a.b.c", "X-Token: ", "Cache-Control: no-cache", "Range: bytes=0-2", ":principal: a"),
    *("Traceparent: {token anna now shop-api}", "X-Pad: " + "a" * 1100),
)


def tokens() -> st.SearchStrategy[str]:
    """What stands for a token in a request."""
    users = st.sampled_from([*USERS, *["anna", "berta"] * 4])
    lives = st.sampled_from([*["now", "refreshed"] * 6, *LIVES])
    return st.builds("{} {} {}".format, users, lives, st.sampled_from(("shop-api",) * 5 + ("web",)))


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    method = draw(st.sampled_from(("GET", "GET", "GET", "GET", "GET", "HEAD", "POST")))
    path = draw(st.sampled_from([*ROUTES, *["own", "all", "maybe"] * 3]))
    token = draw(tokens())
    lines = ["Host: gateway.test"]
    if draw(st.integers(0, 9)):
        lines.append(draw(st.sampled_from(PLACES)) % token)
    if not draw(st.integers(0, 3)):
        lines += draw(st.lists(st.sampled_from(NOISE), max_size=2))
    if method == "POST":
        lines.append("Content-Length: 0")
    lines = draw(st.permutations(lines))
    return "\r\n".join([f"{method} /{path}/{draw(st.sampled_from('112'))} HTTP/1.1", *lines, "", ""]).encode()


SAID: tuple[dict[str, str], ...] = (
    *({"cache-control": "max-age=10", "etag": '"v1"'},) * 5,
    {"cache-control": "private, max-age=10"},
    {"cache-control": "max-age=10", "vary": "Authorization, Accept"},
    {"cache-control": "max-age=10", "vary": "X-User"},
    {"cache-control": "max-age=10", "vary": "Cookie"},
    {"cache-control": "no-store"},
    {},
)


@st.composite
def alike(draw: st.DrawFn) -> list[bytes]:
    """Requests that differ by their tokens alone, one of which may be none."""
    path, place = draw(st.sampled_from(("own", "own", "all", "plan", "maybe", "staff"))), draw(st.sampled_from(PLACES))
    before, after = (draw(st.sampled_from(("", "", "X-Request-ID: abc\r\n", "Accept: a/b\r\n"))) for _ in range(2))
    shape = f"GET /{path}/1 HTTP/1.1\r\nHost: gateway.test\r\n{before}{place}\r\n{after}\r\n"
    others = draw(st.lists(tokens(), min_size=2, max_size=4))
    odd = draw(st.sampled_from(("a.b.c", "{token anna now web}A", "\t{token berta now web}", "a\0b")))
    return [*((shape % token).encode() for token in others), (shape % "\0").replace("{token \0}", odd).encode()]


@st.composite
def stories(draw: st.DrawFn) -> list[tuple[str, Any]]:
    """Some requests, each of them several times, and what happens between them."""
    few = draw(alike() | st.lists(requests(), min_size=1, max_size=4))
    return [(kind, few[what % len(few)] if kind == "ask" else what) for kind, what in draw(_STEPS)]


@st.composite
def steps(draw: st.DrawFn) -> tuple[str, Any]:
    kind = draw(st.sampled_from(("ask",) * 12 + ("turn", "say", "purge", "rotate")))
    if kind == "ask":
        return kind, draw(st.integers(0, 3))
    if kind == "turn":
        return kind, draw(st.sampled_from((0.25, 1.0, 2.0, 5.0, 12.0, 30.0, 600.0)))
    if kind == "say":
        return kind, (
            draw(st.sampled_from((200, 200, 200, 404, 503))),
            draw(st.sampled_from(SAID)),
            draw(st.integers(1, 3)),
        )
    if kind == "purge":
        what = draw(st.sampled_from(({"tags": ["plan"]}, {"routes": ["own"]}, {"everything": True})))
        return kind, {**what, "soft": draw(st.booleans())}
    return kind, draw(st.booleans())


_STEPS = st.lists(steps(), min_size=3, max_size=25)


def make_both() -> Authenticated:
    return Authenticated(Speaking(), partial(Side, **SETTINGS), SAID[0])


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[asyncio.Runner, Authenticated]]:
    yield from living(make_both)


def of(user: str, path: str = "own", life: str = "now") -> bytes:
    """A request with a user's token."""
    token = f"Authorization: Bearer {{token {user} {life} shop-api}}"
    return f"GET /{path}/1 HTTP/1.1\r\nHost: gateway.test\r\n{token}\r\n\r\n".encode()


TURNS = [("ask", of(user)) for user in ("anna", "berta", "anna", "one", "text", "one", "anna", "anna", "berta")]
ROTATED: list[tuple[str, Any]] = [("ask", of("anna"))] * 3 + [("rotate", True)] + [("again", None)] * 2
ENDS: list[tuple[str, Any]] = [("ask", of("anna", "all", "short"))] * 3 + [("turn", 30.0), ("again", None)] * 2


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(story=stories())
@example(story=TURNS)
@example(story=ROTATED)
@example(story=ENDS)
def test_the_edge_answers_nobody_otherwise_than_the_app(
    both: tuple[asyncio.Runner, Authenticated], story: list[tuple[str, Any]]
) -> None:
    runner, gateways = both
    runner.run(gateways.live(story))


def test_the_edge_counted_what_the_app_counted_and_answered_much_of_it(
    both: tuple[asyncio.Runner, Authenticated],
) -> None:
    _, gateways = both
    with_edge, without = gateways.sides
    print(f"{with_edge.sent} requests to each, {with_edge.sent - with_edge.counted.asked} answered at the edge")
    assert sorted(with_edge.counts()) == sorted(without.counts())
    assert with_edge.counted.asked < 0.9 * without.counted.asked or without.sent < 400


# --- single promises ---------------------------------------------------------------------------------------


async def test_a_hit_is_answered_before_the_app_to_its_user_alone(clock: TurnedClock) -> None:
    site = Site(clock, own=OWN)
    anna, berta = site.token(), site.token("berta")
    bodies = [(await site.ask("own", token))[1] for token in (anna, berta, anna, berta, berta)]
    assert bodies == [b"anna", b"berta", b"anna", b"berta", b"berta"]
    assert site.counted.asked == site.upstream.asked == 2


async def test_a_refreshed_token_and_a_second_device_are_hits_at_the_edge(clock: TurnedClock) -> None:
    site = Site(clock, own=OWN)
    await site.ask("own", site.token())
    refreshed = site.token(jti="2")
    assert await site.at_edge("own", refreshed)
    assert await site.at_edge("own", refreshed)
    assert await site.at_edge("own", site.token(jti="3"), line=Line(site.counted))
    assert await site.at_edge("own", refreshed, line=Line(site.counted), more=b"User-Agent: another device\r\n")
    assert site.upstream.asked == 1


@pytest.mark.parametrize("several", [True, False], ids=["kept-alive", "new connections"])
async def test_nothing_is_answered_after_the_token_and_the_leeway_have_ended(clock: TurnedClock, several: bool) -> None:
    site = Site(clock, all={})
    token = site.token(lives=100)
    for _ in range(3):
        await site.ask("all", token)
    clock.turn(129.9)
    assert await site.at_edge("all", token, line=None if several else Line(site.counted))
    clock.turn(0.1)
    for _ in range(2):
        assert (await site.ask("all", token, line=None if several else Line(site.counted)))[0] == 401


async def test_nothing_is_answered_by_keys_that_the_issuer_has_replaced(clock: TurnedClock) -> None:
    site = Site(clock, all={})
    token = site.token()
    for _ in range(3):
        await site.ask("all", token)
    site.use_keys(other)
    for line in (site.line, Line(site.counted)):
        assert (await site.ask("all", token, line=line))[0] == 401
    site.use_keys(issuer)
    assert await site.at_edge("all", token)  # it is verified again


async def test_nothing_is_answered_when_the_keys_are_too_old(clock: TurnedClock) -> None:
    site = Site(clock, all={"ttl": "1000000s"})
    token = site.token(lives=1_000_000)
    for _ in range(3):
        await site.ask("all", token)
    clock.turn(24 * 3600 - 1)
    assert await site.at_edge("all", token)
    clock.turn(1)
    site.app.worker_state.providers["shop"].source._tried["unknown"] = clock.now()
    assert (await site.ask("all", token))[0] == 503


async def test_the_edge_refuses_nobody(clock: TurnedClock) -> None:
    site = Site(clock, all={}, staff={"require": {"scopes": ["staff"]}}, maybe={"optional": True})
    token = site.token()
    for path in ("all", "maybe"):
        await site.ask(path, token)
    await site.ask("staff", site.token(scope="staff"))
    for path, credential, status in (
        *(("all", None, 401), ("all", b"a.b.c", 401), ("all", token + b"A", 401), ("staff", token, 403)),
        *(("all", site.token(lives=-100), 401), ("maybe", b"a.b.c", 401), ("maybe", None, 200)),
        *(("all", other.sign("Ed25519"), 401), ("all", site.token(aud="web"), 401), ("staff", site.token("b"), 403)),
    ):
        for line in (site.line, Line(site.counted)):
            before = site.counted.asked
            assert (await site.ask(path, credential, line=line))[0] == status
            assert site.counted.asked == before + 1 or (status == 200 and site.counted.asked == before)
    assert await site.at_edge("maybe", None)
    assert await site.at_edge("maybe", token)


@pytest.mark.parametrize("length", [100, 900, 2000, 5500])
async def test_a_block_is_remembered_however_long_its_token_is(clock: TurnedClock, length: int) -> None:
    site = Site(clock, all={})
    token = site.token(padding="a" * length)
    await site.ask("all", token)
    for _ in range(3):
        assert await site.at_edge("all", token, line=Line(site.counted))
    assert len(site.edge._credentials) == 1


async def test_clients_that_differ_in_their_tokens_alone_share_what_is_judged(clock: TurnedClock) -> None:
    site = Site(clock, all={})
    tokens = [site.token(f"user-{number}") for number in range(20)]
    for token in tokens * 2:
        await site.ask("all", token, b"Accept: a/b\r\n")
    assert (len(site.edge.blocks), len(site.edge._credentials)) == (1, 20)
    assert all(token not in b"".join(site.edge.blocks) for token in tokens)
    (template,) = site.edge.blocks.values()
    assert (b"authorization", b"") in template.headers


async def test_blocks_with_credentials_are_bounded_in_number_and_in_bytes(clock: TurnedClock) -> None:
    site = Site(clock, all={})
    credentials = site.edge._credentials
    credentials._most = 5
    for number in range(12):
        await site.ask("all", site.token(f"user-{number}"))
    assert len(credentials) == 5
    credentials._most, credentials._room = 1000, 60_000
    for number in range(40):
        await site.ask("all", site.token(f"user-{number}", padding="a" * 3000))
    assert len(credentials) < 10
    assert credentials._size < 90_000
    site.edge.forget()
    assert (len(credentials), credentials._size) == (0, 0)


@pytest.mark.parametrize("field", [b"", b"X-Trace: {}\r\n", b"X-Trace: a{}\r\n"])
async def test_a_token_that_stands_elsewhere_too_makes_another_block(clock: TurnedClock, field: bytes) -> None:
    site = Site(clock, own={**OWN, "vary": ["x-trace"]})
    anna, berta = site.token(), site.token("berta")
    for inside in (anna, berta):
        more = field.replace(b"{}", b"Bearer " + inside)
        for token in (anna, berta, anna, berta):
            assert (await site.ask("own", token, more))[1] == (b"anna" if token is anna else b"berta")


async def test_a_longer_credential_than_any_token_is_left_to_the_app(clock: TurnedClock) -> None:
    site = Site(clock, all={})
    await site.ask("all", site.token())
    assert (await site.ask("all", b"a" * LONGEST_CREDENTIAL))[0] == 401
    assert len(site.edge._credentials) == 1


async def test_a_route_without_identity_gets_the_credential_that_the_client_sent(clock: TurnedClock) -> None:
    keyed = {"identity": [], "authorization": "key", "path": "/keyed"}
    site = Site(clock, all={}, keyed=keyed)
    anna, berta = site.token(), site.token("berta")
    for token in (anna, berta):
        for path in ("all", "keyed", "keyed", "all"):
            assert (await site.ask(path, token))[0] == 200
    sent = [request.headers.get("authorization") for request in site.upstream.requests]
    assert sent == [None, f"Bearer {anna.decode()}", f"Bearer {berta.decode()}"]
    assert await site.at_edge("keyed", anna)


async def test_limits_that_count_hits_are_asked_once_for_each_that_the_edge_answers(clock: TurnedClock) -> None:
    site = Site(clock, own=OWN, open={"identity": []})
    token = site.token()
    for path, credential in (("own", token), ("open", None)) * 2:
        await site.ask(path, credential)
    counted: list[tuple[str | None, str, float]] = []
    left = 3

    def admit(principal: Any, client: str, now: float) -> bool:
        if len(counted) == left:
            return False
        counted.append((None if principal is None else principal.subject, client, now))
        return True

    for known_target in site.edge.known_targets.values():
        known_target.recall = structs.replace(known_target.recall, admit=admit)
        known_target.guarded = True
    for path, credential, user in (("own", token, "anna"), ("open", None, None)):
        counted.clear()
        answers = [await site.at_edge(path, credential) for _ in range(6)]
        assert answers == [True, True, True, False, False, False]
        assert counted == [(user, "192.0.2.1", clock.now())] * 3
