"""The key holds what is sent, byte for byte: of any two requests that are answered from one entry, the upstream would
have seen the same lines of the fields that select it. Held on the wire, over raw field lines: doubled fields, case,
spaces, commas, empty lines and elements, quotes, bytes above ASCII.

The upstream's answer tells which bytes it saw of two fields. Each request goes to a gateway that has answered the other
one, and to one that has stored nothing: the answers must be the same.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from gateway.app.gateway import create_app
from gateway.edge.protocol import GatewayProtocol
from gateway.testing import TurnedClock
from tests.faults.scenarios import response
from tests.support.gateways import served
from tests.support.raw import Connection, raw_upstream
from tests.support.scale import size

EXAMPLES = size("sent_key_pairs")
NAMES = ("X-Tenant", "Accept-Language")
number = itertools.count()

ROUTES: dict[str, Any] = {
    "timed": {"path": "/timed/{n}", "upstream": "api", "ttl": "60s", "vary": ["x-tenant", "accept-language"]},
    "follows": {"path": "/follows/{n}", "upstream": "api"},
    "header": {
        "path": "/header/{n}",
        "parts": {
            "one": {
                "upstream": "api",
                "path": "/part/{n}",
                "ttl": "60s",
                "headers": {"x-tenant": "{header.x-tenant}", "accept-language": "{header.accept-language}"},
            },
        },
    },
    "path": {
        "path": "/path/{n}",
        "parts": {"one": {"upstream": "api", "path": "/part/{n}?t={header.x-tenant}", "ttl": "60s"}},
    },
    "part": {
        "path": "/part/{n}",
        "parts": {"one": {"upstream": "api", "path": "/follows/{n}", "ttl": "origin"}},
    },
}

Lines = tuple[tuple[str, str], ...]
PIECES = ["a", "A", "b", ",", ", ", " ,", " ", "\t", '"', '"a,b"', ";q=0.5", "; q=1", "\xe9", "\xff", "de"]
pieces = st.sampled_from(PIECES)
line = st.tuples(st.sampled_from([*NAMES, "x-tenant"]), st.lists(pieces, max_size=4).map("".join))
lines = st.lists(line, max_size=3).map(tuple)
near = lines.flatmap(
    # Often the same but for a comma, a space or a line.
    lambda one: st.tuples(
        st.just(one),
        st.one_of(
            lines,
            line.map(lambda more: (*one, more)),
            st.permutations(one).map(tuple),
            st.sampled_from([",", " ,", ", ", "a", ""]).map(
                lambda more: tuple((name, value + more) for name, value in one)
            ),
        ),
    )
)


async def upstream(connection: Connection) -> None:
    """Tells the bytes that it saw of both fields, each line for itself, and what it was asked for."""
    while head := await connection.request():
        first, *rest = head.split(b"\r\n")
        names = [name.lower().encode() for name in NAMES]
        saw = sorted(line for line in rest if line.partition(b":")[0].lower() in names)
        body = b'"' + b"|".join([first, *saw]).hex().encode() + b'"'
        more = ["Cache-Control: max-age=60", "Vary: X-Tenant, Accept-Language"]
        await connection.send(response(body, "200 OK", "Content-Type: application/json", *more))


class Gateways:
    """Two gateways on real sockets that share nothing, before one upstream."""

    def __init__(self) -> None:
        self.urls: list[str] = []
        self.seen: Counter[str] = Counter()
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        raw = await self._stack.enter_async_context(raw_upstream(upstream))
        for _ in range(2):
            config = {"redis_url": "none", "upstreams": {"api": {"url": raw.url}}, "routes": ROUTES}
            app = create_app({**config, "access_log": False}, clock=TurnedClock())
            await app.start()
            self._stack.push_async_callback(app.stop)
            self.urls.append(await self._stack.enter_async_context(served(app, http=GatewayProtocol)))

    async def stop(self) -> None:
        await self._stack.aclose()

    async def ask(self, at: int, path: str, fields: Lines) -> tuple[bytes, bytes]:
        """The status and body; and whether it was a hit is counted."""
        head = "".join(f"{name}: {value}\r\n" for name, value in fields)
        host, _, port = self.urls[at].removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            async with asyncio.timeout(20):
                writer.write(f"GET {path} HTTP/1.1\r\nHost: g.test\r\n{head}\r\n".encode("latin-1"))
                answer = await reader.readuntil(b"\r\n\r\n")
                told = dict(line.split(b": ", 1) for line in answer.split(b"\r\n")[1:] if line)
                body = await reader.readexactly(int(told[b"content-length"]))
        finally:
            writer.close()
        self.seen["refused"] += answer[9:12] != b"200"
        self.seen["hits"] += b"; hit" in told[b"cache-status"]
        return answer[9:12], body


@pytest.fixture(scope="module")
def gateways() -> Iterator[tuple[asyncio.Runner, Gateways]]:
    with asyncio.Runner() as runner:
        both = Gateways()
        runner.run(both.start())
        yield runner, both
        runner.run(both.stop())


def tenant(*values: str) -> Lines:
    return tuple(("X-Tenant", value) for value in values)


def language(*values: str) -> Lines:
    return tuple(("Accept-Language", value) for value in values)


@pytest.mark.parametrize("kind", ROUTES)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(both=near)
@example(both=(tenant("a,"), tenant("a")))
@example(both=(tenant("a", "b"), tenant("a, b")))
@example(both=(tenant("a", "b"), tenant("a")))
@example(both=(tenant("a", ""), tenant("a")))
@example(both=(tenant("a,b"), tenant("a, b")))
@example(both=(tenant(""), ()))
@example(both=(language("de, en"), language("EN,de")))
@example(both=(language("de;q=0.5,en"), language("en, de; q=0.5")))
def test_who_is_answered_from_one_entry_would_have_sent_the_same_bytes(
    gateways: tuple[asyncio.Runner, Gateways], kind: str, both: tuple[Lines, Lines]
) -> None:
    async def held() -> None:
        path = f"/{kind}/n{next(number)}"
        right = [await servers.ask(1, f"{path}x{at}", each) for at, each in enumerate(both)]
        right = [(status, _at(body, f"x{at}")) for at, (status, body) in enumerate(right)]
        hits = servers.seen["hits"]
        for at in (0, 1, 0, 1):
            status, body = await servers.ask(0, path, both[at])
            assert (status, _at(body, "")) == right[at], (kind, both)
        event(f"{kind}: {servers.seen['hits'] - hits} hits")

    runner, servers = gateways
    runner.run(held())


def _at(body: bytes, suffix: str) -> bytes:
    """What the upstream saw, of a path without the suffix that makes it another one."""
    text = body.strip(b'{}"').rpartition(b'"')[2]
    try:
        saw = bytes.fromhex(text.decode())
    except ValueError:
        return b"refused"
    path, _, rest = saw.partition(b" HTTP/1.1")
    name, mark, query = path.partition(b"?")
    return name.removesuffix(suffix.encode()) + mark + query + rest


def test_most_of_the_requests_were_answered_and_many_from_what_was_stored(
    gateways: tuple[asyncio.Runner, Gateways],
) -> None:
    runner, servers = gateways
    before = servers.seen["hits"]
    path = f"/timed/n{next(number)}"
    for fields in (tenant("a,"), tenant("a"), tenant(",a ,")):
        runner.run(servers.ask(0, path, fields))
    assert servers.seen["hits"] == before + 2
    assert servers.seen["refused"] < servers.seen["hits"]
