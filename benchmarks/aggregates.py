"""Aggregates against their goals: a hit on the whole, the splice, the fan-out; ratios of one run on one core.

    python -m benchmarks.aggregates [--seconds 5]

What is compared with the smallest app, and with a plain hit, is measured in turn, three rounds of each; all answers are
of one size but for seven bytes. Each server works alone on core 0; wrk (32 connections) and the upstream, an nginx that
answers 900 bytes of JSON, share core 1. Beside the gateway: the smallest ASGI app on the same server, a FastAPI handler
that gathers over httpx.AsyncClient, and an nginx with libnginx-mod-http-lua that does capture_multi. Needs wrk and
nginx (Debian). The latency of the fan-out is measured against an upstream whose four answers take 10, 20, 30 and 40 ms,
beyond what the same client waits for the slowest of them when it asks that upstream itself.

The splice is measured twice: over 30,000 request lines in turn, of whose parts one lives for a second and is refreshed
behind, so that each joined answer has expired when its line comes again, while all its parts lie fresh in memory; and
over lines that nobody has asked for before, whose parts lie in memory as well.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import math
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn

PARTS = 4
BODY = json.dumps({"data": "x" * 889})
SLOWEST = 0.04
CONNECTIONS = 32


# --- the servers, each in a process of its own ---------------------------------------------------------------


def gateway_app(upstream: str, slow: str) -> Any:
    from gateway.app.gateway import create_app

    part = {"upstream": "fast", "ttl": "1h", "vary": []}
    hot = {f"p{n}": {**part, "path": f"/p{n}"} for n in range(PARTS)}
    cold = {f"p{n}": {**part, "path": f"/p{n}?n={{n}}"} for n in range(PARTS)}
    brief = {**hot, "p0": {**hot["p0"], "ttl": "1s", "stale_while_revalidate": "1h"}}
    late = {f"p{n}": {**part, "upstream": "slow", "path": f"/p{n}?n={{n}}"} for n in range(PARTS)}
    return create_app(
        {
            "redis_url": "none",
            "access_log": False,
            "memory": "1GiB",
            "limits": {"requests_per_client": 100_000},
            "upstreams": {"fast": {"url": upstream, "max_connections": 128}, "slow": {"url": slow}},
            "routes": {
                "plain": {"path": "/plain", "upstream": "fast", "ttl": "1h", "vary": []},
                "hot": {"path": "/hot/{n}", "parts": hot},
                "brief": {"path": "/brief/{n}", "parts": brief},
                "cold": {"path": "/cold/{n}", "parts": cold},
                "late": {"path": "/late/{n}", "parts": late},
            },
        }
    )


async def smallest(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(WHOLE))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": WHOLE})


WHOLE = json.dumps({f"p{n}": json.loads(BODY) for n in range(PARTS)}).encode()


def gathering_app(upstream: str) -> Any:
    from fastapi import FastAPI

    client = httpx.AsyncClient(base_url=upstream, limits=httpx.Limits(max_connections=128))
    app = FastAPI()

    @app.get("/cold/{n}")
    async def cold(n: str) -> dict[str, Any]:
        answers = await asyncio.gather(*(client.get(f"/p{part}", params={"n": n}) for part in range(PARTS)))
        return {f"p{part}": answer.json() for part, answer in enumerate(answers)}

    return app


async def slow_upstream(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    await asyncio.sleep(SLOWEST / PARTS * (int(scope["path"][2]) + 1))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY.encode()})


def serve(what: str, port: int, upstream: str, slow: str) -> None:
    from gateway.edge.protocol import GatewayProtocol

    apps: dict[str, Callable[[], Any]] = {
        "gateway": lambda: gateway_app(upstream, slow),
        "smallest": lambda: smallest,
        "gathering": lambda: gathering_app(upstream),
        "slow": lambda: slow_upstream,
    }
    http: Any = GatewayProtocol if what == "gateway" else "httptools"
    # Without uvicorn's own wrapper for proxies' headers, behind which the edge would not be found.
    uvicorn.run(
        apps[what](), port=port, http=http, loop="uvloop", log_level="error", access_log=False, proxy_headers=False
    )


# --- nginx -----------------------------------------------------------------------------------------------------

UPSTREAM = """
daemon off; worker_processes 1; pid {dir}/{name}.pid; error_log {dir}/{name}.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 1000000;
  server {{
    listen 127.0.0.1:{port} reuseport backlog=1024; default_type application/json;
    location /plain {{ return 200 '{whole}'; }}
    location / {{ return 200 '{body}'; }}
  }}
}}
"""
LUA = """
load_module modules/ndk_http_module.so; load_module modules/ngx_http_lua_module.so;
daemon off; worker_processes 1; pid {dir}/{name}.pid; error_log {dir}/{name}.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000;
  upstream up {{ server {upstream}; keepalive 128; }}
  server {{
    listen 127.0.0.1:{port} reuseport backlog=1024; default_type application/json;
    location /up/ {{ internal; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_pass http://up/; }}
    location /cold/ {{
      content_by_lua_block {{
        local reqs = {{}}
        for n = 0, 3 do reqs[n + 1] = {{ "/up/p" .. n .. "?n=1" }} end
        local got = {{ ngx.location.capture_multi(reqs) }}
        local out = {{}}
        for n = 0, 3 do out[n + 1] = '"p' .. n .. '":' .. got[n + 1].body end
        ngx.say("{{" .. table.concat(out, ",") .. "}}")
      }}
    }}
  }}
}}
"""


@contextlib.contextmanager
def nginx(template: str, core: int, **values: Any) -> Iterator[str]:
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        conf = Path(directory) / "nginx.conf"
        conf.write_text(template.format(dir=directory, name="n", port=port, body=BODY, whole=WHOLE.decode(), **values))
        modules = Path("/usr/lib/nginx/modules")
        with contextlib.suppress(FileExistsError):
            (Path(directory) / "modules").symlink_to(modules)
        with running(["nginx", "-p", directory, "-c", str(conf)], core, port):
            yield f"127.0.0.1:{port}"


@contextlib.contextmanager
def python(what: str, core: int, upstream: str = "http://x", slow: str = "http://x") -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.aggregates", "--serve", what, str(port), upstream, slow]
    with running(command, core, port):
        yield f"127.0.0.1:{port}"


@contextlib.contextmanager
def running(command: list[str], core: int, port: int) -> Iterator[None]:
    process = subprocess.Popen(["taskset", "-c", str(core), *command])
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.1):
                break
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# --- measuring -------------------------------------------------------------------------------------------------

DISTINCT = """
local n = 0
request = function() n = n % {lines} + 1; return wrk.format("GET", "{path}{run}" .. n) end
"""
LINES = 30_000
"""Request lines, so many that each joined answer has expired before its line comes again."""
ROUNDS = 3
MOST_WARMING = 60.0
"""Seconds in which the gateway is made to know them, at most."""


def rate(address: str, path: str, seconds: float, *, distinct: bool = False, lines: int = 0) -> float:
    """Requests a second; each for a path of its own where `distinct`, or for one of `lines` in turn. An error fails
    the run."""
    command = ["taskset", "-c", "1", "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{math.ceil(seconds)}s"]
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        if distinct or lines:
            run = "" if lines else time.monotonic_ns()
            script.write(DISTINCT.format(path=path, run=run, lines=lines or 10**9))
            script.flush()
            command += ["-s", script.name]
        text = subprocess.run([*command, f"http://{address}{path}1"], capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in text, text
    found = re.search(r"Requests/sec:\s+([\d.]+)", text)
    assert found is not None, text
    return float(found[1])


def latency(address: str, slow: str, count: int = 40) -> float:
    """The median time of a cold fan-out beyond that of its slowest part, as one client sees them, in seconds."""
    fan_out, slowest = Client(address), Client(slow)
    for number in range(-3, count):
        if number == 0:
            fan_out.taken, slowest.taken = [], []
        fan_out.get(f"/late/{time.monotonic_ns()}")
        slowest.get(f"/p{PARTS - 1}")
    return statistics.median(fan_out.taken) - statistics.median(slowest.taken)


class Client:
    """One connection, and how long each answer took on it. The standard library's, which itself takes least."""

    def __init__(self, address: str) -> None:
        self.connection = http.client.HTTPConnection(address)
        self.taken: list[float] = []

    def get(self, path: str) -> None:
        began = time.perf_counter()
        self.connection.request("GET", path)
        response = self.connection.getresponse()
        assert response.status == 200, response.status
        response.read()
        self.taken.append(time.perf_counter() - began)


