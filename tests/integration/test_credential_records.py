"""API keys and revocations of two gateways of two workers on one Redis: what was confirmed holds, also while Redis is
killed and comes back empty; and nothing of a credential is left anywhere."""

from __future__ import annotations

import asyncio
import base64
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import httpx
import orjson
import pytest
import redis
from joserfc.jws import JWSRegistry

from gateway.identity.api_keys import digest_of, new_key
from tests.support.processes import GatewayProcess, MakeValkey, StartGateway, Valkey
from tests.support.scale import size
from tests.support.tokens import encoded, symmetric

REVOCATIONS = size("revocations")
AT_ONCE = 4
CLIENTS = 8
AWAY = (0.3, 2.5, 1.0)
"""Seconds that Redis is away each time: shorter and longer than a revocation waits for it."""
HOLDS_WITHIN = 2.0
ADMIN = "a token for the test"
SECRET = "canary-secret-0123456789abcdef0123456789"
ISSUER = "https://id.example.com"
WORKERS = 4


def token_of(user: str) -> str:
    """A token that was issued a minute ago, and lives for an hour."""
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": "shop", "sub": user, "iat": now - 60, "exp": now + 3600}
    text = b".".join(encoded(orjson.dumps(part)) for part in ({"alg": "HS256"}, claims))
    return (text + b"." + encoded(JWSRegistry.algorithms["HS256"].sign(text, symmetric(SECRET.encode())))).decode()


def settings(origin: str, valkey: Valkey) -> dict[str, object]:
    items = {"upstream": "api", "path": "/items/{id}", "ttl": "1h", "tags": ["items"], "identity": ["shop"]}
    return {
        "redis_url": valkey.url,
        "workers": 2,
        "upstreams": {"api": {"url": origin}, "idp": {"url": "http://127.0.0.1:9"}},
        "identity": {
            "shop": {"issuer": ISSUER, "audience": "shop", "algorithms": ["HS256"], "secret": SECRET},
            "partner": {"keys": "redis"},
            "opaque": {"introspect": {"upstream": "idp", "client_id": "gateway", "client_secret": f"{SECRET}&"}},
        },
        "routes": {
            "items": items,
            "stock": {**items, "path": "/stock/{id}", "upstream_path": "/items/{id}", "identity": ["partner"]},
            "opaque": {**items, "path": "/opaque/{id}", "upstream_path": "/items/{id}", "identity": ["opaque"]},
        },
    }


@dataclass(frozen=True, slots=True)
class Revoked:
    issued: float
    answered: float
    complete: bool


@dataclass(frozen=True, slots=True)
class Asked:
    user: int
    began: float
    status: int


class Trial:
    def __init__(self, gateways: Sequence[GatewayProcess], valkey: Valkey) -> None:
        self.gateways = gateways
        self.valkey = valkey
        self.key = new_key()
        self.tokens = [token_of(f"user-{number}") for number in range(REVOCATIONS)]
        self.revoked: dict[int, Revoked] = {}
        self.asked: list[Asked] = []
        self.with_key: list[int] = []
        self.returns: list[float] = []
        self.stop = asyncio.Event()
        self._news = asyncio.Condition()

    async def ask(self, session: aiohttp.ClientSession) -> None:
        """Request by tokens that are about to be revoked or were just now, and by a key that never is."""
        while not self.stop.is_set():
            user = min(max(0, len(self.revoked) + random.randint(-20, 5)), REVOCATIONS - 1)
            began = time.monotonic()
            status = await self._status(session, "/items/1", {"authorization": f"Bearer {self.tokens[user]}"})
            self.asked.append(Asked(user, began, status))
            self.with_key.append(await self._status(session, "/stock/1", {"x-api-key": self.key}))
            await asyncio.sleep(random.uniform(0, 0.03))

    async def _status(self, session: aiohttp.ClientSession, path: str, headers: dict[str, str]) -> int:
        async with session.get(random.choice(self.gateways).url + path, headers=headers) as response:
            await response.read()
            return response.status

    async def revoke_all(self, admins: Sequence[httpx.AsyncClient]) -> None:
        room = asyncio.Semaphore(AT_ONCE)

        async def one(user: int) -> None:
            async with room:
                issued = time.monotonic()
                response = await admins[user % len(admins)].post("/revocations", json={"sub": f"user-{user}"})
                assert response.status_code in (200, 202), response.text
                self.revoked[user] = Revoked(issued, time.monotonic(), response.status_code == 200)
                async with self._news:
                    self._news.notify_all()
                await asyncio.sleep(0.02)

        await asyncio.gather(*(one(user) for user in range(REVOCATIONS)))

    async def restart_redis(self) -> None:
        for turn, away in enumerate(AWAY):
            share = REVOCATIONS * (turn + 1) // (len(AWAY) + 1)
            async with self._news:
                await self._news.wait_for(lambda: len(self.revoked) >= share)  # noqa: B023 - it is awaited here
            await asyncio.to_thread(self.valkey.kill)
            await asyncio.sleep(away)
            await asyncio.to_thread(self.valkey.start)
            self.returns.append(time.monotonic())

    def accepted(self) -> list[Asked]:
        """Requests that were let in although the token's revocation held when they began."""
        return [each for each in self.asked if each.status == 200 and each.began > self._holds_from(each.user)]

    def _holds_from(self, user: int) -> float:
        revoked = self.revoked[user]
        if revoked.complete:
            return revoked.answered
        back = [moment for moment in self.returns if moment >= revoked.issued]
        return max(revoked.answered, (min(back) if back else revoked.answered) + HOLDS_WITHIN)


