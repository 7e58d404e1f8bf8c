"""The commands that speak to a running gateway, and what they say where there is none."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from typer.testing import CliRunner, Result

from gateway.admin import create_admin
from gateway.app import create_app
from gateway.cli import app as cli
from gateway.cli import main
from gateway.config import Config
from gateway.generations import Generations
from gateway.operations import operations_of
from gateway.remote import AdminError, ask_admin
from gateway.settings import Loaded

from .conftest import TurnedClock, Upstream, json_answer, served

CONFIG: dict[str, Any] = {
    "redis_url": "none",
    "access_log": False,
    "upstreams": {"api": {"url": "http://api.test"}},
    "routes": {"item": {"path": "/items/{id}", "upstream": "api", "ttl": "100s", "tags": ["items"]}},
}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


async def test_an_operator_purges_overrides_and_sees_who_did_what(
    clock: TurnedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Loaded(Config.model_validate(CONFIG), {}, ())
    generations = Generations(create_app(loaded, transport=Upstream(json_answer()), clock=clock))
    operations = operations_of(generations, loaded)
    admin = create_admin(lambda: generations.current, "secret", operations=operations)
    transport = httpx.ASGITransport(generations)
    await generations.current.start()
    monkeypatch.setenv("GATEWAY_ADMIN_TOKEN", "secret")
    monkeypatch.setenv("LOGNAME", "ada")
    try:
        async with (
            served(admin) as url,
            httpx.AsyncClient(transport=transport, base_url="http://gateway.test") as client,
        ):
            monkeypatch.setenv("GATEWAY_ADMIN_URL", url)
            first = (await client.get("/items/1")).json()

            purged = await asyncio.to_thread(run, "purge", "--tag", "items")
            assert (purged.exit_code, purged.output.partition(" have")[0]) == (0, "1 of 1 workers")
            assert (await client.get("/items/1")).json() != first

            made = await asyncio.to_thread(run, "ttl", "set", "item", "5s", "--for", "1h")
            assert (made.exit_code, made.output.partition(" until")[0]) == (0, "item.ttl is 5s")
            assert generations.current.config.routes["item"].ttl != loaded.config.routes["item"].ttl
            listed = await asyncio.to_thread(run, "ttl", "list")
            assert [word in listed.output for word in ("item.ttl", "5s", "ada")] == [True] * 3

            in_force = (await asyncio.to_thread(run, "check", "--running")).output.splitlines()
            (ttl,) = [line.split(maxsplit=2) for line in in_force if line.startswith("routes.item.ttl ")]
            assert (ttl[1], ttl[2].startswith("live override by ada")) == ("5s", True)
            assert any(line.startswith("log_hits ") and line.endswith("default") for line in in_force)

            ended = await asyncio.to_thread(run, "ttl", "reset", "item")
            assert ended.output == "The override of item.ttl has ended.\n"
            assert "item.ttl" not in (await asyncio.to_thread(run, "ttl", "list")).output
            assert (await asyncio.to_thread(run, "audit")).output.count("ada") == 3

            why = await asyncio.to_thread(run, "explain", "GET", "/items/1")
            assert (why.exit_code, "item" in why.output) == (0, True)
            nothing = await asyncio.to_thread(run, "ttl", "advise", "nope")
            assert (nothing.exit_code, "Nothing was seen of nope" in nothing.output) == (3, True)

            refused = await asyncio.to_thread(run, "ttl", "set", "item", "5s", "--for", "1y")
            assert isinstance(refused.exception, AdminError)
            monkeypatch.setenv("GATEWAY_ADMIN_TOKEN", "wrong")
            with pytest.raises(AdminError, match="refuses the GATEWAY_ADMIN_TOKEN set here"):
                await asyncio.to_thread(ask_admin, "/audit")
            monkeypatch.delenv("GATEWAY_ADMIN_TOKEN")
            unnamed = await asyncio.to_thread(run, "ttl", "set", "item", "5s")
            assert f"{url} wants a token: set GATEWAY_ADMIN_TOKEN" in str(unnamed.exception)
    finally:
        await operations.aclose()
        await generations.current.stop()


@pytest.mark.parametrize(
    ("body", "said"), [(b"<html>", "it does not speak JSON"), (b"[1]", "is no gateway's admin listener")]
)
async def test_what_is_no_admin_listener_is_said_to_be_none(
    body: bytes, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def other(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async with served(other) as url:
        monkeypatch.setenv("GATEWAY_ADMIN_URL", url)
        with pytest.raises(AdminError, match=said):
            await asyncio.to_thread(ask_admin, "/audit")


def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the console script says on standard error where it ends with status 2."""
    monkeypatch.setattr(sys, "argv", ["gateway", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_where_no_gateway_answers_the_setting_is_named_and_there_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GATEWAY_ADMIN_URL", "http://127.0.0.1:9")
    said = told(monkeypatch, capsys, "audit")
    assert said.startswith("no gateway answers at http://127.0.0.1:9")
    assert "set GATEWAY_ADMIN_URL" in said


def configured(tmp_path: Path, **settings: Any) -> str:
    path = tmp_path / "gateway.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, **settings}))
    return str(path)


def test_a_valid_configuration_is_shown_with_where_each_value_came_from(tmp_path: Path) -> None:
    result = run("check", "--config", configured(tmp_path))
    assert result.exit_code == 0
    (line,) = [line for line in result.output.splitlines() if line.startswith("routes.item.ttl ")]
    assert "gateway.yaml" in line
    assert result.output.endswith("The configuration is valid: 1 route, 1 upstream.\n")


def test_a_configuration_that_is_refused_is_told_problem_by_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = told(monkeypatch, capsys, "check", "-c", configured(tmp_path, wrokers=2, port=-1))
    assert said.startswith("The configuration is refused (2 problems):\n")
    assert "workers" in said


def test_routes_are_listed_in_the_order_in_which_they_are_tried(tmp_path: Path) -> None:
    parts = {"path": "/home", "parts": {"one": {"upstream": "api", "path": "/one"}}}
    rest = {"path": "/{path:path}", "upstream": "api", "stale_while_revalidate": "1m", "stale_if_error": "1h"}
    routes = {"rest": rest, "home": parts, **CONFIG["routes"]}
    result = run("routes", "-c", configured(tmp_path, routes=routes))
    names = [line.split()[0] for line in result.output.splitlines()[1:]]
    assert names.index("rest") == 2
    assert "parts: one" in result.output


def test_an_unknown_variable_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_WROKERS", "2")
    result = run("routes", "-c", configured(tmp_path))
    assert result.exit_code == 0
    assert "warning: " in result.output
    assert "GATEWAY_WROKERS" in result.output
