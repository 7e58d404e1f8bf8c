"""Users of two workers, alone and behind a second cache: none gets what another was answered, and nothing is told."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.shared_caches.fronts import nginx, program
from tests.support.processes import GatewayProcess, MakeValkey, StartGateway
from tests.support.scale import size
from tests.support.users import Crowd, settings, shop, token

USERS, REQUESTS = size("users"), size("user_requests")
CONNECTIONS = 24


@pytest.mark.timeout(3600 if REQUESTS > 10_000 else 240)
async def test_no_user_gets_what_another_was_answered(
    start_gateway: StartGateway, make_valkey: MakeValkey, tmp_path: Path
) -> None:
    valkey = make_valkey()
    async with shop() as upstream:
        given = settings(upstream.url, redis_url=valkey.url)
        gateway = await asyncio.to_thread(start_gateway, given)
        with ExitStack() as stack:
            urls = [gateway.url]
            if program("nginx"):
                (tmp_path / "front").mkdir()
                urls.append(stack.enter_context(nginx(tmp_path / "front", int(gateway.url.rpartition(":")[2]))))
            crowd = Crowd()
            turns, dice = REQUESTS // CONNECTIONS, random.Random(17)
            clients = [
                crowd.client(urls[number % len(urls)], turns, USERS, random.Random(dice.random()))
                for number in range(CONNECTIONS)
            ]
            await asyncio.gather(*clients)
        print(f"{sum(crowd.answers.values())} answers, {crowd.hits} hits, {crowd.cancelled} cancelled,", end=" ")
        print(f"{upstream.requests} requests to the upstream; {len(crowd.wrong)} wrong, {len(crowd.odd)} odd")
        assert (crowd.wrong, crowd.odd[:3]) == ([], [])
        assert crowd.hits > sum(crowd.answers.values()) / 5
        _check_seen(upstream.seen)


def _check_seen(seen: dict[tuple[str, str, str], set[tuple[tuple[str, str], ...]]]) -> None:
    """What the upstream saw is a function of the key: the path, the partition, and the fields that a route counts."""
    for (path, user, plan), requests in seen.items():
        route = path.split("/")[1]
        assert (bool(user), bool(plan)) == (route == "own", route == "plan")
        for fields in requests:
            assert not {"authorization", "device"}.intersection(dict(fields))
        counted = [
            tuple(value for name, value in fields if name in ("accept", "accept-language")) for fields in requests
        ]
        assert len(counted) == len(set(counted)), requests


# --- a canary ----------------------------------------------------------------------------------------------

CLAIM = "canary/\u00fc+claim of a person"
BEARER = token(sub=CLAIM, plan="canary-plan-4711", email="canary@example.com", tenant="a")


def _forms(text: bytes) -> Iterator[bytes]:
    """A text as it might be told: as it is, escaped for JSON, in percent form, in base64 from any place in a text."""
    yield text
    yield json.dumps(text.decode()).strip('"').encode()
    yield quote(text, safe="").encode()
    yield quote(text).encode()
    for before in range(3):
        encoded = base64.b64encode(b" " * before + text)
        whole = encoded[4 if before else 0 : len(encoded) // 4 * 4 - 4]
        yield from (whole, whole.replace(b"+", b"-").replace(b"/", b"_"))


CANARIES = {
    *_forms(CLAIM.encode()),
    *_forms(b"canary-plan-4711"),
    *_forms(b"canary@example.com"),
    *(each for part in (BEARER, BEARER.split(".")[1], BEARER.split(".")[2]) for each in _forms(part.encode())),
}


def found_in(text: bytes) -> list[bytes]:
    assert all(len(each) > 10 for each in CANARIES)
    return [each for each in CANARIES if each in text]


def test_a_canary_is_found_in_each_of_its_forms() -> None:
    claims = BEARER.split(".")[1].encode()
    assert found_in(b"x" + claims + b"y")
    assert found_in(base64.b64decode(claims + b"=" * (-len(claims) % 4)))
    assert found_in(base64.b64encode(b"user=" + CLAIM.encode() + b";"))
    assert not found_in(b"nothing of it")


def memory_of(pid: int) -> bytes:
    """All writable memory of a process."""
    pieces = []
    with Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            place, rights, *_ = line.split()
            if rights.startswith("rw") and "[v" not in line:
                start, end = (int(each, 16) for each in place.split("-"))
                memory.seek(start)
                try:
                    pieces.append(memory.read(end - start))
                except OSError:  # a guard page
                    continue
    return b"".join(pieces)


@pytest.mark.timeout(180)
@pytest.mark.skipif(os.geteuid() != 0, reason="reads the memory of another process")
async def test_nothing_of_a_token_and_its_claims_is_told_or_kept(
    start_gateway: StartGateway, make_valkey: MakeValkey
) -> None:
    valkey = make_valkey()
    async with shop() as upstream:
        given = settings(upstream.url, redis_url=valkey.url, compression=[], access_log=True)
        for name, route in given["routes"].items():  # the claim can't be in a field, so nothing forwards it
            for each in (route, *route.get("parts", {}).values()):
                each.pop("forward", None)
            route["require"] = {"claims": {"tenant": ["a"]}} if name == "plan" else {}
        token_of_admin = {"GATEWAY_ADMIN_TOKEN": "a" * 32}
        gateway = await asyncio.to_thread(start_gateway, given, environment=token_of_admin)
        told = [await _asked_all(gateway), await _said_by_admin(gateway)]
        assert upstream.requests > 3
    keys = await asyncio.to_thread(memory_of, valkey.child.pid)
    assert b"\n:principal:" in keys  # what is looked through has the keys
    assert found_in(keys) == []
    assert found_in(b"".join(told)) == []
    await asyncio.to_thread(gateway.end)
    log = gateway.output.read_bytes() + gateway.errors.encode()
    assert log.count(b'"route":"own"') > 3
    assert found_in(log) == []


async def _asked_all(gateway: GatewayProcess) -> bytes:
    """The responses to good and bad requests with the canary: heads and bodies."""
    broken, longer = BEARER[:-20] + "A" * 20, BEARER + "A" * 9000
    ended, other = token(sub=CLAIM, plan="canary-plan-4711", exp=1_600_000_000), token(sub=CLAIM, tenant="b")
    told = b""
    async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:
        for credential in (BEARER, BEARER, broken, ended, other, longer, f"{BEARER} b"):
            for path in ("/own/1", "/plan/1", "/screen/1"):
                told += await _asked(client, path, authorization=f"Bearer {credential}")
        for more in ({"gateway-explain": "a" * 32}, {"cache-control": "no-cache"}):
            for path in ("/own/1", "/screen/1", "/nothing", "/own/%00"):
                told += await _asked(client, path, authorization=f"Bearer {BEARER}", **more)
    return told


async def _asked(client: httpx.AsyncClient, path: str, **headers: str) -> bytes:
    response = await client.get(path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    explained = response.headers.get("gateway-explained", "").strip(":")
    return str(response.headers.raw).encode() + response.content + (base64.b64decode(explained) if explained else b"")


async def _said_by_admin(gateway: GatewayProcess) -> bytes:
    told = b""
    async with gateway.operator("a" * 32) as operator:
        for path in (
            "/metrics",
            "/readyz",
            "/advice",
            "/console",
            "/routes",
            "/settings",
            "/audit",
            "/overrides",
        ):
            response = await operator.get(path)
            assert response.status_code == 200, path
            told += response.content
        for path in ("/own/1", "/screen/1"):
            asked: dict[str, Any] = {
                "method": "GET",
                "target": path,
                "headers": [["authorization", f"Bearer {BEARER}"]],
            }
            response = await operator.post("/explain", json=asked)
            assert response.status_code == 200
            told += response.content
        async with operator.stream("GET", "/live") as live:
            told += await anext(live.aiter_bytes())
    return told