def measure(seconds: float) -> dict[str, float]:
    figures: dict[str, float] = {}
    with nginx(UPSTREAM, 1) as fast, python("slow", 1) as slow:
        upstream = f"http://{fast}"
        with python("gateway", 0, upstream, f"http://{slow}") as address:
            for path in ("/plain", "/hot/1", "/hot/11"):
                urllib.request.urlopen(f"http://{address}{path}").read()
            unseen = rate(address, "/hot/", seconds, distinct=True)
            # So that the app and then the edge have seen each line; the latter takes a fraction of the former.
            rate(address, "/brief/", min(MOST_WARMING, 1.5 * LINES / unseen), lines=LINES)
            with python("smallest", 0) as smallest:
                figures = in_turn(
                    {
                        "smallest ASGI app": lambda: rate(smallest, "/", seconds),
                        "plain hit": lambda: rate(address, "/plain?", seconds),
                        "joined hit": lambda: rate(address, "/hot/", seconds),
                        "splice": lambda: rate(address, "/brief/", seconds, lines=LINES),
                    }
                )
            figures["splice, lines never seen"] = unseen
            figures["cold fan-out"] = rate(address, "/cold/", seconds, distinct=True)
            figures["cold latency beyond the slowest part, ms"] = latency(address, slow) * 1000
        with python("gathering", 0, upstream) as address:
            figures["FastAPI, gather over httpx"] = rate(address, "/cold/", seconds, distinct=True)
        with nginx(LUA, 0, upstream=fast) as address:
            figures["nginx, lua capture_multi"] = rate(address, "/cold/", seconds, distinct=True)
    return figures


