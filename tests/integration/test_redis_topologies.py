"""Redis as it is run: three nodes of a cluster, a Sentinel with its fail-over, TLS, users with rights of their own.

Each server is Debian's `redis-server`, on free ports, ended with its test.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from tests.support.load import Load, load_of
from tests.support.mixed_load import mixed
from tests.support.processes import Child, GatewayProcess, StartGateway, free_port

pytestmark = [
    pytest.mark.skipif(
        shutil.which("redis-server") is None, reason="needs redis-server (Debian's package of that name)"
    ),
    pytest.mark.timeout(120),
]
alone = pytest.mark.alone  # Redis has 50 ms to answer
TOKEN = "a token for the test"
READY = "Ready to accept connections"
CLIENTS = 30


class Server(Child):
    """A redis-server, or a Sentinel, in a directory of its own."""

    def __init__(self, directory: Path, *arguments: str, port: int = 0, config: str | None = None) -> None:
        self.port = port or free_port()
        self.bus = 0
        self.directory = directory / f"redis-{self.port}"
        self.directory.mkdir(exist_ok=True)
        file: list[str] = []
        if config is not None:
            path = self.directory / "redis.conf"
            path.write_text(config)
            file = [str(path)]
        own = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory), "--save", ""]
        super().__init__(
            ["/bin/sh", "-c", 'exec "$@" 1>&2', "sh", "redis-server", *file, *own, *arguments],
            output=self.directory / "out",
            cwd=self.directory,
        )

    def client(self, **options: Any) -> redis.Redis:
        return redis.Redis(host="127.0.0.1", port=self.port, socket_timeout=5, **options)


MakeServer = Callable[..., Server]


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[MakeServer]:
    with ExitStack() as stack:

        def make(*arguments: str, **more: Any) -> Server:
            server = Server(tmp_path, *arguments, **more)
            stack.callback(server.end)
            return server

        yield make


def until(condition: Callable[[], object], what: str, within: float = 30.0) -> None:
    """Wait for another process: there is nothing to wait on."""
    ends = time.monotonic() + within
    while True:
        with suppress(redis.RedisError):
            if condition():
                return
        assert time.monotonic() < ends, f"{what}: not within {within} s"
        time.sleep(0.05)


def settings(origin: str, url: str, budget: str = "50ms") -> dict[str, Any]:
    route = {"upstream": "api", "path": "/hot/{id}", "ttl": "60s", "tags": ["hot"]}
    return {
        "redis_url": url,
        "redis_budget": budget,
        "access_log": False,
        "upstreams": {"api": {"url": origin}},
        "routes": {
            "hot": route,
            "warm": {**route, "path": "/warm/{id}", "ttl": "300ms", "stale_while_revalidate": "60s"},
            "cold": {**route, "path": "/cold/{id}"},
        },
    }


def fleet(start_gateway: StartGateway, origin: str, url: str, budget: str = "50ms") -> list[GatewayProcess]:
    environment, config = {"GATEWAY_ADMIN_TOKEN": TOKEN}, settings(origin, url, budget)
    return [start_gateway(config, name=name, environment=environment) for name in ("one", "two")]


def purge(gateway: GatewayProcess, **order: Any) -> dict[str, Any]:
    with httpx.Client(
        transport=httpx.HTTPTransport(uds=str(gateway.admin_socket)), base_url="http://admin.test", timeout=10
    ) as client:
        response = client.post("/purge", json=order, headers={"authorization": f"Bearer {TOKEN}"})
    assert response.status_code in (200, 202), response.text
    report: dict[str, Any] = response.json()
    return report


def written(gateway: GatewayProcess) -> float:
    return gateway.metrics()["gateway_redis_writes_total"]


def one_cache(gateways: list[GatewayProcess], path: str) -> None:
    """What one has fetched the other has; what is purged at one, is at the other."""
    one, two = gateways
    with httpx.Client() as client:
        before = written(one)
        made = client.get(one.url + path).json()["at"]
        until(lambda: written(one) > before, "written")
        there = client.get(two.url + path)
        assert there.json()["at"] == made
        assert "hit" in there.headers["cache-status"]
        report = purge(two, tags=["hot"])
        assert (report["complete"], report["confirmed"], report["workers"]) == (True, 2, 2)
        for gateway in gateways:
            assert client.get(gateway.url + path).json()["at"] > made


async def purged_again(gateway: GatewayProcess, within: float) -> float:
    """Seconds until a purge is confirmed by both."""
    began = time.monotonic()
    while True:
        report = await asyncio.to_thread(purge, gateway, tags=["hot"])
        if report["complete"] and report["workers"] == 2:
            return time.monotonic() - began
        assert time.monotonic() - began < within, report


async def loaded(gateway: GatewayProcess, during: Callable[[Load], Any]) -> Load:
    async with load_of(gateway.url, mixed(), CLIENTS) as load:
        await load.window(0.5)
        await during(load)
        await load.window(0.5)
    return load


# --- a cluster -----------------------------------------------------------------------------------------------


def cluster_of_three(make_server: MakeServer) -> list[Server]:
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-require-full-coverage", "no")
    nodes = []
    for _ in range(3):
        bus = free_port()
        nodes.append(make_server(*options, "--cluster-port", str(bus)))
        nodes[-1].bus = bus
    for node in nodes:
        node.said(READY)
    bounds = [0, 5461, 10923, 16384]
    for number, node in enumerate(nodes):
        with node.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
            client.execute_command("CONFIG", "SET", "cluster-announce-ip", "127.0.0.1")
            if number:
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port, nodes[0].bus)

    def joined() -> bool:
        for node in nodes:
            with node.client(decode_responses=True) as client:
                said = str(client.execute_command("CLUSTER", "INFO"))
                if "cluster_state:ok" not in said or "cluster_known_nodes:3" not in said:
                    return False
        return True

    until(joined, "the cluster is one")
    return nodes


def cluster_url(nodes: list[Server]) -> str:
    return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)


def owner_of(nodes: list[Server], key: str) -> Server:
    with nodes[0].client() as client:
        slot = client.execute_command("CLUSTER", "KEYSLOT", key)
    return nodes[0] if slot < 5461 else nodes[1] if slot < 10923 else nodes[2]


def test_a_cluster_of_three_is_one_cache(start_gateway: StartGateway, make_server: MakeServer, origin: str) -> None:
    nodes = cluster_of_three(make_server)
    gateways = fleet(start_gateway, origin, cluster_url(nodes), "5s")
    one_cache(gateways, "/hot/1")
    with httpx.Client() as client:
        for number in range(40):
            assert client.get(f"{gateways[0].url}/hot/{number}").status_code == 200
    used = []
    for node in nodes:
        with node.client() as direct:
            used.append(direct.dbsize())
    assert all(used), "the entries lie on every node"
    assert gateways[0].metrics()["gateway_redis_failures_total"] == 0


@alone
@pytest.mark.parametrize("which", ["a node with entries alone", "the node with the purges"])
async def test_a_cluster_node_lost_under_load_fails_no_request(
    start_gateway: StartGateway, make_server: MakeServer, origin: str, which: str
) -> None:
    nodes = cluster_of_three(make_server)
    gateways = fleet(start_gateway, origin, cluster_url(nodes))
    with_purges = owner_of(nodes, "gw:{purge}:log")
    lost = with_purges if "purges" in which else next(node for node in nodes if node is not with_purges)

    async def lose(load: Load) -> None:
        lost.signal(9)  # type: ignore[arg-type]
        await load.window(3.0)

    load = await loaded(gateways[0], lose)
    assert load.failed == []
    assert len(load.samples) > 200
    if lost is not with_purges:
        report = await asyncio.to_thread(purge, gateways[0], tags=["hot"])
        assert (report["complete"], report["workers"]) == (True, 2)


# --- Sentinel ------------------------------------------------------------------------------------------------


def sentinels_of(make_server: MakeServer, master: Server) -> list[Server]:
    config = (
        f"sentinel monitor shop 127.0.0.1 {master.port} 2\n"
        "sentinel down-after-milliseconds shop 500\nsentinel failover-timeout shop 2000\n"
    )
    sentinels = [make_server("--sentinel", config=config) for _ in range(3)]

    def agreed() -> bool:
        for sentinel in sentinels:
            with sentinel.client() as client:
                state: Any = client.sentinel_master("shop")
                if state["num-other-sentinels"] != 2 or state["num-slaves"] != 1:
                    return False
        return True

    until(agreed, "the sentinels know each other")
    return sentinels


@alone
async def test_a_sentinel_fail_over_under_load_fails_no_request_and_loses_no_purge(
    start_gateway: StartGateway, make_server: MakeServer, origin: str
) -> None:
    master = make_server()
    master.said(READY)
    replica = make_server("--replicaof", "127.0.0.1", str(master.port))
    replica.said("MASTER <-> REPLICA sync: Finished with success|Done loading RDB")
    sentinels = await asyncio.to_thread(sentinels_of, make_server, master)
    hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in sentinels)
    gateways = fleet(start_gateway, origin, f"redis+sentinel://{hosts}/shop/0")
    await asyncio.to_thread(one_cache, gateways, "/hot/1")
    took = 0.0

    async def fail_over(load: Load) -> None:
        nonlocal took
        began = time.monotonic()
        master.signal(9)  # type: ignore[arg-type]
        await purged_again(gateways[1], 30)
        took = time.monotonic() - began

    load = await loaded(gateways[0], fail_over)
    print(f"purges were confirmed again {took:.1f} s after the master's end; {len(load.samples)} answers")
    assert load.failed == []
    with replica.client() as client:
        assert client.role()[0] == b"master"
    await asyncio.to_thread(one_cache, gateways, "/hot/after")


# --- TLS, users ----------------------------------------------------------------------------------------------


def certificate(directory: Path) -> tuple[Path, Path]:
    key, made = directory / "key.pem", directory / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(made)),
        ],
        check=True,
        capture_output=True,
    )
    return key, made


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, to make a certificate")
def test_tls_with_a_certificate_of_ones_own(
    start_gateway: StartGateway, make_server: MakeServer, origin: str, tmp_path: Path
) -> None:
    key, made = certificate(tmp_path)
    port = free_port()
    server = make_server(
        *("--tls-port", str(port), "--tls-cert-file", str(made), "--tls-key-file", str(key)),
        *("--tls-ca-cert-file", str(made), "--tls-auth-clients", "no"),
    )
    server.said(READY)
    one_cache(fleet(start_gateway, origin, f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={made}", "5s"), "/hot/1")


def test_a_certificate_that_nobody_vouches_for_is_refused(
    start_gateway: StartGateway, make_server: MakeServer, origin: str, tmp_path: Path
) -> None:
    key, made = certificate(tmp_path)
    port = free_port()
    server = make_server(
        *("--tls-port", str(port), "--tls-cert-file", str(made), "--tls-key-file", str(key)),
        *("--tls-ca-cert-file", str(made), "--tls-auth-clients", "no"),
    )
    server.said(READY)
    gateway = start_gateway(settings(origin, f"rediss://127.0.0.1:{port}/0"))
    assert gateway.admin("/readyz").json()["redis"] == "away"


RIGHTS = "~gw:* +@read +@write +@connection +eval +time +info"  # as docs/redis.md says


def test_a_user_with_rights_to_the_prefix_alone(
    start_gateway: StartGateway, make_server: MakeServer, origin: str
) -> None:
    server = make_server()
    server.said(READY)
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "gateway", "on", ">s3cret:/@", *RIGHTS.split())
        client.execute_command("ACL", "SETUSER", "default", "off")
    url = f"redis://gateway:s3cret%3A%2F%40@127.0.0.1:{server.port}/0"
    one_cache(fleet(start_gateway, origin, url, "5s"), "/hot/1")
