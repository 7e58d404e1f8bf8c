"""The order of tests under pytest-xdist: none is lost, and those that wait begin in all processes but the last."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from tests.support.order import ordered


class Item:
    def __init__(self, root: Path, name: str, *, alone: bool = False) -> None:
        self.path = root / name.partition("::")[0]
        self.name = name
        self.config = self
        self.rootpath = root
        self._alone = alone

    def get_closest_marker(self, name: str) -> bool | None:
        return self._alone or None


def named(root: Path, waiting: int, others: int) -> list[Item]:
    return [
        *(Item(root, f"tests/integration/test_{at // 3}.py::{at}", alone=at == 5) for at in range(waiting)),
        *(Item(root, f"tests/unit/test_a.py::{at}") for at in range(others)),
    ]


@pytest.mark.parametrize(("waiting", "others"), [(0, 0), (0, 5), (12, 0), (12, 40), (30, 7)])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_no_test_is_lost(tmp_path: Path, waiting: int, others: int, processes: int) -> None:
    items = named(tmp_path, waiting, others)
    found = ordered(cast(Any, items), processes)
    assert sorted(map(id, found)) == sorted(map(id, items))


def test_each_process_but_the_last_begins_with_whole_files_that_wait(tmp_path: Path) -> None:
    found: list[Any] = ordered(cast(Any, named(tmp_path, 12, 40)), 4)
    rows = [[each.name.removeprefix("tests/") for each in found[at : at + 13]] for at in range(0, 52, 13)]
    assert rows[0][0] == "integration/test_1.py::5"  # marked `alone`
    begin = [[each for each in row if each.startswith("integration")] for row in rows]
    assert begin[0][1:] == [
        *(f"integration/test_0.py::{at}" for at in (0, 1, 2)),
        *(f"integration/test_3.py::{at}" for at in (9, 10, 11)),
    ]
    assert begin[1:] == [
        [f"integration/test_1.py::{at}" for at in (3, 4)],
        [f"integration/test_2.py::{at}" for at in (6, 7, 8)],
        [],
    ]
    assert all(row[: len(start)] == start for row, start in zip(rows, begin, strict=True))