def fleet(start_gateway: StartGateway, origin: str, valkey: Valkey) -> list[GatewayProcess]:
    environment = {"GATEWAY_ADMIN_TOKEN": ADMIN}
    return [start_gateway(settings(origin, valkey), name=name, environment=environment) for name in ("one", "two")]


async def created(operator: httpx.AsyncClient, key: str) -> dict[str, Any]:
    """Create the key, as soon as all workers are there to confirm it."""
    made: dict[str, Any] = {}
    async with asyncio.timeout(60):
        while made.get("workers") != WORKERS or not made["complete"]:
            wanted = key if made.get("workers") == WORKERS else new_key()
            made = (await operator.post("/keys", json={"sha256": digest_of(wanted.encode()), "owner": "acme"})).json()
            if wanted != key:
                made["complete"] = False
    return made


@pytest.mark.timeout(900)
async def test_no_token_is_accepted_after_its_revocation_was_confirmed_while_redis_is_killed_and_loses_all(
    start_gateway: StartGateway, make_valkey: MakeValkey, origin: str
) -> None:
    valkey = make_valkey(unix=False)
    gateways = fleet(start_gateway, origin, valkey)
    trial = Trial(gateways, valkey)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        admins = [gateway.operator(ADMIN, timeout=30) for gateway in gateways]
        await created(admins[0], trial.key)
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(trial.ask(session))
            restarts = group.create_task(trial.restart_redis())
            await trial.revoke_all(admins)
            await restarts
            await asyncio.sleep(HOLDS_WITHIN + 0.5)
            trial.stop.set()
        last = [await trial._status(session, "/items/1", {"authorization": f"Bearer {each}"}) for each in trial.tokens]
        for admin in admins:
            await admin.aclose()
    complete = [each for each in trial.revoked.values() if each.complete]
    seconds = sorted(each.answered - each.issued for each in complete)
    median, slowest = seconds[len(seconds) // 2] * 1000, seconds[-1] * 1000
    print(
        f"{REVOCATIONS} revocations, {len(complete)} confirmed (median {median:.1f} ms, slowest {slowest:.0f} ms), "
        f"{REVOCATIONS - len(complete)} answered 202; {len(AWAY)} restarts; "
        f"{len(trial.asked)} requests by token, {len(trial.with_key)} by key"
    )
    assert trial.accepted() == []
    assert {each.status for each in trial.asked} == {200, 401}
    assert set(trial.with_key) == {200}
    assert set(last) == {401}
    assert len(complete) > REVOCATIONS / 3


async def test_keys_and_revocations_are_in_force_as_fast_as_purges_and_leave_no_credential_anywhere(
    start_gateway: StartGateway, make_valkey: MakeValkey, origin: str, tmp_path: Path
) -> None:
    valkey = make_valkey()
    gateways = fleet(start_gateway, origin, valkey)
    key, token = new_key(), token_of("canary-user-4711")
    operator = gateways[0].operator(ADMIN, timeout=30)
    made = await created(operator, key)
    assert made["confirmed"] == WORKERS
    began = time.monotonic()
    assert await statuses(gateways, "/stock/1", {"x-api-key": key}) == {200}
    in_force = time.monotonic() - began
    assert await statuses(gateways, "/items/1", {"authorization": f"Bearer {token}"}) == {200}
    assert await statuses(gateways[:1], "/opaque/1", {"authorization": f"Bearer {SECRET}"}) == {503}
    assert await statuses(gateways[:1], "/stock/1", {"x-api-key": f"{key}x"}) == {401}
    explained = [
        (await operator.post("/explain?text=1", json={"target": path, "headers": [header]})).text
        for path, header in (("/stock/1", ("x-api-key", key)), ("/items/1", ("authorization", f"Bearer {token}")))
    ]

    seconds: dict[str, list[float]] = {"/purge": [], "/revocations": []}
    for number in range(10):
        for path, body in (("/purge", {"tags": [f"t{number}"]}), ("/revocations", {"sub": f"user-{number}"})):
            answer = (await operator.post(path, json=body)).json()
            assert (answer["complete"], answer["workers"]) == (True, WORKERS)
            seconds[path].append(answer["seconds"])
    purge, revocation = (statistics.median(found) for found in seconds.values())
    print(
        f"confirmed by {WORKERS} workers: a purge in {purge * 1000:.1f} ms, a revocation in {revocation * 1000:.1f} ms"
    )
    assert revocation < 10 * purge + 0.1

    await operator.post("/revocations", json={"sub": "canary-user-4711"})
    assert await statuses(gateways, "/items/1", {"authorization": f"Bearer {token}"}) == {401}
    with valkey.client() as client:
        client.flushall()
        assert await statuses(gateways, "/stock/1", {"x-api-key": key}) == {200}
        async with asyncio.timeout(20):
            while client.xlen("gw:{credentials}:log") < 11:
                await asyncio.sleep(0.05)
        kept = b"\n".join(everything(client))
    assert in_force < 60  # of a machine that is ten times slower; the report says that it is in force everywhere
    assert (await operator.delete("/keys?owner=acme")).json()["complete"]
    assert await statuses(gateways, "/stock/1", {"x-api-key": key}) == {401}

    told = [(await operator.get(path)).text for path in ("/metrics", "/audit", "/keys", "/revocations", "/settings")]
    await operator.aclose()
    said = [*told, *explained, *(each.output.read_text() + each.errors for each in gateways)]
    assert b"acme" in kept
    for canary in (key, token, SECRET, "canary-user-4711"):
        for form in forms(canary):
            assert form.encode() not in kept
            assert not [text for text in said if form in text]


async def statuses(gateways: Sequence[GatewayProcess], path: str, headers: dict[str, str]) -> set[int]:
    """The statuses of requests, each on a connection of its own, so that each worker gets some."""
    found = set()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        for url in [gateway.url + path for gateway in gateways for _ in range(8)]:
            async with session.get(url, headers=headers) as response:
                found.add(response.status)
    return found


def forms(text: str) -> set[str]:
    """A text as it is, in base64, and percent-encoded."""
    plain = base64.b64encode(text.encode()).decode().rstrip("=")
    return {text, plain, base64.urlsafe_b64encode(text.encode()).decode().rstrip("="), quote(text, safe="")}


def everything(client: redis.Redis) -> Iterator[bytes]:
    """All names and values that Redis has."""
    for name in client.scan_iter(count=1000):
        yield name
        match client.type(name):
            case b"string":
                yield client.get(name) or b""
            case b"hash":
                yield from (item for pair in client.hgetall(name).items() for item in pair)
            case b"list":
                yield from client.lrange(name, 0, -1)
            case b"stream":
                yield from (item for _, fields in client.xrange(name) for pair in fields.items() for item in pair)
            case kind:
                yield repr(client.dump(name)).encode() + kind
