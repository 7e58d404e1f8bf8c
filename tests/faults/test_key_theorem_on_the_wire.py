"""The theorem of the key (SECURITY.md) on all ways that an answer can take: past ASGI, by the app, by an aggregate's
parts (asked one by one, by a batch, through a route), and by the edge that joins stored parts; and with the very bytes
that go out, which the writer of plain requests makes.

The upstream answers with what it saw. Two requests go to one gateway; the second goes to another as well, that has
stored nothing of it. Where both answer, they must answer the same: whoever is answered from what was stored for another
would have been answered so by the upstream.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from gateway.app.gateway import Gateway, create_app
from gateway.edge.protocol import GatewayProtocol
from gateway.http.headers import is_dangerous
from gateway.testing import TurnedClock
from gateway.upstreams.connection import PlainConnection
from tests.faults.scenarios import path_of, response
from tests.support.edge_lines import Counted
from tests.support.gateways import lose_wholes, served
from tests.support.key_requests import EXAMPLES, FIELDS, PAIRS, number
from tests.support.raw import Connection, raw_upstream

UNSEEN = (b"x-request-id", b"traceparent", b"if-none-match", b"if-modified-since")
VARIES = (b"accept", b"x-tenant")
PLAIN_PIECES = ["x", "X", "%78", "x;y", "%41", "x:y", "a=b", "accept:a", "%25", "~"]


def _part(path: str, **more: Any) -> dict[str, Any]:
    return {"upstream": "api", "path": path, "ttl": "60s", **more}


ROUTES: dict[str, Any] = {
    "timed": {"path": "/timed/{n}/{rest:path}", "upstream": "api", "ttl": "60s"},
    "chosen": {
        "path": "/chosen/{n}/{rest:path}",
        "upstream": "api",
        "ttl": "60s",
        "vary": ["accept", "x-tenant"],
        "query": ["a", "b"],
        "authorization": "key",
        "cookies": ["session"],
    },
    "follows": {"path": "/follows/{n}/{rest:path}", "upstream": "api", "authorization": "key", "cookies": ["session"]},
    # Where the upstream says `public`, answers to requests with credentials are stored (RFC 9111 §3.5).
    "public": {"path": "/public/{n}/{rest:path}", "upstream": "api", "authorization": "key", "cookies": ["session"]},
    "whole": {
        "path": "/whole/{n}/{user}",
        "tags": ["wholes"],
        "parts": {
            "profile": _part("/users/{n}/{user}", vary=["accept"]),
            "device": _part("/device/{n}?d={header.x-tenant}", optional=True),
            "language": _part("/language/{n}", headers={"x-language": "{header.accept-language}"}),
            "page": _part("/page/{n}", query=["a"]),
            "key": _part("/key/{n}", authorization="key", cookies=["session"]),
        },
    },
    # Which header fields its parts see no template says: such a whole the edge joins.
    "joined": {
        "path": "/joined/{n}/{user}",
        "tags": ["wholes"],
        "parts": {
            "profile": _part("/users/{n}/{user}", vary=["accept", "x-tenant"]),
            "page": _part("/page/{n}", query=["a"]),
            "key": _part("/key/{n}", authorization="key", cookies=["session"]),
            "follows": {"upstream": "api", "path": "/follows/{n}/x"},
        },
    },
    "deep": {
        "path": "/deep/{n}/{user}",
        "tags": ["wholes"],
        "parts": {
            "profile": _part("/users/{n}/{user}", vary=["accept", "x-tenant"]),
            "more": _part("/more/{n}/{profile.saw}"),
            "route": {"route": "chosen", "path": "/chosen/{n}/x?a={query.a}", "optional": True},
            "follows": {"upstream": "api", "path": "/follows/{n}/x"},
            "each": _part("/each/{n}/{item}", for_each="profile.ids"),
            "prices": _part(
                "/price/{n}/{item}?t={header.x-tenant}",
                for_each="profile.ids",
                batch="/batch/{n}?ids={ids}&t={header.x-tenant}",
                optional=True,
            ),
        },
    },
}
FOLLOWING = ("/follows", "/public")
KINDS = ("timed", "chosen", "follows", "public", "whole", "joined", "deep")

Request = tuple[str, str, list[tuple[str, str]]]
requests: st.SearchStrategy[Request] = st.tuples(
    st.sampled_from(PLAIN_PIECES),
    st.lists(st.sampled_from(PAIRS), max_size=2).map("&".join),
    st.lists(
        st.sampled_from([pair for pair in FIELDS if pair[0] not in ("Range", "If-None-Match", "Expect")]),
        max_size=4,
        unique_by=lambda field: field[0].lower(),
    ),
)
twins = requests.flatmap(
    lambda one: st.tuples(
        st.just(one),
        st.one_of(
            st.builds(lambda fields: (one[0], one[1], fields), requests.map(lambda other: other[2])),
            st.builds(lambda field: (one[0], one[1], [*one[2], field]), st.sampled_from(FIELDS[-3:])),
            st.builds(lambda query: (one[0], query, one[2]), requests.map(lambda other: other[1])),
            requests,
        ),
    )
)


def saw(head: bytes) -> dict[str, Any]:
    """What an upstream makes of a request: all that it sees, or, where it says `Vary`, what it goes by."""
    method, target, _ = head.split(b"\r\n", 1)[0].split(b" ")
    lines = [line.partition(b":") for line in head.split(b"\r\n")[1:] if line]
    fields = [(name.lower(), value) for name, _, value in lines if name.lower() not in UNSEEN]
    fields.sort(key=lambda field: field[0])  # the lines of one field in their order, with their white space
    if target.startswith((b"/follows", b"/public")):
        kept = (b"host", b"authorization", b"cookie", *VARIES)
        fields = [(name, value) for name, value in fields if name in kept or is_dangerous(name)]
    if target.startswith(b"/batch"):  # which elements are asked for together is nobody's business
        target = target.partition(b"ids=")[0] + target.partition(b"&")[2]
    text = repr((method, target, fields))
    return {"saw": hashlib.sha256(text.encode()).hexdigest(), "ids": ["1", "2"], "text": text}


async def upstream(connection: Connection) -> None:
    while head := await connection.request():
        content: Any = saw(head)
        path = path_of(head)
        if path.startswith("/batch"):
            ids = unquote(path.partition("ids=")[2].partition("&")[0])
            content = [{"id": each} | content for each in ids.split(",")]
        more = (
            ["Vary: Accept, X-Tenant", "Cache-Control: max-age=60"] if path.startswith(("/follows", "/public")) else []
        )
        more += ["Cache-Control: public"] if path.startswith("/public") else []
        await connection.send(response(json.dumps(content).encode(), "200 OK", "Content-Type: application/json", *more))


class Pair:
    """Two gateways that share nothing, on real sockets, before the one upstream."""

    def __init__(self) -> None:
        self.apps: list[Gateway] = []
        self.urls: list[str] = []
        self.counted: list[Counted] = []
        self.seen: Counter[str] = Counter()
        self.joined = 0
        """Wholes that the edge joined: neither the app nor the pass-through was asked."""
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        raw = await self._stack.enter_async_context(raw_upstream(upstream))
        for _ in range(2):
            config = {"redis_url": "none", "upstreams": {"api": {"url": raw.url, "timeout": "5s"}}, "routes": ROUTES}
            app = create_app({**config, "access_log": False}, clock=TurnedClock())
            await app.start()
            self._stack.push_async_callback(app.stop)
            counted = Counted(app)
            self.urls.append(await self._stack.enter_async_context(served(counted, http=GatewayProtocol)))
            self.apps.append(app)
            self.counted.append(counted)

    async def stop(self) -> None:
        await self._stack.aclose()

    async def ask(self, at: int, kind: str, request: Request, name: str) -> tuple[int, bytes]:
        path, query, fields = request
        lines = [f"{field}: {value}" for field, value in fields]
        if not any(field == "Host" for field, _ in fields):
            lines.append("Host: gateway.test")
        head = "\r\n".join([f"GET /{kind}/{name}/{path}?{query} HTTP/1.1", *lines, "", ""])
        host, _, port = self.urls[at].removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            async with asyncio.timeout(20):
                writer.write(head.encode("latin-1"))
                asked = self.counted[at].asked
                answer = await reader.readuntil(b"\r\n\r\n")
                self.joined += b"detail=joined" in answer and self.counted[at].asked == asked
                fields_told = dict(line.split(b": ", 1) for line in answer.split(b"\r\n")[1:] if line)
                body = await reader.readexactly(int(fields_told[b"content-length"]))
        finally:
            writer.close()
        return int(answer[9:12]), body

    async def held(self, kind: str, one: Request, two: Request) -> None:
        """Whether both are answered at the first gateway, in turn and time and again, as if nothing had been stored."""
        name = f"n{next(number)}"
        status, first = await self.ask(0, kind, one, name)
        if status != 200:
            self.seen["refused"] += 1
            return
        right = (status, json.loads(first)), await self._read(1, kind, two, name)
        for way in ("stored for another", "stored for it", "of stored parts", "of stored parts, again"):
            for request, wanted in zip((two, one), reversed(right), strict=True):
                if way.startswith("of stored parts"):
                    lose_wholes(self.apps[0])
                assert await self._read(0, kind, request, name) == wanted, (way, one, two)
            self.seen[kind] += 1

    async def _read(self, at: int, kind: str, request: Request, name: str) -> tuple[int, Any]:
        status, body = await self.ask(at, kind, request, name)
        return status, json.loads(body) if status == 200 else None


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[asyncio.Runner, Pair]]:
    with asyncio.Runner() as runner:
        pair = Pair()
        runner.run(pair.start())
        yield runner, pair
        runner.run(pair.stop())


TENANTS: list[Request] = [("x", "a=1", [("X-Tenant", each)]) for each in "12"]
LANGUAGES: list[Request] = [("x", "a=1", [("Accept-Language", each)]) for each in ("de", "en")]
UNSENT: Request = ("x", "a=1", [("X-Tenant", "1"), ("Connection", "x-tenant")])
"""Its tenant ends at this hop (RFC 9110 §7.6.1): the upstream sees none, and varies on it all the same."""
BEARERS: list[Request] = [("x", "", [("Authorization", f"Bearer {each}")]) for each in "12"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(both=twins)
@example(both=(TENANTS[0], TENANTS[1]))
@example(both=(UNSENT, TENANTS[0]))
@example(both=(LANGUAGES[0], LANGUAGES[1]))
@example(both=(BEARERS[0], BEARERS[1]))
@example(both=(BEARERS[0], ("x", "", [])))
def test_whoever_is_answered_from_what_was_stored_for_another_would_have_been_answered_so(
    pair: tuple[asyncio.Runner, Pair], kind: str, both: tuple[Request, Request]
) -> None:
    runner, gateways = pair
    asked = gateways.counted[0].asked
    runner.run(gateways.held(kind, *both))
    event(f"{kind}: {gateways.counted[0].asked - asked} asked of the app or the pass-through, of 9")


def test_all_ways_were_taken(pair: tuple[asyncio.Runner, Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those past ASGI and by plain requests, by the app, and by the edge's joins."""
    runner, gateways = pair
    heads: list[bytes] = []
    write = PlainConnection.write

    def noted(self: PlainConnection, head: bytes, *rest: Any, **named: Any) -> Any:
        heads.append(head.split(b" ")[1])
        return write(self, head, *rest, **named)

    monkeypatch.setattr(PlainConnection, "write", noted)
    counted = gateways.counted[0]
    joined = gateways.joined
    for kind in KINDS:
        passed = counted.passed
        runner.run(gateways.held(kind, *TENANTS))
        assert counted.passed > passed
    names = {head.decode().split("/")[1] for head in heads}
    parts = {"users", "device", "language", "page", "key", "more", "each", "batch"}
    assert names == {"timed", "chosen", "follows", "public", *parts}
    assert gateways.joined > joined
    assert gateways.seen["refused"] < sum(gateways.seen.values()) / 2
