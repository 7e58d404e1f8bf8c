"""`gateway demo`: its addresses, and what becomes of its processes."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator

import pytest

from gateway.config.loader import load
from gateway.config.models import Config
from gateway.demo import runner
from gateway.demo.runner import DemoError, child, console_of, free_admin, free_port, upstream_variables, why_not_free


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that another listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_that_is_taken_or_none_says_why(taken: int) -> None:
    assert why_not_free("127.0.0.1", taken) == "Address already in use"
    assert why_not_free("127.0.0.1", 70_000) == "ports are 0 to 65535"
    assert why_not_free("127.0.0.1", free_port("127.0.0.1")) is None


def test_the_admin_listener_moves_where_its_port_is_taken_alone(taken: int) -> None:
    moved = free_admin(f"127.0.0.1:{taken}")
    assert moved.startswith("127.0.0.1:")
    assert moved != f"127.0.0.1:{taken}"
    free = f"127.0.0.1:{free_port('127.0.0.1')}"
    assert [free_admin(each) for each in (free, "none", "unix:/run/gw.sock")] == [free, "none", "unix:/run/gw.sock"]


@pytest.mark.parametrize(
    ("listen", "shown"),
    [
        ("127.0.0.1:9000", "http://127.0.0.1:9000/console"),
        ("0.0.0.0:9000", "http://127.0.0.1:9000/console"),
        ("none", "the console is at admin_listen, which is none"),
        ("unix:/run/gw.sock", "the console is at admin_listen, which is unix:/run/gw.sock"),
    ],
)
def test_the_console_is_named_as_a_browser_reaches_it(listen: str, shown: str) -> None:
    assert console_of(listen) == shown


def test_with_an_issuer_the_demo_has_a_screen_of_ones_own() -> None:
    with runner.configuration("") as file:
        assert not load(file).config.identity
    with runner.configuration("http://127.0.0.1:4711") as file:
        config = load(file).config
    assert config.identity["demo"].issuer == "http://127.0.0.1:4711"
    assert config.routes["mine"].parts["me"].per == ["sub"]
    assert set(load(runner.CONFIG).config.routes) < set(config.routes)


def test_only_the_upstreams_at_the_shop_move_with_it() -> None:
    usual = f"http://{runner.SHOP_HOST}:{runner.SHOP_PORT}"
    upstreams = {"catalog": {"url": usual}, "other": {"url": "http://other.test"}}
    config = Config.model_validate({"upstreams": upstreams})
    moved = upstream_variables(config, "http://127.0.0.1:1234")
    assert moved == {"GATEWAY_UPSTREAMS__CATALOG__URL": "http://127.0.0.1:1234"}
    assert upstream_variables(config, usual) == {}


async def test_a_process_that_ends_by_itself_is_an_error_with_its_status() -> None:
    async with child("shop", "gateway", "no-such-command") as shop:
        with pytest.raises(DemoError, match="The shop ended by itself, with status 2") as raised:
            await shop.died()
    assert raised.value.status == 2


async def test_one_that_ends_before_it_answers_is_not_waited_for() -> None:
    async with child("shop", "gateway", "no-such-command") as shop:
        with pytest.raises(DemoError, match="ended by itself"):
            await shop.answers(f"http://127.0.0.1:{free_port('127.0.0.1')}/")


async def test_a_process_is_ended_with_its_block() -> None:
    async with child("sleeper", "timeit", "-n1", "-r1", "import time; time.sleep(600)") as sleeper:
        assert sleeper._process.returncode is None
    assert sleeper._process.returncode is not None
    assert sys.platform != "linux" or sleeper._process.returncode < 0
