"""The app that `gateway serve` is given: what it may be, and what the supervisor learns of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.app.existing_app import Cache
from gateway.app.gateway import Gateway
from gateway.app.worker_state import SERVED
from gateway.cache.redis.store import RedisStore
from gateway.cache.shared_store import NoShared
from gateway.config.loader import AppSource
from gateway.errors import ConfigError
from gateway.server.ipc import Setup
from gateway.server.served_app import configuration_of, served_app

CODE = """
from datetime import timedelta
from fastapi import FastAPI
from gateway import Cache, Config, Gateway

plain, wrong = FastAPI(), 1
existing = FastAPI()
cache = Cache(existing, memory="8MiB")
mapping = Gateway({"routes": {"a": {"path": "/a", "upstream": "b"}}, "upstreams": {"b": {"url": "http://b.test"}}})
model = Gateway(Config.model_validate({"port": 8123, "redis_url": "none", "shutdown_timeout": "3s"}))
objects = Gateway({"shutdown_timeout": timedelta(seconds=3)})
secret = Gateway({"shutdown_timeout": timedelta(seconds=3), "redis_secret": "s" * 40, "redis_url": "none"})


def made():
    return Gateway({"redis_url": "none"}, title="made")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "served_for_a_test.py").write_text(CODE)
    (tmp_path / "broken_for_a_test.py").write_text("import os\n\nos.nothing_of_this_name\n")
    (tmp_path / "prints_for_a_test.py").write_text("print('noise')\nimport os\nos._exit(4)\n")
    (tmp_path / "gateway.yaml").write_text("memory: 7MiB\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.endswith("_for_a_test")]:
        del sys.modules[name]


def source(name: str, **more: object) -> AppSource:
    return AppSource(f"served_for_a_test:{name}", **more)  # type: ignore[arg-type]


def test_each_form_of_an_app_is_served_by_what_answers_for_it(folder: Path) -> None:
    kinds = {name: served_app(source(name), "none") for name in ("plain", "existing", "mapping", "made")}
    assert {name: type(each) for name, each in kinds.items()} == {
        "plain": Cache,
        "existing": Cache,
        "mapping": Gateway,
        "made": Gateway,
    }
    assert kinds["existing"] is sys.modules["served_for_a_test"].cache
    assert SERVED.get() is None


def test_the_embedded_redis_is_that_of_the_supervisor(folder: Path) -> None:
    assert isinstance(served_app(source("existing"), "unix:///nowhere.sock").shared, RedisStore)
    assert isinstance(served_app(source("made"), "unix:///nowhere.sock").shared, NoShared)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("served_for_a_test:wrong", "is a int; expected a FastAPI"),
        ("served_for_a_test:plane", "did you mean plain"),
        ("broken_for_a_test:app", r"broken_for_a_test\.py:3: AttributeError"),
    ],
)
def test_what_can_not_be_served_is_refused_here_and_by_the_process_that_looks(
    place: str, message: str, folder: Path
) -> None:
    for refused in (lambda: served_app(AppSource(place), "none"), lambda: configuration_of(AppSource(place))):
        with pytest.raises(ConfigError, match=message):
            refused()


def test_the_supervisor_learns_the_configuration_of_the_apps_code(folder: Path) -> None:
    told = configuration_of(source("mapping"))
    assert (list(told.config.routes), told.app) == (["a"], source("mapping"))
    assert configuration_of(source("existing")).config.memory == 8 * 1024**2
    assert configuration_of(source("objects")).config.shutdown_timeout.total_seconds() == 3
    model = configuration_of(source("model")).config
    assert (model.port, model.shutdown_timeout.total_seconds()) == (8123, 3)


def test_a_file_is_for_an_app_that_names_none_and_options_come_before_both(folder: Path) -> None:
    options = {"port": 8125, "workers": 3}
    plain = configuration_of(source("plain", file="gateway.yaml", options=options)).config
    assert (plain.memory, plain.port, plain.workers) == (7 * 1024**2, 8125, 3)
    mapping = configuration_of(source("mapping", file="gateway.yaml", options=options)).config
    assert (mapping.memory != plain.memory, mapping.port) == (True, 8125)


def test_the_configuration_reaches_workers_whole(folder: Path) -> None:
    told = configuration_of(source("mapping", options={"port": 8125}))
    again = Setup.of(2, told).loaded
    assert (again.config, again.app) == (told.config, told.app)


def test_a_configuration_that_can_not_be_sent_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="can't be sent to workers"):
        configuration_of(source("secret"))


def test_a_module_that_ends_the_process_or_takes_too_long_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="status 4"):
        configuration_of(AppSource("prints_for_a_test:app"))
    with pytest.raises(ConfigError, match=r"more than 0\.01 s"):
        configuration_of(source("plain"), seconds=0.01)
