"""The fixtures that all tests share, and the options of a run. Helpers that tests import are in `tests/support/`."""

from __future__ import annotations

import compileall
import fcntl
import gc
import shutil
import tempfile
from collections.abc import AsyncIterator, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TextIO
from uuid import uuid4

import hypothesis
import pytest

from gateway.app.generations import forget_endpoints
from gateway.cache.redis.store import RedisStore
from gateway.routing.function_calls import running as functions
from gateway.server.embedded_redis import Embedded
from gateway.testing import TurnedClock
from tests.support import scale
from tests.support.edge_lines import forget_lines
from tests.support.made_once import MadeOnce
from tests.support.made_once import made_once as made_once_below
from tests.support.order import is_alone, ordered


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--scale", choices=scale.Size._fields, default="ci", help="how much the sized tests do (default: ci)"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Before modules are collected: Hypothesis has its number of examples when a test is defined."""
    scale.current = config.getoption("--scale")
    # A change must not fail by chance on what it did not touch: its examples are the same in each run. New ones are
    # looked for at full scale.
    # No limit on an example's time: on a machine with other work, any takes ten times as long.
    hypothesis.settings.register_profile(
        "repeatable",
        derandomize=scale.current == "ci",
        deadline=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    hypothesis.settings.load_profile("repeatable")
    if not hasattr(config, "workerinput"):
        # Some hundred processes that tests start import it. Each would compile it where PYTHONDONTWRITEBYTECODE is set.
        compileall.compile_dir(config.rootpath / "gateway", quiet=2)
    if scale.current == "full":
        config.option.timeout = scale.FULL_TIMEOUT
    if getattr(config.option, "numprocesses", None) and config.option.basetemp is None:
        # pytest-xdist adds a folder to the paths of temporary files: a unix socket's may have 107 characters.
        config.option.basetemp = tempfile.mkdtemp(prefix="t")
        config.add_cleanup(partial(shutil.rmtree, config.option.basetemp, ignore_errors=True))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under pytest-xdist those marked `alone` run first, in a row, and then those with real processes."""
    workers = getattr(config, "workerinput", None)
    if workers is not None:
        items[:] = ordered(items, int(workers["workercount"]))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    """Report without the garbage collector: what a finalizer warns of is formatted by a parse within the report's own,
    which CPython 3.11 ends with a SystemError (gh-106905), and pytest then ends the run."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, Any, Any]:
    """After each file, let go of the apps that it has made, which a process kept to its end: 3 GB of them. One that
    still runs would answer for the functions of the files that follow."""
    try:
        return (yield)
    finally:
        if nextitem is None or nextitem.path != item.path:
            forget_endpoints()
            forget_lines()
            still, functions._caches = functions._caches, []
            assert not still, f"{len(still)} apps that tests of {item.path.name} have started were not stopped"


_room: list[TextIO] = []
"""The lock on the room while this process is in it: for one test, or for several marked `alone` in a row."""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, Any, Any]:
    """Under pytest-xdist a test marked `alone` waits until no other one runs, and no other one starts beside it.

    Others share the room, it has the room to itself, and so have those marked `alone` that follow it at once: each
    time the room is emptied, all processes wait for the slowest test in it. Whoever enters passes the door first, so
    that one who waits for an empty room gets it. The wait does not count for the test's timeout, which begins inside
    this hook.
    """
    workers = getattr(item.config, "workerinput", None)
    if workers is None:
        return (yield)
    _enter(item.config.rootpath / ".pytest_cache" / workers["testrunuid"], alone=is_alone(item))
    try:
        return (yield)
    finally:
        if nextitem is None or not (is_alone(item) and is_alone(nextitem)):
            _room.pop().close()


def _enter(lock: Path, *, alone: bool) -> None:
    if _room:
        return
    lock.parent.mkdir(exist_ok=True)
    _room.append(room := lock.with_suffix(".room").open("w"))
    with lock.with_suffix(".door").open("w") as door:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> MadeOnce:
    """See `tests.support.made_once`."""
    own = tmp_path_factory.getbasetemp()
    return partial(made_once_below, own.parent if hasattr(request.config, "workerinput") else own)


@pytest.fixture
def clock() -> TurnedClock:
    return TurnedClock()


@pytest.fixture
def only_new_objects() -> Iterator[None]:
    """`gc.collect` walks what the test has made, and not the million objects of this process besides."""
    gc.freeze()
    yield
    gc.unfreeze()


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
