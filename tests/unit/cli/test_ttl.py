"""`gateway ttl`: advice of a log, and overrides at a running gateway."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.admin.app import create_admin
from gateway.admin.operations import operations_of
from gateway.app.gateway import create_app
from gateway.app.generations import Generations
from gateway.config.loader import Loaded
from gateway.config.models import Config
from gateway.errors import OrderError
from gateway.testing import StubUpstream, TurnedClock
from tests.support.commands import CONFIG, configured, run
from tests.support.gateways import json_answer, served


def log_of(tmp_path: Path, route: str, count: int = 50) -> str:
    """An access log of hits of a route, one a second."""
    lines = [
        {
            "time": datetime.fromtimestamp(1_800_000_000 + second, UTC).isoformat(),
            "route": route,
            "outcome": "hit" if second % 10 else "miss",
            "key": "1",
            "status": 200,
        }
        for second in range(count)
    ]
    path = tmp_path / "access.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return str(path)


@pytest.mark.parametrize(
    ("route", "said"),
    [("itme", "there is no route itme; did you mean item?"), ("zzzzzz", "there is no route zzzzzz; there are: item")],
)
def test_a_route_that_is_not_there_is_refused_with_those_that_are(route: str, said: str, tmp_path: Path) -> None:
    result = run("ttl", "advise", route, "--log", log_of(tmp_path, "other"), "-c", configured(tmp_path))
    assert isinstance(result.exception, OrderError)
    assert str(result.exception).startswith(said)


def test_a_route_that_was_not_asked_for_has_no_advice_and_status_3(tmp_path: Path) -> None:
    result = run("ttl", "advise", "item", "--log", log_of(tmp_path, "other"), "-c", configured(tmp_path))
    assert (result.exit_code, result.output) == (3, "Nothing was seen of item so far (seen: other).\n")


async def test_an_override_is_set_listed_and_ended_at_the_running_gateway(
    clock: TurnedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Loaded(Config.model_validate(CONFIG), {}, ())
    generations = Generations(create_app(loaded, transport=StubUpstream(json_answer()), clock=clock))
    operations = operations_of(generations, loaded)
    admin = create_admin(lambda: generations.current, "secret", operations=operations)
    await generations.current.start()
    monkeypatch.setenv("GATEWAY_ADMIN_TOKEN", "secret")
    monkeypatch.setenv("LOGNAME", "ada")
    try:
        async with served(admin) as url:
            monkeypatch.setenv("GATEWAY_ADMIN_URL", url)
            order = ("ttl", "set", "item", "5m", "--for", "10m", "--setting", "stale_while_revalidate")
            made = await asyncio.to_thread(run, *order)
            assert made.output.startswith("item.stale_while_revalidate is 5m until ")
            assert generations.current.config.routes["item"].stale_while_revalidate.total_seconds() == 300
            listed = (await asyncio.to_thread(run, "ttl", "list")).output
            assert [word in listed for word in ("item.stale_while_revalidate", "5m", "ada")] == [True] * 3
            ended = await asyncio.to_thread(run, "ttl", "reset", "item", "--setting", "stale_while_revalidate")
            assert ended.output == "The override of item.stale_while_revalidate has ended.\n"
            again = await asyncio.to_thread(run, "ttl", "reset", "item")
            assert (again.exit_code, "item.ttl" in str(again.exception)) == (1, True)
    finally:
        await operations.aclose()
        await generations.current.stop()
