"""What tests share besides `gateway.testing`: fixtures, real servers on free ports, a gateway of one upstream.

`--scale` sets how much the tests try whose length is a choice; what each size is at each scale stands in `SIZES`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import httpx
import hypothesis
import pytest
import uvicorn

from gateway.app.gateway import Gateway, create_app
from gateway.cache.redis.store import RedisStore
from gateway.observability.access_log import silent
from gateway.server.embedded_redis import Embedded
from gateway.testing import Answer, TurnedClock


class Size(NamedTuple):
    ci: int
    """What each change can bear: `make test` takes at most 12 minutes on two idle cores."""
    full: int
    """What is run before an issue is closed (`.ci/full`); the figures in README.md and docs/ are of this length."""


SIZES = {
    "aggregate_seconds": Size(3, 60),  # of load while a part's upstream is down, or its tag purged
    "aggregate_stories": Size(300, 3_000),  # lived through by a gateway with the edge and by one without
    "counted_requests": Size(3_000, 100_000),  # counted by the client and by the metrics
    "cut_off_seconds": Size(0, 10),  # that a gateway can't reach Redis while an override is set
    "edge_stories": Size(500, 20_000),  # lived through by a gateway with the edge and by one without
    "handler_key_pairs": Size(60, 100),  # of requests to a handler, for each configuration
    "handler_stories": Size(300, 5_000),  # of handlers, with the edge and without
    "key_pairs": Size(40, 100),  # of requests to a declared route, for each configuration
    "kill_seconds": Size(10, 60),  # of load while a worker is killed every two seconds
    "openapi_requests": Size(15, 100),  # of each operation, of each kind
    "override_workers": Size(2, 4),  # of each of two gateways
    "protocol_stories": Size(300, 5_000),  # of request lines and header blocks that are remembered
    "purge_fleets": Size(40, 400),  # of the model of the purge stream
    "purges": Size(200, 1_000),  # under load, while Redis is killed three times
    "reload_answers": Size(20, 60),  # awaited between two reloads
    "reloads": Size(20, 200),  # under load
    "sent_key_pairs": Size(60, 100),  # of requests whose key holds what was sent
}
FULL_TIMEOUT = 3600.0
"""Seconds for one test at full scale; at the other the timeout is pytest's own setting."""
_scale = "ci"


def size(name: str) -> int:
    """How much a test does at the scale of this run."""
    return int(getattr(SIZES[name], _scale))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--scale", choices=Size._fields, default="ci", help="how much the sized tests do (default: ci)")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Before modules are collected: Hypothesis has its number of examples when a test is defined."""
    global _scale
    _scale = config.getoption("--scale")
    # A change must not fail by chance on what it did not touch: its examples are the same in each run. New ones are
    # looked for at full scale.
    hypothesis.settings.register_profile("repeatable", derandomize=_scale == "ci")
    hypothesis.settings.load_profile("repeatable")
    if _scale == "full":
        config.option.timeout = FULL_TIMEOUT
    if getattr(config.option, "numprocesses", None) and config.option.basetemp is None:
        # pytest-xdist adds a folder to the paths of temporary files: a unix socket's may have 107 characters.
        config.option.basetemp = tempfile.mkdtemp(prefix="t")
        config.add_cleanup(partial(shutil.rmtree, config.option.basetemp, ignore_errors=True))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Under pytest-xdist a test marked `alone` waits until no other one runs, and no other one starts beside it.

    Others share the room, it has the room to itself. Whoever enters passes the door first, so that one who waits
    for an empty room gets it. The wait does not count for the test's timeout, which begins inside this hook.
    """
    workers = getattr(item.config, "workerinput", None)
    if workers is None:
        return (yield)
    lock = Path(item.config.rootpath) / ".pytest_cache" / workers["testrunuid"]
    lock.parent.mkdir(exist_ok=True)
    kind = fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH
    with lock.with_suffix(".door").open("w") as door, lock.with_suffix(".room").open("w") as room:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, kind)
        fcntl.flock(door, fcntl.LOCK_UN)
        return (yield)


@pytest.fixture
def clock() -> TurnedClock:
    return TurnedClock()


def json_answer(**headers: str) -> Answer:
    """Answers every request with its own number, and these headers (`_` stands for `-`)."""
    count = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal count
        count += 1
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.Response(200, json={"n": count}, headers=fields)

    return answer


def gateway(
    upstream: httpx.AsyncBaseTransport | None = None,
    routes: Mapping[str, Any] | None = None,
    *,
    clock: Any = None,
    store: Any = None,
    **settings: Any,
) -> Gateway:
    """A gateway with one upstream, `api`, and a catch-all route unless `routes` are given."""
    config = {
        "redis_url": "none",
        "upstreams": {"api": {"url": "http://api.test", "timeout": "5s"}},
        "routes": routes if routes is not None else {"rest": {"path": "/{path:path}", "upstream": "api"}},
        **settings,
    }
    return create_app(config, transport=upstream, clock=clock, store=store, log=silent)


@contextlib.asynccontextmanager
async def served(app: Any, *, sock: socket.socket | None = None, **settings: Any) -> AsyncIterator[str]:
    """An ASGI app on a real server in this event loop, on `sock` or a free port; gives its URL. As in production,
    uvicorn does not wrap the app, or nothing would go past ASGI."""
    if sock is None:
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
    lifespan: Any = "on" if isinstance(app, Gateway) else "off"
    config = uvicorn.Config(app, **{"log_level": "critical", "lifespan": lifespan, "proxy_headers": False, **settings})
    server = _Server(config)
    task = asyncio.ensure_future(server.serve(sockets=[sock]))
    try:
        await server.up.wait()
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        server.force_exit = True
        await task
        sock.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()


Serve = Callable[..., AbstractAsyncContextManager[str]]


@pytest.fixture(scope="session")
def valkey() -> Iterator[Embedded]:
    """A real Valkey for the whole session; a test takes a prefix of its own."""
    with Embedded(maxmemory=64 * 1024 * 1024) as server:
        yield server


@pytest.fixture
async def redis_store(valkey: Embedded) -> AsyncIterator[RedisStore]:
    store = RedisStore(valkey.url, prefix=f"{uuid4().hex}:", budget=1.0)
    yield store
    await store.aclose()
