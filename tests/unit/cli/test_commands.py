"""The commands that speak to a running gateway, and what they say where there is none."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

import gateway
from gateway.admin.app import create_admin
from gateway.admin.operations import operations_of
from gateway.advisor import traffic
from gateway.app.gateway import create_app
from gateway.app.generations import Generations
from gateway.cli.options import AdminError, request_admin
from gateway.config.loader import Loaded
from gateway.config.models import Config
from gateway.errors import OrderError
from gateway.testing import StubUpstream, TurnedClock
from tests.support.commands import CONFIG, configured, run, told
from tests.support.gateways import json_answer, served


async def test_an_operator_purges_overrides_and_sees_who_did_what(
    clock: TurnedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic, "EVERY", 3600.0)  # on a slow machine the advice would have seen the requests
    loaded = Loaded(Config.model_validate(CONFIG), {}, ())
    generations = Generations(create_app(loaded, transport=StubUpstream(json_answer()), clock=clock))
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
            assert (purged.exit_code, purged.output.partition(" has")[0]) == (0, "Purged: tag items.\n1 of 1 worker")
            quiet = await asyncio.to_thread(run, "purge", "--key", "/items/1", "--route", "item", "--soft")
            assert quiet.output.startswith("Purged softly: key /items/1, route item.\n")
            foreign = await asyncio.to_thread(run, "purge", "--key", "http://other.example/items/1")
            assert "other.example can't be checked without public_url" in str(foreign.exception)
            foreign = await asyncio.to_thread(run, "explain", "GET", "http://other.example/items/1")
            assert "other.example can't be checked without public_url" in str(foreign.exception)
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
            assert (await asyncio.to_thread(run, "audit")).output.count("ada") == 4

            why = await asyncio.to_thread(run, "explain", "GET", "/items/1")
            assert (why.exit_code, "item" in why.output) == (0, True)
            nothing = await asyncio.to_thread(run, "ttl", "advise", "item")
            assert (nothing.exit_code, "Nothing was seen of item" in nothing.output) == (3, True)
            misspelt = await asyncio.to_thread(run, "ttl", "advise", "itme")
            assert str(misspelt.exception) == "there is no route itme; did you mean item?"

            refused = await asyncio.to_thread(run, "ttl", "set", "item", "5s", "--for", "1y")
            assert isinstance(refused.exception, AdminError)
            monkeypatch.setenv("GATEWAY_ADMIN_TOKEN", "wrong")
            with pytest.raises(AdminError, match="refused this GATEWAY_ADMIN_TOKEN"):
                await asyncio.to_thread(request_admin, "/audit")
            monkeypatch.delenv("GATEWAY_ADMIN_TOKEN")
            unnamed = await asyncio.to_thread(run, "ttl", "set", "item", "5s")
            assert f"{url} requires a token: set GATEWAY_ADMIN_TOKEN" in str(unnamed.exception)
    finally:
        await operations.aclose()
        await generations.current.stop()


def test_a_configuration_that_is_refused_is_told_problem_by_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = told(monkeypatch, capsys, "check", "-c", configured(tmp_path, wrokers=2, port=-1))
    assert said.startswith("The configuration is refused (2 problems):\n")
    assert "workers" in said


def test_an_unknown_variable_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_WROKERS", "2")
    result = run("routes", "-c", configured(tmp_path))
    assert result.exit_code == 0
    assert "warning: " in result.output
    assert "GATEWAY_WROKERS" in result.output


# --- where the admin listener is ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ((), "nothing to purge: set --key, --tag, --route or --all"),
        (("--soft",), "nothing to purge"),
        (("--tag", ""), "is empty"),
        (("--key", "items/1"), "write a path such as /items/1"),
        (("--route", ""), "a route's name is empty"),
    ],
)
def test_a_purge_that_could_purge_nothing_is_refused_before_anyone_is_asked(
    folder: Path, order: tuple[str, ...], said: str
) -> None:
    result = run("purge", *order, "--admin-url", "http://127.0.0.1:9")
    assert isinstance(result.exception, OrderError)
    assert said in str(result.exception)


# --- check -------------------------------------------------------------------------------------------------


def test_check_shows_what_is_changed_or_nothing(tmp_path: Path) -> None:
    path = configured(tmp_path)
    changed = run("check", "-c", path, "--changed").output.splitlines()
    assert {line.split()[0] for line in changed if line} >= {"setting", "routes.item.ttl", "redis_url"}
    assert not any(line.endswith("default") for line in changed)
    assert len(changed) < len(run("check", "-c", path).output.splitlines())
    assert run("check", "-c", path, "--quiet").output == ""


def test_check_names_the_routes_that_the_next_release_treats_otherwise(tmp_path: Path) -> None:
    routes: dict[str, Any] = {
        **CONFIG["routes"],
        "set": {**CONFIG["routes"]["item"], "path": "/set", "methods": ["GET"]},
    }
    path = configured(tmp_path, routes=routes)
    output = run("check", "-c", path).output
    assert "note: methods is not set for item: the next release responds 405" in output
    notes = json.loads(run("check", "-c", path, "--json").stdout)["notes"]
    assert [note.startswith("methods is not set for item: ") for note in notes] == [True]


def test_check_as_json_holds_settings_warnings_and_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_WROKERS", "2")
    result = run("check", "-c", configured(tmp_path), "--json", "--changed")
    told = json.loads(result.stdout)
    assert (result.exit_code, told["valid"], told["problems"]) == (0, True, [])
    assert told["warnings"] == ["GATEWAY_WROKERS is unknown; did you mean GATEWAY_WORKERS?"]
    assert {"key": "log_hits", "value": "1.0", "source": "default"} not in told["settings"]
    assert any(each["key"] == "routes.item.ttl" and each["value"] == "100s" for each in told["settings"])
    result = run("check", "-c", configured(tmp_path, port=-1), "--json")
    told = json.loads(result.stdout)
    assert (result.exit_code, told["valid"], [each["key"] for each in told["problems"]]) == (2, False, ["port"])


def test_check_refuses_a_configuration_by_which_nothing_is_served(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no configuration file, and no variable sets a route" in told(monkeypatch, capsys, "check")
    (folder / "gateway.yaml").write_text("")
    assert "gateway.yaml has neither `routes` nor `include`" in told(monkeypatch, capsys, "check", "--quiet")
    (folder / "gateway.yaml").write_text(yaml.safe_dump(CONFIG))
    assert run("check").output.endswith("The configuration is valid: 1 route, 1 upstream.\n")


def test_check_refuses_identity_where_its_extra_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = {"shop": {"issuer": "https://id.example.com", "audience": ["shop"]}}
    file = configured(tmp_path, identity=identity)
    assert run("check", "-q", "-c", file).exit_code == 0
    for name in [each for each in sys.modules if each.startswith(("joserfc", "gateway.identity.key_set"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "joserfc", None)
    assert "install cached-gateway[identity]" in str(run("check", "-q", "-c", file).exception)


def test_routes_are_checked_in_proportion_to_their_number(tmp_path: Path) -> None:
    """Ten times as many take ten times as long; what is looked at for each pair of them would take a hundred."""
    spent = {}
    for number in (100, 1000):
        routes = {f"r{n}": {"path": f"/r{n}/{{id}}", "upstream": "api", "ttl": "10s"} for n in range(number)}
        path = configured(tmp_path, routes=routes)
        began = time.process_time()
        assert run("check", "-c", path).output.endswith(f"{number} routes, 1 upstream.\n")
        spent[number] = time.process_time() - began
    assert spent[1000] < 30 * spent[100]


# --- help --------------------------------------------------------------------------------------------------


def test_the_version_and_short_help_are_there() -> None:
    assert run("--version").output == f"gateway {gateway.__version__}\n"
    for order in ((), ("purge",), ("ttl", "set")):
        assert run(*order, "-h").output == run(*order, "--help").output
    assert "--install-completion" in run("-h").output


def test_paragraphs_of_the_help_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("TERMINAL_WIDTH", "400")
    shown = run("serve", "--help").output
    (line,) = [line for line in shown.splitlines() if "SIGHUP reloads" in line]
    assert "A second SIGTERM stops at once." in line
