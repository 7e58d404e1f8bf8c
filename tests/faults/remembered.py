"""What clients can make a gateway remember: how much a worker and a Valkey grow by requests that are each another.

`python -m tests.faults.remembered [KIND …]` measures at full length and prints; `test_remembered.py` holds a shorter
run to bounds. The gateway and the Valkey are processes of their own; resident memory is the kernel's word, the Valkey's
its own (`used_memory`).
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from tests.faults.bounds import MIB, connected
from tests.faults.scenarios import path_of, response
from tests.support.processes import GatewayProcess, Valkey
from tests.support.raw import Connection, raw_upstream

CLIENTS = 16
Requests = Callable[[int], bytes]


async def _upstream(connection: Connection) -> None:
    while head := await connection.request():
        answers = {"/private": ("Cache-Control: no-store",), "/tagged": (f"Cache-Tag: {path_of(head)[-12:]}",)}
        kind = path_of(head).partition("?")[0]
        fields = ("Cache-Control: max-age=300", "Vary: X-Kind", *answers.get(kind, ()))
        await connection.send(response(b"x" * 100, "200 OK", *fields))


def _request(line: str, *fields: str) -> bytes:
    return "\r\n".join((f"{line} HTTP/1.1", *fields, "", "")).encode()


LONG = "x" * 7900
KINDS: dict[str, Requests] = {
    "POSTs to targets of 8 KiB": lambda n: _request(f"POST /p?{n}{LONG}", "Host: a.test", "Content-Length: 0"),
    "POSTs to one target": lambda n: _request(f"POST /p?{LONG}", "Host: a.test", "Content-Length: 0"),
    "URLs": lambda n: _request(f"GET /u?{n}{'x' * 200}", "Host: a.test"),
    "URLs of 8 KiB": lambda n: _request(f"GET /u?{n}{LONG}", "Host: a.test"),
    "URLs that may not be stored": lambda n: _request(f"GET /private?{n}{LONG}", "Host: a.test"),
    "header blocks": lambda n: _request("GET /u", "Host: a.test", f"X-Own: {n}{'x' * 200}"),
    "header blocks of 8 KiB": lambda n: _request("GET /u", "Host: a.test", f"X-Own: {n}{LONG}"),
    "values of a field that varies": lambda n: _request("GET /u", "Host: a.test", f"X-Kind: {n}{'x' * 200}"),
    "names of fields": lambda n: _request("GET /u", "Host: a.test", f"X-{n}: 1"),
    "cookies": lambda n: _request("GET /u", "Host: a.test", f"Cookie: session={n}{'x' * 200}"),
    "hosts": lambda n: _request("GET /u", f"Host: h{n}.test"),
    "entity tags": lambda n: _request("GET /u", "Host: a.test", f'If-None-Match: "{n}{"x" * 200}"'),
    "paths that are no route": lambda n: _request(f"GET /none/{n}{'x' * 200}", "Host: a.test"),
    "tags of responses": lambda n: _request(f"GET /tagged?{n:012}", "Host: a.test"),
    "parts": lambda n: _request(f"GET /joined?n={n}{'x' * 200}", "Host: a.test"),
    "traces": lambda n: _request("GET /u", "Host: a.test", f"traceparent: 00-{n + 1:032x}-{n + 1:016x}-01"),
}


def configured(url: str, redis_url: str) -> dict[str, Any]:
    route = {"upstream": "api", "tags": ["t:{kind}"]}
    return {
        "access_log": False,
        "memory": "16MiB",
        "redis_url": redis_url,
        "limits": {"connections_per_client": 1000},
        "upstreams": {"api": {"url": url, "timeout": "10s"}},
        "routes": {
            "joined": {"path": "/joined", "parts": {"one": {"upstream": "api", "path": "/u?n={query.n}"}}},
            "cookies": {"path": "/c", "upstream": "api", "ttl": "5m", "cookies": ["session"]},
            "rest": {**route, "path": "/{kind}", "cookies": "ignore"},
        },
    }


@dataclass(frozen=True)
class Grown:
    statuses: Counter[str]
    worker: int
    valkey: int
    metrics: dict[str, float]


async def _asked(gateway: GatewayProcess, request: Requests, count: int) -> Counter[str]:
    numbers, statuses = itertools.count(), Counter[str]()

    async def client() -> None:
        reader, writer = await connected(gateway)
        while (number := next(numbers)) < count:
            writer.write(request(number))
            head = await reader.readuntil(b"\r\n\r\n")
            statuses[head[9:12].decode()] += 1
            length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), None)
            if length is not None:
                await reader.readexactly(int(length.partition(b":")[2]))
            elif b"transfer-encoding: chunked" in head.lower():
                await reader.readuntil(b"0\r\n\r\n")
        writer.close()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return statuses


def _used(valkey: Valkey) -> int:
    with redis.Redis.from_url(valkey.url) as client:
        return int(client.info("memory")["used_memory"])


async def grown(directory: Path, request: Requests, count: int) -> Grown:
    """What a worker and a Valkey have more after `count` requests than after a thousand that are all the same."""
    valkey = Valkey(directory)
    valkey.start()
    try:
        async with raw_upstream(_upstream) as raw:
            settings = configured(raw.url, valkey.url)
            gateway = await asyncio.to_thread(GatewayProcess, directory, settings, name="remembered")
            try:
                await _asked(gateway, lambda _: _request("GET /u", "Host: a.test"), 1000)
                worker, used = gateway.memory_now(), await asyncio.to_thread(_used, valkey)
                statuses = await _asked(gateway, request, count)
                metrics = await asyncio.to_thread(gateway.metrics)
                more = await asyncio.to_thread(_used, valkey)
                return Grown(statuses, gateway.memory_now() - worker, more - used, metrics)
            finally:
                await asyncio.to_thread(gateway.end)
    finally:
        valkey.end()


async def measure(kinds: list[str], count: int | None) -> None:
    for kind in kinds or KINDS:
        number = count or (12_000 if "POST" in kind else 100_000)
        with tempfile.TemporaryDirectory() as directory:
            seen = await grown(Path(directory), KINDS[kind], number)
        entries = seen.metrics["gateway_memory_bytes"] / MIB
        print(
            f"{number:>7,} {kind:32} worker {seen.worker / MIB:7.1f} MiB (of it entries {entries:4.1f}),"
            f" Valkey {seen.valkey / MIB:7.1f} MiB; {dict(seen.statuses)}",
            flush=True,
        )


if __name__ == "__main__":
    count = next((int(each) for each in sys.argv[1:] if each.isdigit()), None)
    asyncio.run(measure([each for each in sys.argv[1:] if not each.isdigit()], count))
