"""Users with tokens, and the upstream that answers them: what one was answered must never reach another."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

ISSUER = "https://id.example.com"
SECRET = "the secret that the issuer shares with the gateway"
PLANS = ("free", "silver", "gold")
_BEGAN = int(time.time())
_AS_SENT = frozenset(("x-request-id", "x-forwarded-for", "forwarded", "traceparent"))
"""Fields of a request to an upstream that tell of the request itself."""


def token(**claims: Any) -> str:
    """A token of the test's issuer (HS256: to sign and to verify many takes no time)."""
    claims = {"iss": ISSUER, "aud": "shop", "iat": _BEGAN, "exp": _BEGAN + 24 * 3600, **claims}
    parts = (_encoded(json.dumps(each).encode()) for each in ({"alg": "HS256", "typ": "JWT"}, claims))
    text = ".".join(parts)
    return f"{text}.{_encoded(hmac.digest(SECRET.encode(), text.encode(), hashlib.sha256))}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def user(number: int) -> tuple[str, str]:
    """A user's name and plan."""
    return f"user-{number}", PLANS[number % len(PLANS)]


def settings(origin: str, **more: Any) -> dict[str, Any]:
    """Three partitions, alone and as parts of one response. `origin` is the upstream's URL."""
    common = {"upstream": "api", "ttl": "10m", "identity": ["shop"]}
    own = {"per": ["sub"], "forward": {"x-user": "sub"}}
    plan = {"per": ["plan"], "forward": {"x-plan": "plan"}}
    part = {"upstream": "api", "ttl": "10m"}
    return {
        "workers": 2,
        "access_log": False,
        "upstreams": {"api": {"url": origin, "timeout": "60s", "max_connections": 64}},
        "identity": {"shop": {"issuer": ISSUER, "audience": ["shop"], "algorithms": ["HS256"], "secret": SECRET}},
        "routes": {
            "all": {**common, "path": "/all/{id}"},
            "own": {**common, "path": "/own/{id}", **own},
            "plan": {**common, "path": "/plan/{id}", **plan},
            "screen": {
                "path": "/screen/{id}",
                "identity": ["shop"],
                "parts": {
                    "all": {**part, "path": "/all/{id}"},
                    "own": {**part, "path": "/own/{id}", **own},
                    "plan": {**part, "path": "/plan/{id}", **plan},
                },
            },
        },
        **more,
    }


@dataclass
class Shop:
    """An upstream that says whom it answers. `seen` has the fields that it got, by path, user and plan."""

    url: str = ""
    seen: dict[tuple[str, str, str], set[tuple[tuple[str, str], ...]]] = field(default_factory=dict)
    requests: int = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                line, *lines = head.strip().split("\r\n")
                fields = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
                path = line.split(" ")[1]
                who = fields.get("x-user", ""), fields.get("x-plan", "")
                kept = tuple(sorted(pair for pair in fields.items() if pair[0] not in _AS_SENT))
                self.seen.setdefault((path, *who), set()).add(kept)
                self.requests += 1
                body = json.dumps({"path": path, "user": who[0], "plan": who[1]}).encode()
                # What is for one user its upstream calls private, as it would.
                private = b"cache-control: private, max-age=60\r\n" if who[0] else b""
                about = b"content-type: application/json\r\ncontent-length: %d\r\n%b\r\n" % (len(body), private)
                writer.write(b"HTTP/1.1 200 OK\r\n" + about + body)
        writer.close()


@asynccontextmanager
async def shop() -> AsyncIterator[Shop]:
    found = Shop()
    writers: set[asyncio.StreamWriter] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        await found.answer(reader, writer)

    server = await asyncio.start_server(answer, "127.0.0.1", 0, limit=2**20)
    found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield found
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await asyncio.sleep(0)


NOISE = ("", "Accept-Language: de\r\n", "X-User: user-0\r\n", "User-Agent: phone\r\n")


@dataclass
class Crowd:
    """What clients of a gateway found: `wrong` are responses of another user, `odd` those that are no response."""

    answers: Counter[str] = field(default_factory=Counter)
    hits: int = 0
    cancelled: int = 0
    wrong: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)

    async def client(self, url: str, turns: int, users: int, dice: random.Random) -> None:
        """One client after the other on a connection each has for a while, as behind a proxy of a mobile network."""
        port = int(url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(turns):
            # Half of the requests are of few users, who ask again and again.
            name, plan = user(dice.randrange(users if dice.random() < 0.5 else max(1, users // 100)))
            route = dice.choice(("all", "own", "own", "plan", "screen"))
            credential = token(sub=name, plan=plan, device=dice.randrange(2))
            path = f"/{route}/{dice.randrange(2)}"
            field_lines = f"Host: shop.test\r\n{dice.choice(NOISE)}Authorization: Bearer {credential}\r\n"
            writer.write(f"GET {path} HTTP/1.1\r\n{field_lines}\r\n".encode())
            if dice.random() < 0.02:
                await asyncio.sleep(dice.choice((0, 0.001, 0.01)))
                self.cancelled += 1
                writer.transport.abort()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                continue
            status, fields, body = await _read(reader)
            self._judge(route, name, plan, status, fields, body)
        writer.close()

    def _judge(self, route: str, name: str, plan: str, status: int, fields: dict[str, str], body: bytes) -> None:
        self.answers[route] += 1
        self.hits += "; hit" in fields.get("cache-status", "")
        wanted = {"all": ("", ""), "own": (name, ""), "plan": ("", plan)}
        if status != 200:
            self.odd.append(f"{route} {status} {body[:200]!r}")
            return
        found = json.loads(body)
        parts = {each: found[each] for each in wanted} if route == "screen" else {route: found}
        for each, said in parts.items():
            if (said["user"], said["plan"]) != wanted[each]:
                self.wrong.append(f"{route} of {name}, {plan}: {body[:200]!r}")


async def _read(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    async with asyncio.timeout(120):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *lines = head.strip().split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
        if fields.get("transfer-encoding") == "chunked":
            body = b""
            while length := int((await reader.readline()).split(b";")[0], 16):
                body += (await reader.readexactly(length + 2))[:-2]
            await reader.readline()
        else:
            body = await reader.readexactly(int(fields.get("content-length", 0)))
    return int(line.split(" ")[1]), fields, body
