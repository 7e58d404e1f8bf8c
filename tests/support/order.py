"""In which order tests run under pytest-xdist.

Tests with real processes wait more than they compute. Where they are last, the processors are idle for minutes; where
all run in one process, it is the last to end. `--dist worksteal` gives each process an equal number of tests in a row,
and a process that is done takes half of another's, from the end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import groupby

import pytest

WAITING = ("integration", "faults", "shared_caches")
"""The folders of tests with real processes."""


def is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None


def ordered(items: Iterable[pytest.Item], processes: int) -> list[pytest.Item]:
    """Those marked `alone` first, all in the first process. Then all but the last process begin with tests that wait,
    by whole files, which share fixtures; the last one computes meanwhile."""
    alone, waiting, others = [], [], []
    for item in items:
        (alone if is_alone(item) else waiting if _waits(item) else others).append(item)
    begin: list[list[pytest.Item]] = [[] for _ in range(processes)]
    begin[0] = alone
    for number, (_, file) in enumerate(groupby(waiting, key=lambda item: item.path)):
        begin[number % max(1, processes - 1)] += file
    return _in_rows(begin, others)


def _in_rows(begin: list[list[pytest.Item]], others: list[pytest.Item]) -> list[pytest.Item]:
    """Each beginning, filled up to the number of tests that its process is given, as `worksteal` counts it."""
    left, rows = sum(map(len, begin)) + len(others), []
    for at, row in enumerate(begin):
        rows.append((row, left // (len(begin) - at)))
        left -= rows[-1][1]
    rest = deque([*(item for row, room in rows for item in row[room:]), *others])
    return [
        item for row, room in rows for item in [*row[:room], *(rest.popleft() for _ in range(room - len(row[:room])))]
    ]


def _waits(item: pytest.Item) -> bool:
    return any(part in WAITING for part in item.path.parts[len(item.config.rootpath.parts) :])