def in_turn(rows: dict[str, Callable[[], float]]) -> dict[str, float]:
    """The median of each, measured in turn: what a shared machine does meanwhile then befalls all of them."""
    rounds = [{name: row() for name, row in rows.items()} for _ in range(ROUNDS)]
    return {name: statistics.median(each[name] for each in rounds) for name in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each row is measured")
    parser.add_argument("--serve", nargs=4, metavar=("WHAT", "PORT", "UPSTREAM", "SLOW"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        what, port, upstream, slow = given.serve
        serve(what, int(port), upstream, slow)
        return
    figures = measure(given.seconds)
    for name, value in figures.items():
        print(f"{name:42} {value:10.1f}")
    ratios = (
        ("joined hit / plain hit", "joined hit", "plain hit", 0.9),
        ("splice / smallest ASGI app", "splice", "smallest ASGI app", 0.5),
        ("splice, never seen / smallest ASGI app", "splice, lines never seen", "smallest ASGI app", None),
        ("cold fan-out / FastAPI gather", "cold fan-out", "FastAPI, gather over httpx", 4.0),
        ("cold fan-out / nginx lua", "cold fan-out", "nginx, lua capture_multi", None),
    )
    for title, ours, theirs, goal in ratios:
        print(f"{title:42} {figures[ours] / figures[theirs]:10.2f}" + (f"   goal {goal}" if goal else ""))


if __name__ == "__main__":
    main()
