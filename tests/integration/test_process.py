"""The gateway as a process: how it starts, what it says, how it ends, and what it leaves behind."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest

from gateway import __version__
from tests.support.processes import (
    GatewayProcess,
    MakeValkey,
    StartGateway,
    Valkey,
    Watched,
    clean_environment,
    command,
    write_config,
)
from tests.support.raw import Connection, always, raw_upstream

GRACE = 10.0
"""Seconds that requests in flight get to end (`shutdown_timeout`)."""
NOTHING = "http://127.0.0.1:9"


def settings(upstream: str = NOTHING, **more: Any) -> dict[str, Any]:
    return {
        "upstreams": {"api": {"url": upstream, "timeout": "20s"}},
        "routes": {
            "x": {"path": "/x/{id}", "upstream": "api", "ttl": "60s", "query": ["page", "q"], "tags": ["x:{id}"]},
            "rest": {"path": "/{path:path}", "upstream": "api"},
        },
        **more,
    }


# --- ending --------------------------------------------------------------------------------------------------


class Held:
    """An upstream that answers once `answering` is set."""

    def __init__(self) -> None:
        self.came = asyncio.Semaphore(0)
        self.answering = asyncio.Event()

    async def __call__(self, connection: Connection) -> None:
        while await connection.request():
            self.came.release()
            await self.answering.wait()
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")


def embedded_of(gateway: GatewayProcess) -> tuple[Watched, Path]:
    """The Valkey that a gateway started, and its directory."""
    return Watched(gateway.valkey), Path(f"/proc/{gateway.valkey}/cwd").readlink()


async def refuses_connections(url: str, within: float = 5.0) -> None:
    """Return once nobody listens at `url` any more; that is another process's, there is nothing to wait on."""
    host, port = url.removeprefix("http://").split(":")
    async with asyncio.timeout(within):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except ConnectionError:
                return
            writer.close()
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("way", ["SIGTERM", "Ctrl-C"])
async def test_it_ends_in_order_the_requests_in_flight_answered_and_its_valkey_gone(
    start_gateway: StartGateway, way: str
) -> None:
    held = Held()
    async with raw_upstream(held) as upstream:
        gateway = start_gateway(settings(upstream.url, redis_url="embedded"))
        valkey, directory = embedded_of(gateway)
        with valkey:
            async with aiohttp.ClientSession(gateway.url) as client:
                async with client.get("/healthz") as idle:
                    assert idle.status == 200  # its connection stays open, and does not keep the gateway
                read = asyncio.ensure_future(client.get("/x/1"))
                write = asyncio.ensure_future(client.post("/orders", data=b"body"))
                for _ in (read, write):
                    await asyncio.wait_for(held.came.acquire(), 5)

                began = time.monotonic()
                if way == "Ctrl-C":
                    gateway.signal_group(signal.SIGINT)
                else:
                    gateway.signal(signal.SIGTERM)
                await refuses_connections(gateway.url)
                held.answering.set()
                for asked in (read, write):
                    async with await asked as response:
                        assert (response.status, await response.text()) == (200, "late")
            assert await asyncio.to_thread(gateway.wait, GRACE) == 0
            print(f"ended {time.monotonic() - began:.2f} s after the signal")
            assert time.monotonic() - began < GRACE
            assert valkey.gone(1)
    assert not directory.exists()
    log = [line.split(" ", 1) for line in gateway.errors.splitlines()]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", at) for at, _ in log)
    told = [line for _, line in log]
    assert told[0] == f"INFO gateway: gateway {__version__} serves"
    assert re.fullmatch(r"INFO gateway:   configuration: \S*gateway.yaml; \d+ routes, \d+ upstreams?", told[1])
    assert told[2:4] == ["INFO gateway:   Redis: embedded Valkey, in use", "INFO gateway:   1 worker"]
    assert told[4].startswith("INFO gateway:   admin listener: unix:/")
    assert told[5] == f"INFO gateway:   listening on {gateway.url}"
    assert "INFO gateway: stopping: accepting connections for " in told[6]
    assert told[7:] == ["INFO gateway: ended"]


