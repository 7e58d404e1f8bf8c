"""Lines of the operational log; which of several workers' records are written."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.observability.log import ONCE, Mark, Marked, Unrepeated, at_most_every, formatter, log_to_stderr, state
from gateway.testing import TurnedClock

AWAY, HERE = Mark("Redis", "away"), Mark("Redis", "")


def record(message: str, *values: object, **more: Any) -> logging.LogRecord:
    made = logging.LogRecord("gateway", logging.WARNING, __file__, 1, message, values, more.pop("exc_info", None))
    made.created, made.msecs = 1_790_000_000.25, 250.0
    made.__dict__.update(more)
    return made


def raised() -> Any:
    try:
        raise LookupError("nothing there")
    except LookupError:
        return sys.exc_info()


@pytest.fixture
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []  # pytest's own would be closed
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_line_of_text_has_time_level_and_logger() -> None:
    assert formatter("text").format(record("%d of 2", 1)) == "2026-09-21T14:13:20.250Z WARNING gateway: 1 of 2"


def test_a_traceback_follows_its_line() -> None:
    first, *others = formatter("text").format(record("failed", exc_info=raised())).splitlines()
    assert first.endswith("gateway: failed")
    assert others[-1] == "LookupError: nothing there"


def test_a_line_of_json_is_one_object_whatever_the_message_holds() -> None:
    line = formatter("json").format(record('two\nlines "é"', exc_info=raised()))
    assert "\n" not in line
    found = json.loads(line)
    assert found.pop("exception").endswith("LookupError: nothing there")
    assert found.pop("pid") > 0
    assert found == {
        "time": "2026-09-21T14:13:20.250Z",
        "level": "warning",
        "logger": "gateway",
        "message": 'two\nlines "é"',
    }


@pytest.mark.usefixtures("_logging_as_it_was")
def test_a_marked_record_is_handed_over_and_written_where_nobody_takes_it(capsys: pytest.CaptureFixture[str]) -> None:
    taken: list[Marked] = []
    log_to_stderr("text", lambda each: len(taken) < 1 and not taken.append(each))  # type: ignore[func-returns-value]
    logger = logging.getLogger("gateway")
    logger.warning("no %s", "Redis", extra=state("Redis", "away"))
    logger.warning("unmarked")
    logger.warning("nobody takes this", extra=ONCE)
    assert taken == [Marked(AWAY, logging.WARNING, "no Redis")]
    assert [line.partition("gateway: ")[2] for line in capsys.readouterr().err.splitlines()] == [
        "unmarked",
        "nobody takes this",
    ]


@pytest.mark.usefixtures("_logging_as_it_was")
def test_a_later_call_replaces_an_earlier_one(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr()
    log_to_stderr("json")
    logging.getLogger("uvicorn.access").info("left out")
    logging.getLogger("gateway").info("once")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"] == "once"


def test_a_marked_record_has_its_traceback_and_its_text_as_topic() -> None:
    marked = Marked.of(record("of %s", "a", exc_info=raised(), **ONCE))
    assert marked is not None
    assert marked.message.endswith("LookupError: nothing there")
    assert marked.mark == Mark("of a", "said")
    assert Marked.of(record("plain")) is None


def test_what_all_workers_say_is_news_once() -> None:
    unrepeated = Unrepeated()
    assert [unrepeated.is_news(worker, AWAY) for worker in "abc"] == [True, False, False]
    assert [unrepeated.is_news(worker, HERE) for worker in "abc"] == [False, False, True]
    assert [unrepeated.is_news(worker, AWAY) for worker in "bca"] == [True, False, False]


def test_another_state_of_a_topic_is_news() -> None:
    unrepeated = Unrepeated()
    assert unrepeated.is_news("a", AWAY)
    assert unrepeated.is_news("a", Mark("Redis", "refused"))
    assert unrepeated.is_news("a", Mark("name", "not found"))


def test_that_all_is_well_is_no_news_where_nothing_was_said() -> None:
    assert not Unrepeated().is_news("a", HERE)


def test_what_a_worker_repeats_is_written_again_and_once_for_all_workers() -> None:
    unrepeated = Unrepeated()
    assert [unrepeated.is_news(worker, AWAY) for worker in "abab"] == [True, False, True, False]


def test_what_a_worker_that_ended_had_said_holds_no_more() -> None:
    unrepeated = Unrepeated()
    assert unrepeated.is_news("a", AWAY)
    assert not unrepeated.is_news("b", AWAY)
    unrepeated.forget("a")
    assert not unrepeated.is_news("c", AWAY)  # b says so still
    unrepeated.forget("b")
    unrepeated.forget("c")
    assert unrepeated.is_news("d", AWAY)
    assert "away" in repr(unrepeated)


def test_an_event_is_written_once_in_its_time(clock: TurnedClock) -> None:
    unrepeated, mark = Unrepeated(clock.now), at_most_every(60, "slow")["mark"]
    assert [unrepeated.is_news(worker, mark) for worker in "ab"] == [True, False]
    clock.turn(60)
    assert [unrepeated.is_news(worker, mark) for worker in "ba"] == [True, False]
