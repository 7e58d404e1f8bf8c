"""Attacks by header blocks: what one client writes beside a credential changes no response for others."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends
from fastapi.responses import PlainTextResponse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway import Principal, Upstream, cached, upstream
from gateway.app.gateway import Gateway
from gateway.identity.key_source import Stored
from gateway.testing import StubUpstream, TurnedClock
from tests.support.edge_lines import Counted, Line, asked
from tests.support.gateways import gateway
from tests.support.scale import size
from tests.support.tokens import TestIssuer

issuer = TestIssuer()
WEB = {"issuer": issuer.url, "jwks": json.loads(issuer.jwks), "audience": ["web"], "from": ["x-token"]}


@pytest.mark.parametrize(
    ("field", "status"), [(b'If-None-Match: "v1", x', b" 304 "), (b"Accept-Encoding: gzip, x", b" 200 ")]
)
async def test_a_credential_that_is_found_in_another_field_changes_no_form_of_a_response(
    clock: TurnedClock, field: bytes, status: bytes
) -> None:
    body = b"much of it " * 200
    fields = {"etag": '"v1"', "content-type": "text/plain"}
    upstream = StubUpstream(lambda _: httpx.Response(200, content=body, headers=fields))
    common = {"upstream": "api", "ttl": "1000s"}
    routes = {"open": {**common, "path": "/1"}, "own": {**common, "path": "/own", "identity": ["web"]}}
    app = gateway(upstream, routes, clock=clock, identity={"web": WEB})
    counted = Counted(app)

    async def ask(more: bytes) -> bytes:
        return await asked(Line(counted), b"GET /1 HTTP/1.1\r\nHost: gateway.test\r\n%b\r\n" % more)

    await ask(b"Accept: a/b\r\n")
    # Without what is taken for the credential, both have the lines `: X-Token` and `X-Token: FIELD`.
    await ask(b"X-Token: X-Token: X-Token\r\nX-Token: %b\r\n" % field)
    for _ in range(3):  # a compressed form is made behind the first, for the next ones
        assert status in await ask(b"%b: X-Token\r\nX-Token: %b\r\n" % (field, field))
        await app.engine.background.settle()
    for _ in range(2):
        head, _, found = (await ask(b"")).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert found == body


# --- whatever users send at once, and whatever the upstream says ---------------------------------------------------

USERS = {"anna": "gold", "berta": "silver", "carla": "gold"}
OWN: dict[str, Any] = {"per": ["sub"], "forward": {"x-user": "sub"}}
PLAN: dict[str, Any] = {"per": ["plan"], "forward": {"x-plan": "plan"}}
STALE: dict[str, Any] = {"stale_while_revalidate": "20s", "stale_if_error": "1h"}
COMMON: dict[str, Any] = {"upstream": "api", "ttl": "10s", "identity": ["shop"]}
PART: dict[str, Any] = {"upstream": "api", "ttl": "10s", **STALE}
ROUTES: dict[str, dict[str, Any]] = {
    "all": {**COMMON, **STALE},
    "own": {**COMMON, **STALE, **OWN},
    "plan": {**COMMON, **PLAN},
    "both": {**COMMON, **STALE, "per": ["sub", "plan"], "forward": {"x-user": "sub", "x-plan": "plan"}},
    "cdn": {**COMMON, **OWN, "downstream": "shared"},
    "origin": {**COMMON, **OWN, **STALE, "ttl": "origin", "methods": "any"},
    "group": {**COMMON, "ttl": "origin", "methods": "any"},
    "token": {**COMMON, "ttl": "origin", "forward_token": True},
    "mine": {**COMMON, "ttl": "origin", "forward_token": True, "per": ["sub"]},
    "maybe": {**COMMON, **OWN, "optional": True},
}
for name, route in ROUTES.items():
    route["path"] = f"/{name}/{{id}}"
ROUTES["screen"] = {
    "path": "/screen/{id}",
    "identity": ["shop"],
    "parts": {
        "all": {**PART, "path": "/all/{id}"},
        "plan": {**PART, **PLAN, "path": "/plan/{id}"},
        "own": {"route": "own"},
        "origin": {**PART, **OWN, "path": "/origin/{id}", "ttl": "origin", "optional": True},
        "of": {**PART, "path": "/of/{own.first}", "optional": True},
    },
}
WHO = re.compile(rb"\b(?:" + "|".join((*USERS, *USERS.values())).encode() + rb")\b")


class Mirror(StubUpstream):
    """An upstream that says in body, ETag and cookie whom it answers, by all that it was sent. Its responses have
    `fields`, with the user for `{}`. With `confirms` it confirms whatever a request has an ETag of."""

    def __init__(self) -> None:
        super().__init__(self._answered)
        self.status, self.confirms = 200, False
        self.fields: dict[str, str] = {}

    def _answered(self, request: httpx.Request) -> httpx.Response:
        sent = b" ".join((request.url.raw_path, *(value for _, value in request.headers.raw)))
        tokens = [each for each in sent.split(b" ") if each.count(b".") == 2 and len(each) > 100]
        claims = [base64.urlsafe_b64decode(each.split(b".")[1] + b"==") for each in tokens]
        said = sorted({each.decode() for each in WHO.findall(b" ".join((sent, *claims)))})
        fields = {name: value.replace("{}", "-".join(said)) for name, value in self.fields.items()}
        if tokens and any(each in fields.get("cache-control", "") for each in ("public", "must-revalidate")):
            fields["cache-control"] = "private, max-age=10"  # RFC 9111 §3.5: what says so may be stored for others
        if self.status == 0:
            raise httpx.ConnectError("down")
        if self.confirms and "if-none-match" in request.headers:
            return httpx.Response(304, headers=fields)
        content = json.dumps({"first": (*said, "nobody")[0], "all": said}).encode()
        if request.headers.get("range") == "bytes=0-3" and self.status == 200:
            fields["content-range"] = f"bytes 0-3/{len(content)}"
            return httpx.Response(206, content=content[:4], headers=fields)
        return httpx.Response(self.status, content=content, headers={"content-type": "application/json"} | fields)


SAID: tuple[dict[str, str], ...] = (
    *({"cache-control": "max-age=10", "etag": '"v1"'}, {"cache-control": "max-age=10", "etag": '"v1-{}"'}) * 4,
    {"cache-control": "private, max-age=10", "etag": '"v1"'},
    {"cache-control": "public, max-age=2, stale-while-revalidate=100", "vary": "x-user, accept"},
    {"cache-control": "public, max-age=10", "vary": "Authorization"},
    {"cache-control": "max-age=10", "set-cookie": "sid={}"},
    {"cache-control": 'max-age=10, private="set-cookie"', "set-cookie": "sid={}"},
    {"cache-control": "max-age=0, must-revalidate", "etag": '"v1"'},
    {"cache-control": "max-age=10", "location": "/origin/1", "content-location": "/origin/1"},
    {"cache-control": "no-store"},
    {"gateway-cache-control": "max-age=10", "cache-control": "private"},
    {},
)
MORE = (
    *("",) * 8,
    *('If-None-Match: "v1"', "If-None-Match: *", "Range: bytes=0-3", "Cache-Control: no-cache"),
    *("Cache-Control: only-if-cached", "Accept: a/b", "Accept-Encoding: gzip", "X-User: {other}", "X_User: {other}"),
    *("Connection: x-user", "Connection: authorization", ":principal: a", "X-Request-ID: a", "Cookie: a=1"),
)


def _removes_names(path: str) -> bool:
    """Whether a client's own fields with a name don't reach the upstream."""
    return path.startswith("screen") or "x-user" in ROUTES.get(path.partition("/")[0], {}).get("forward", {})


@dataclass
class Sent:
    path: str
    user: str
    line: Line
    answer: asyncio.Task[bytes]


class Town:
    """A gateway whose users share connections, as behind a proxy."""

    def __init__(self) -> None:
        self.clock = TurnedClock()
        self.mirror = Mirror()
        shop = {**WEB, "from": ["authorization"]}
        api = {"url": "http://api.test", "timeout": "5s", "breaker_failures": 0}
        settings = {"identity": {"shop": shop}, "compression": [], "upstreams": {"api": api}}
        self.app = gateway(self.mirror, ROUTES, clock=self.clock, **settings)
        _add_handlers(self.app)
        self.counted = Counted(self.app)
        self.idle: list[Line] = []
        self.under_way: list[Sent] = []

    async def live(self, story: list[tuple[str, Any]]) -> None:
        self.clock.turn(100_000)
        self.app.engine.memory.clear()
        self.app.worker_state.providers["shop"].source._use(Stored(self.clock.now(), issuer.jwks))
        self.mirror.status, self.mirror.fields, self.mirror.confirms = 200, SAID[0], False
        self.tokens = {user: self._token(user) for user in USERS}
        for kind, what in story:
            await getattr(self, f"_{kind}")(what)
        await self._gate(True)
        await self.app.engine.settle()

    def _token(self, user: str) -> str:
        now = self.clock.now()
        claims = {"sub": user, "plan": USERS[user], "iat": now - 10, "exp": now + 90_000, "aud": "web"}
        return issuer.sign("Ed25519", **claims).decode()

    async def _ask(self, what: tuple[str, str, str, str, bool]) -> None:
        method, path, user, more, leaves = what
        other = next(each for each in USERS if each != user)
        more = more if _removes_names(path) else more.replace("{other}", "nobody")
        fields = ["Host: gateway.test", f"Authorization: Bearer {self.tokens[user]}", more.replace("{other}", other)]
        head = "\r\n".join([f"{method} /{path} HTTP/1.1", *filter(None, fields), "", ""])
        line = self.idle.pop() if self.idle else Line(self.counted)
        line.send(head.encode())
        if leaves:
            for _ in range(3):
                await asyncio.sleep(0)
            line.hang_up()
            return
        sent = Sent(path, user, line, asyncio.ensure_future(line.answer()))
        self.under_way.append(sent)
        if self.mirror.gate.is_set():
            await self._landed()
        else:
            await asyncio.sleep(0)

    async def _landed(self) -> None:
        for sent in self.under_way:
            answer = await sent.answer
            found = {each.decode() for each in WHO.findall(answer)}
            assert found <= {sent.user, USERS[sent.user]}, (sent, answer)
            if sent.line.pipe.closed:
                sent.line.hang_up()
            else:
                self.idle.append(sent.line)
        self.under_way.clear()

    async def _gate(self, opens: bool) -> None:
        if not opens:
            self.mirror.gate.clear()
            return
        self.mirror.gate.set()
        await self._landed()

    async def _turn(self, seconds: float) -> None:
        self.clock.turn(seconds)

    async def _say(self, what: tuple[int, dict[str, str], bool]) -> None:
        self.mirror.status, self.mirror.fields, self.mirror.confirms = what

    async def _purge(self, what: dict[str, Any]) -> None:
        await self.app.purge(**what)


def _add_handlers(app: Gateway) -> None:
    @app.router.get("/handler/{id}")
    @cached(ttl="10s", stale_while_revalidate="20s", stale_if_error="1h", identity=["shop"], per=["sub"])
    async def of_user(id: int, who: Principal, api: Annotated[Upstream, upstream("api")]) -> Any:
        await api.get(f"/handler/{id}")
        return [who.subject, "nobody"]

    @app.router.get("/dependent/{id}")
    @cached(ttl="10s", identity=["shop"], per=["plan"], cookies="ignore")
    async def of_plan(id: int, plan: Annotated[str, Depends(_plan)], api: Annotated[Upstream, upstream("api")]) -> Any:
        await api.get(f"/dependent/{id}")
        return PlainTextResponse(plan)


def _plan(who: Principal) -> str:
    return str(who.claim("plan"))


PATHS = [f"{name}/{number}" for name in (*ROUTES, "handler", "dependent") for number in "112"]


@st.composite
def steps(draw: st.DrawFn) -> tuple[str, Any]:
    kind = draw(st.sampled_from(("ask",) * 16 + ("gate", "gate", "turn", "turn", "say", "say", "purge")))
    if kind == "ask":
        method = draw(st.sampled_from(("GET",) * 8 + ("HEAD", "POST")))
        user, more = draw(st.sampled_from([*USERS])), draw(st.sampled_from(MORE))
        return kind, (method, draw(st.integers(0, 2)), user, more, not draw(st.integers(0, 9)))
    if kind == "gate":
        return kind, draw(st.booleans())
    if kind == "turn":
        return kind, draw(st.sampled_from((1.0, 3.0, 11.0, 11.0, 11.0, 31.0, 600.0)))
    if kind == "say":
        status = draw(st.sampled_from((200,) * 6 + (404, 500, 503, 0)))
        return kind, (status, draw(st.sampled_from(SAID)), draw(st.booleans()))
    return kind, {"routes": [draw(st.sampled_from([*ROUTES]))], "soft": draw(st.booleans())}


@st.composite
def stories(draw: st.DrawFn) -> list[tuple[str, Any]]:
    """What happens with few paths, so that users meet at them."""
    few = draw(st.lists(st.sampled_from(PATHS), min_size=1, max_size=2))

    def placed(what: Any) -> Any:
        return (what[0], few[what[1] % len(few)], *what[2:])

    found = draw(st.lists(steps(), min_size=20, max_size=60))
    return [(kind, placed(what) if kind == "ask" else what) for kind, what in found]


@pytest.fixture(scope="module")
def town() -> Iterator[tuple[asyncio.Runner, Town]]:
    with asyncio.Runner() as runner:

        async def made() -> Town:
            return Town()

        yield runner, runner.run(made())


@settings(max_examples=size("attack_stories"), deadline=None, suppress_health_check=list(HealthCheck))
@given(story=stories())
def test_nobody_is_told_of_another(town: tuple[asyncio.Runner, Town], story: list[tuple[str, Any]]) -> None:
    runner, found = town
    runner.run(found.live(story))


def test_all_kinds_of_responses_were_among_them(town: tuple[asyncio.Runner, Town]) -> None:
    found = Counter[str]()
    for line in town[1].app.metrics.render().decode().splitlines():
        if counted := re.match(r'gateway_requests_total\{outcome="([a-z_]+)".* ([0-9.]+)$', line):
            found[counted[1]] += int(float(counted[2]))
    print(f"{sum(found.values())} responses: {dict(found)}")
    assert {"hit", "miss", "bypass", "revalidated", "error", "stale"} <= {*found}
    assert found["hit"] > sum(found.values()) / 4