async def test_a_second_signal_ends_it_at_once_though_a_request_is_in_flight(start_gateway: StartGateway) -> None:
    held = Held()
    async with raw_upstream(held) as upstream:
        gateway = start_gateway(settings(upstream.url, redis_url="embedded"))
        valkey, _ = embedded_of(gateway)
        with valkey:
            async with aiohttp.ClientSession(gateway.url) as client:
                asked = asyncio.ensure_future(client.post("/orders"))
                await asyncio.wait_for(held.came.acquire(), 5)
                gateway.signal(signal.SIGTERM)
                await refuses_connections(gateway.url)
                assert not asked.done()
                gateway.signal(signal.SIGTERM)
                began = time.monotonic()
                await asyncio.to_thread(gateway.wait, 5)
                asked.cancel()
                await asyncio.wait((asked,))
            print(f"ended {time.monotonic() - began:.2f} s after the second signal")
            assert time.monotonic() - began < 2
            assert valkey.gone(1)
        held.answering.set()


def test_its_valkey_is_gone_after_it_was_killed(start_gateway: StartGateway) -> None:
    gateway = start_gateway(settings(redis_url="embedded"))
    valkey, _ = embedded_of(gateway)
    with valkey:
        gateway.signal(signal.SIGKILL)
        assert gateway.wait(5) == -signal.SIGKILL
        assert valkey.gone(5)


# --- starting ------------------------------------------------------------------------------------------------


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def assert_one_message(status: int, said: str, *expected: str) -> None:
    assert status == 2, said
    assert "Traceback" not in said
    assert len(said.splitlines()) <= 1 + len(expected), said
    for text in expected:
        assert text in said


def test_a_busy_port_is_one_message_and_status_2(tmp_path: Path, taken: int) -> None:
    file = write_config(tmp_path / "gateway.yaml", settings(redis_url="none", admin_listen="none"))
    result = command("serve", "--config", str(file), "--port", str(taken), cwd=tmp_path)
    assert_one_message(result.returncode, result.stderr, f"cannot listen on 127.0.0.1:{taken}: Address already in use")
    assert "`port`" in result.stderr
    assert result.stdout == ""


def test_a_busy_admin_port_is_one_message_and_status_2(tmp_path: Path, taken: int) -> None:
    file = write_config(tmp_path / "gateway.yaml", settings(redis_url="none", admin_listen=f"127.0.0.1:{taken}"))
    result = command("serve", "--config", str(file), "--port", "0", cwd=tmp_path)
    assert_one_message(result.returncode, result.stderr, f"cannot listen on 127.0.0.1:{taken}: Address already in use")
    assert "`admin_listen`" in result.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("routes: {x: {path: /x, upstream: api", ["line 1"], id="no YAML"),
        pytest.param("prot: 8000", ["line 1: prot: is unknown; did you mean port?"], id="an unknown setting"),
        pytest.param("port: http", ["line 1: port:"], id="a wrong type"),
        pytest.param(
            "upstreams: {api: {url: 'http://a.test'}}\nroutes:\n  x: {path: /x, upstream: ap, ttl: 5}",
            ["line 3: routes.x.upstream: there is no upstream ap", "line 3: routes.x.ttl: invalid duration 5"],
            id="two problems",
        ),
        pytest.param(
            "port: 0\ninclude: ['no_such_module:router']", ["no_such_module:router cannot be imported"], id="include"
        ),
    ],
)
@pytest.mark.parametrize("order", ["serve", "check"])
def test_a_wrong_configuration_is_a_message_a_problem_and_status_2(
    tmp_path: Path, order: str, text: str, expected: list[str]
) -> None:
    if order == "check" and "include" in text:
        pytest.skip("check imports nothing")
    file = tmp_path / "gateway.yaml"
    file.write_text(text)
    result = command(order, "--config", str(file), cwd=tmp_path, environment={"GATEWAY_ADMIN_LISTEN": "none"})
    assert_one_message(result.returncode, result.stderr, *expected)
    assert result.stdout == ""


