"""The operational log: what becomes of the records that all modules log, in one place.

Modules log to the standard library's logger `gateway`; structlog's formatter makes a line of each, on standard error.
Each worker finds for itself what holds for the whole gateway. Such a record is marked by a value of `extra`; a worker
hands it to its supervisor, which writes it once (`Unrepeated`):

- `state(topic, …)`: a state that has changed, such as that of Redis;
- `ONCE`: a fact that does not change, such as a handler whose responses can't be shared;
- `at_most_every(seconds, topic)`: an event that may repeat.

Without a supervisor, as under `uvicorn main:app`, a mark has no effect.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Hashable
from typing import Any, Literal, NamedTuple, TextIO

import structlog

LogFormat = Literal["text", "json"]
_QUIET = ("uvicorn", "watchfiles")
"""Loggers of which warnings are enough. watchfiles logs every change in a watched folder; if standard error goes to a
file there, endlessly."""


class Mark(NamedTuple):
    topic: str = ""
    """What the record is about; its text if this is empty."""
    state: str = "said"
    """Empty: as it should be, which is said only after another state was."""
    every: float = 0.0
    """Seconds in which an event is written once; 0 for a state."""


def state(topic: str, value: str = "") -> dict[str, Mark]:
    """The `extra` of a record that says which state `topic` is in; empty: as it should be, again."""
    return {"mark": Mark(topic, value)}


def at_most_every(seconds: float, topic: str) -> dict[str, Mark]:
    """The `extra` of a record that is written at most once in `seconds` for a topic."""
    return {"mark": Mark(topic, every=seconds)}


ONCE = {"mark": Mark()}
"""The `extra` of a record that is written once, however many workers find it."""


class Marked(NamedTuple):
    """A marked record, in the form in which a worker sends it."""

    mark: Mark
    level: int
    message: str

    @classmethod
    def of(cls, record: logging.LogRecord) -> Marked | None:
        """None for a record that isn't marked."""
        mark = getattr(record, "mark", None)
        if not isinstance(mark, Mark):
            return None
        message = record.getMessage()
        trace = f"\n{logging.Formatter().formatException(record.exc_info)}" if record.exc_info else ""
        return cls(mark._replace(topic=mark.topic or message), record.levelno, message + trace)


class Unrepeated:
    """Which of the workers' marked records are written: those that change the state of the gateway.

    A topic is as it should be once no worker says otherwise. A worker logs a state when it changes; one that logs the
    same twice has begun anew, as after a reload, and the record is written again. `monotonic` returns seconds.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._states: dict[str, dict[Hashable, str]] = {}
        self._said: dict[str, str] = {}
        self._at: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<Unrepeated {self._said}>"

    def is_news(self, worker: Hashable, mark: Mark) -> bool:
        """Whether a worker's record with this mark is to be written."""
        return self._is_due(mark) if mark.every else self._is_change(worker, mark)

    def _is_due(self, mark: Mark) -> bool:
        now = self._monotonic()
        self._at = {topic: until for topic, until in self._at.items() if until > now}
        if mark.topic in self._at:
            return False
        self._at[mark.topic] = now + mark.every
        return True

    def _is_change(self, worker: Hashable, mark: Mark) -> bool:
        states = self._states.setdefault(mark.topic, {})
        repeated = bool(mark.state) and states.get(worker) == mark.state
        if repeated:
            states.clear()
        if mark.state:
            states[worker] = mark.state
        else:
            states.pop(worker, None)
        before = self._said.get(mark.topic, "")
        after = mark.state or next(iter(states.values()), "")
        self._note(mark.topic, after)
        return repeated or before != after

    def _note(self, topic: str, state: str) -> None:
        if state:
            self._said[topic] = state
        else:
            self._said.pop(topic, None)
            self._states.pop(topic, None)

    def forget(self, worker: Hashable) -> None:
        """A worker has ended: what it alone had said holds no more."""
        for topic, states in list(self._states.items()):
            if states.pop(worker, None) is not None and not states:
                self._note(topic, "")


class _Handler(logging.StreamHandler[TextIO]):
    """Writes to standard error. `hand_over` takes a marked record, and returns whether it did."""

    def __init__(self, stream: TextIO, hand_over: Callable[[Marked], bool] | None) -> None:
        super().__init__(stream)
        self._hand_over = hand_over

    def emit(self, record: logging.LogRecord) -> None:
        marked = Marked.of(record) if self._hand_over is not None else None
        if marked is None or self._hand_over is None or not self._hand_over(marked):
            super().emit(record)


def log_to_stderr(form: LogFormat = "text", hand_over: Callable[[Marked], bool] | None = None) -> None:
    """Write all records from INFO on to standard error: as text, or each as a line of JSON with the fields that
    docs/operations.md names. A later call replaces an earlier one."""
    handler = _Handler(sys.stderr, hand_over)
    handler.setFormatter(formatter(form))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def formatter(form: LogFormat) -> logging.Formatter:
    processors: list[Any] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,
        structlog.processors.EventRenamer("message"),
        _line if form == "text" else structlog.processors.JSONRenderer(ensure_ascii=False),
    ]
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=[_described], processors=processors)


def _described(_: Any, __: str, event: Any) -> Any:
    """When, how serious and by whom a record was made."""
    record: logging.LogRecord = event["_record"]
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    about = {"time": f"{moment}.{int(record.msecs):03d}Z", "level": record.levelname.lower(), "logger": record.name}
    return {**about, **event, "pid": os.getpid()}


def _line(_: Any, __: str, event: Any) -> str:
    line = f"{event['time']} {event['level'].upper()} {event['logger']}: {event['message']}"
    return f"{line}\n{event['exception']}" if "exception" in event else line
