"""`gateway ttl advise`: of an access log, and how shares, rates and durations are written."""

from __future__ import annotations

import io
import json
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from gateway.advisor.advice import Advice
from gateway.app.gateway import create_app
from gateway.cli.commands import app as cli
from gateway.cli.ttl_report import LogError, TargetError, advice_of_log, duration, parse_rate, parse_share
from gateway.observability.access_log import JsonAccessLog
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.gateways import json_answer
from tests.support.traffic import ITEM


async def test_an_access_log_gives_the_advice_that_the_live_traffic_gave(clock: TurnedClock, tmp_path: Path) -> None:
    file = io.BytesIO()
    log = JsonAccessLog(file)
    config = {"redis_url": "none", "upstreams": {"api": {"url": "http://api.test"}}, "routes": ITEM}
    app = create_app(config, transport=StubUpstream(json_answer()), clock=clock, log=log)
    times = []
    async with running(app) as client:
        for _ in range(120):
            await client.get("/items/1", params={"token": "secret"})
            times.append(clock.now())
            clock.turn(1)
        await app.watch.turn()
        (live,) = await app.advice()
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert "secret" not in file.getvalue().decode()
    from datetime import UTC, datetime

    path = tmp_path / "access.jsonl"
    path.write_text(
        "\n".join(
            json.dumps({**line, "time": datetime.fromtimestamp(at, UTC).isoformat()})
            for line, at in zip(lines, times, strict=True)
        )
    )
    config_file = tmp_path / "gateway.yaml"
    config_file.write_text(json.dumps(config))
    arguments = ["ttl", "advise", "--log", str(path), "-c", str(config_file)]
    result = CliRunner().invoke(cli, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    (read,) = msgspec.json.decode(result.output, type=list[Advice])
    assert (read.route, read.today, read.requests) == ("item", 10.0, 120)
    assert read.changes.changed == live.changes.changed
    with path.open("a") as log:
        log.write('\n{"time": "2026-01-01T00:00:00+00:00", "outco')  # as the gateway writes it
    assert CliRunner().invoke(cli, [*arguments, "--json"]).output == result.output
    for mine, theirs in zip(read.rungs, live.rungs, strict=True):
        assert mine.hit_ratio == pytest.approx(theirs.hit_ratio, abs=0.01)
    shown = CliRunner().invoke(cli, [*arguments, "item", "--max-upstream", "1/m"]).output
    assert "item" in shown
    assert "meets the upstream target" in shown
    assert "12h" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_log_that_has_only_a_share_of_the_hits_gives_no_advice(tmp_path: Path) -> None:
    line = {"time": "2026-01-01T00:00:00+00:00", "outcome": "hit", "route": "item", "key": "1f", "share": 0.01}
    path = tmp_path / "access.jsonl"
    path.write_text(json.dumps(line))
    with pytest.raises(LogError, match=r"only 0\.01 of the hits \(setting `log_hits`\)"):
        advice_of_log(path, {"item": 10.0})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nonsense\n", "line 1 isn't a line"),
        ("{}\n", "line 1"),
        ("", "no line with a cache key"),
        (None, "can't be read"),
    ],
)
def test_a_log_that_cannot_be_used_is_refused(tmp_path: Path, text: str | None, why: str) -> None:
    path = tmp_path / "access.jsonl"
    if text is not None:
        path.write_text(text)
    result = CliRunner().invoke(cli, ["ttl", "advise", "--log", str(path)])
    assert result.exit_code == 1
    assert why in str(result.exception)


@pytest.mark.parametrize(("text", "share"), [("1%", 0.01), ("0.02", 0.02), ("100 %", 1.0), ("0", 0.0)])
def test_a_share_is_read_in_percent_or_as_a_fraction(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize(("text", "rate"), [("50/s", 50.0), ("50", 50.0), ("300/m", 5.0), ("3600/h", 1.0)])
def test_a_rate_is_read_with_its_unit(text: str, rate: float) -> None:
    assert parse_rate(text, "--rate") == pytest.approx(rate)


@pytest.mark.parametrize("text", ["", "x", "101%", "-1", "nan", "2"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(TargetError, match="write a share"):
        parse_share(text)


@pytest.mark.parametrize("text", ["", "x/s", "5/d", "5/", "-1", "0", "inf", "nan"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(TargetError, match=r"--rate .*write requests a second"):
        parse_rate(text, "--rate")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1, "1s"),
        (60, "1m"),
        (90, "90s"),
        (120, "2m"),
        (5400, "90m"),
        (86400, "1d"),
        (1e9, "a year or more"),
        (0.5, "0.5s"),
    ],
)
def test_durations_are_shown_as_people_write_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