def test_the_console_script_finds_a_router_in_the_folder_where_it_is_run(tmp_path: Path) -> None:
    (tmp_path / "here.py").write_text(
        "import fastapi\nrouter = fastapi.APIRouter()\n\n@router.get('/here')\nasync def here() -> int:\n    return 1\n"
    )
    (tmp_path / "gateway.yaml").write_text("redis_url: none\ninclude: ['here:router']\n")
    result = subprocess.run(
        # As a console script, and unlike `python -m`, it has its own folder on the path, and not the one it is run in.
        [
            *(sys.executable, "-P", "-c", "from gateway.cli.commands import main; main()"),
            *["explain", "GET", "/here", "-c", "gateway.yaml"],
        ],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (result.returncode, result.stderr, "/here" in result.stdout) == (0, "", True)


def test_a_configuration_that_is_missing_is_one_message_and_status_2(tmp_path: Path) -> None:
    result = command("serve", "--config", "none.yaml", cwd=tmp_path)
    assert_one_message(result.returncode, result.stderr, "none.yaml: does not exist")


def test_a_host_that_is_none_of_the_machines_is_one_message_and_status_2(tmp_path: Path) -> None:
    file = write_config(tmp_path / "gateway.yaml", settings(redis_url="none", admin_listen="none"))
    result = command("serve", "--config", str(file), "--host", "192.0.2.1", "--port", "0", cwd=tmp_path)
    assert_one_message(result.returncode, result.stderr, "cannot listen on 192.0.2.1:0")


def test_a_redis_that_is_not_there_is_no_reason_not_to_start(start_gateway: StartGateway) -> None:
    gateway = start_gateway(settings(redis_url="redis://127.0.0.1:1/0"))
    answer = httpx.get(f"{gateway.url}/readyz")
    assert answer.status_code == 200
    assert answer.json()["redis"] == "away"


# --- check, routes -------------------------------------------------------------------------------------------


def rows(text: str) -> dict[str, list[str]]:
    """A printed table: the columns after the first, by the first."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line.strip()]
    return {line[0]: line[1:] for line in lines}


def test_check_prints_every_setting_and_where_it_came_from(tmp_path: Path) -> None:
    given = settings(admin_listen="none")
    given["upstreams"]["api"]["headers"] = {"X-Api-Key": "hush"}
    write_config(tmp_path / "gateway.yaml", given)
    (tmp_path / ".env").write_text("GATEWAY_MEMORY=64MiB\n")
    environment = {"GATEWAY_ROUTES__X__TTL": "3s", "GATEWAY_REDIS_URL": "redis://user:hush@127.0.0.1:1/0"}
    result = command("check", "--config", "gateway.yaml", cwd=tmp_path, environment=environment)
    assert result.returncode == 0, result.stderr
    found = rows(result.stdout)
    assert found["routes.x.ttl"][0] == "3s"
    assert re.fullmatch(r"environment GATEWAY_ROUTES__X__TTL, over gateway\.yaml line \d+", found["routes.x.ttl"][1])
    assert found["memory"][0] == "64MiB"
    assert found["memory"][1] == ".env GATEWAY_MEMORY"
    assert found["routes.x.path"][0] == "/x/{id}"
    assert "gateway.yaml line" in found["routes.x.path"][1]
    assert found["routes.x.query"][0] == "[page, q]"
    assert found["routes.x.stale_if_error"] == ["null", "default"]
    assert found["redis_url"][0] == "redis://***@127.0.0.1:1/0"
    assert "hush" not in result.stdout + result.stderr
    assert "valid: 2 routes, 1 upstream" in result.stdout


def test_check_warns_of_a_variable_that_it_does_not_know(tmp_path: Path) -> None:
    write_config(tmp_path / "gateway.yaml", settings())
    environment = {"GATEWAY_ROUTES__X__TTTL": "3s"}
    result = command("check", "--config", "gateway.yaml", cwd=tmp_path, environment=environment)
    assert result.returncode == 0
    assert "warning: " in result.stderr
    assert "GATEWAY_ROUTES__X__TTTL" in result.stderr


def test_check_shows_values_as_they_are_though_they_look_like_markup(tmp_path: Path) -> None:
    given = settings()
    given["routes"]["x"]["tags"] = ["a:cat:b", "[red]"]
    write_config(tmp_path / "gateway.yaml", given)
    result = command("check", "--config", "gateway.yaml", cwd=tmp_path)
    assert rows(result.stdout)["routes.x.tags"][0] == "['a:cat:b', '[red]']"


def test_routes_prints_the_routes_in_the_order_in_which_they_are_tried(tmp_path: Path) -> None:
    given = settings()
    given["routes"] = dict(reversed(given["routes"].items()))
    given["routes"]["x"]["stale_while_revalidate"] = "2m"
    given["routes"]["x"]["upstream_path"] = "/v2/{id}"
    write_config(tmp_path / "gateway.yaml", given)
    result = command("routes", "--config", "gateway.yaml", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = rows(result.stdout)
    assert list(found) == ["route", "x", "rest"]
    assert found["x"][:4] == ["/x/{id}", "api:/v2/{id}", "60s" if "60s" in found["x"] else "1m", "2m"]
    assert "x:{id}" in found["x"]
    assert found["rest"][:3] == ["/{path:path}", "api:/{path:path}", "origin"]


# --- TTLs from the environment -------------------------------------------------------------------------------


async def test_a_ttl_from_the_environment_is_in_force_on_what_is_stored_already(
    start_gateway: StartGateway, make_valkey: MakeValkey
) -> None:
    valkey: Valkey = make_valkey()
    async with raw_upstream(always(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nsame")) as upstream:
        given = settings(upstream.url, redis_url=valkey.url, shutdown_delay="0s")

        first = start_gateway(given, name="first")
        async with httpx.AsyncClient(base_url=first.url) as client:
            stored_at = time.monotonic()
            answer = await client.get("/x/1")
            assert answer.headers["cache-status"].startswith("gateway; fwd=miss; stored")
            assert 54 <= max_age(answer) <= 60
        first.signal(signal.SIGTERM)  # what is on its way to Redis arrives
        assert await asyncio.to_thread(first.wait, GRACE) == 0

        second = start_gateway(given, name="second", environment={"GATEWAY_ROUTES__X__TTL": "8s"})
        async with httpx.AsyncClient(base_url=second.url) as client:
            answer = await client.get("/x/1")
            assert time.monotonic() - stored_at < 7.2, "too slow a machine: the entry has ended"
            assert re.fullmatch(r"gateway; hit; ttl=[0-7]", answer.headers["cache-status"])
            assert max_age(answer) in (7, 8)

            await asyncio.sleep(stored_at + 8.0 - time.monotonic())
            answer = await client.get("/x/1")
            assert answer.headers["cache-status"].startswith("gateway; fwd=stale; stored")
            assert answer.text == "same"


def max_age(answer: httpx.Response) -> int:
    match = re.fullmatch(r"max-age=(\d+)", answer.headers["cache-control"])
    assert match is not None
    return int(match[1])


# --- what it tells -------------------------------------------------------------------------------------------

METRICS: dict[str, set[str]] = {
    "gateway_requests_total": {"route", "outcome", "status"},
    "gateway_request_seconds": {"outcome"},
    "gateway_upstream_requests_total": {"upstream", "result"},
    "gateway_upstream_seconds": {"upstream"},
    "gateway_refused_requests_total": {"reason"},
    "gateway_memory_bytes": set(),
    "gateway_memory_limit_bytes": set(),
    "gateway_memory_entries": set(),
    "gateway_memory_evictions_total": set(),
    "gateway_collapsed_total": set(),
    "gateway_refreshes_total": set(),
    "gateway_unreadable_records_total": set(),
    "gateway_flights": set(),
    "gateway_redis_available": set(),
    "gateway_redis_reads_total": set(),
    "gateway_redis_writes_total": set(),
    "gateway_redis_batches_total": set(),
    "gateway_redis_failures_total": set(),
    "gateway_redis_dropped_writes_total": set(),
    "gateway_redis_oversized_total": set(),
    "gateway_redis_seconds_total": set(),
    "gateway_workers": set(),
    "gateway_worker_deaths_total": set(),
    "gateway_workers_unresponsive_total": set(),
    "gateway_embedded_restarts_total": set(),
    "gateway_reloads_total": {"result"},
}


async def test_health_and_metrics_answer_and_every_metric_appears_with_its_labels(
    start_gateway: StartGateway,
) -> None:
    async with raw_upstream(always(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")) as upstream:
        gateway = start_gateway(settings(upstream.url, redis_url="embedded"))
        async with httpx.AsyncClient(base_url=gateway.url) as client:
            for _ in range(3):
                assert (await client.get("/x/1")).status_code == 200
            assert (await client.get("/x/%00")).status_code == 400
            assert (await client.get("/healthz")).json() == {"status": "alive"}
            assert (await client.get("/readyz")).json() == {"status": "ready", "redis": "available", "routes": 2}
            assert (await client.get("/metrics")).text == "ok"  # the upstream's: ours are on the admin listener alone
        assert gateway.admin("/healthz").json() == {"status": "alive"}
        assert gateway.admin("/readyz").json()["status"] == "ready"
        text = gateway.admin("/metrics").text
    for name, labels in METRICS.items():
        assert f"# HELP {name} " in text, name
        sample = re.search(rf"^{name}(?:_count)?(?:\{{(.*?)\}})? ", text, re.MULTILINE)
        assert sample is not None, name
        assert set(re.findall(r'(\w+)="', sample[1] or "")) == labels
    totals = gateway.metrics()
    assert totals["gateway_upstream_requests_total"] == 2
    assert totals["gateway_refused_requests_total"] == 1
    assert totals["gateway_memory_entries"] >= 1
    assert 'gateway_requests_total{outcome="hit",route="x",status="2xx"} 2.0' in text


async def test_the_access_log_is_a_line_of_json_a_request_on_standard_output(start_gateway: StartGateway) -> None:
    async with raw_upstream(always(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")) as upstream:
        gateway = start_gateway(settings(upstream.url))
        async with httpx.AsyncClient(base_url=gateway.url) as client:
            paths = ["/x/1?q=secret", "/x/1?q=secret", "/a%0Ab", '/quote"', "/healthz", "/x/%00"]
            ids = [(await client.get(path)).headers["x-request-id"] for path in paths]
            ids.append((await client.post("/orders", headers={"X-Request-ID": "mine"})).headers["x-request-id"])
    gateway.signal(signal.SIGTERM)
    assert await asyncio.to_thread(gateway.wait, GRACE) == 0
    by_id = {line["request_id"]: line for line in map(json.loads, gateway.output.read_text().splitlines())}
    assert len(gateway.output.read_text().splitlines()) == len(ids)
    lines = [by_id[each] for each in ids]
    assert [line["status"] for line in lines] == [200, 200, 400, 200, 200, 400, 200]
    assert [line["outcome"] for line in lines] == ["miss", "hit", "local", "miss", "local", "local", "bypass"]
    assert lines[0]["query"] == ["q"]
    assert lines[-1] | {"time": 0, "seconds": 0, "upstream_seconds": 0} == {
        "time": 0,
        "request_id": "mine",
        "client": "127.0.0.1",
        "method": "POST",
        "path": "/orders",
        "host": gateway.url.removeprefix("http://"),
        "status": 200,
        "bytes": 2,
        "seconds": 0,
        "route": "rest",
        "outcome": "bypass",
        "forward": "method",
        "forward_status": 200,
        "upstream_seconds": 0,
    }
    assert "secret" not in gateway.output.read_text()


def test_its_log_can_be_turned_off(start_gateway: StartGateway) -> None:
    gateway = start_gateway(settings(access_log=False))
    assert httpx.get(f"{gateway.url}/healthz").status_code == 200
    assert gateway.output.read_text() == ""


def test_without_a_folder_to_write_to_the_embedded_valkey_is_refused_in_one_line(tmp_path: Path) -> None:
    write_config(tmp_path / "gateway.yaml", {"redis_url": "embedded", "admin_listen": "none"})
    nowhere = {"TMPDIR": str(tmp_path / "nowhere")}
    code = (
        "import tempfile; tempfile._get_default_tempdir = lambda: '/proc/nowhere'; from gateway.cli import main; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "serve", "-c", "gateway.yaml"],
        cwd=tmp_path,
        env=clean_environment(nowhere),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert result.returncode == 2
    assert "the embedded Valkey can't create its socket" in result.stderr
    assert "Traceback" not in result.stderr
