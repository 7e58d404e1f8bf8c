"""`app.dependency_overrides`: every way in which a dict changes is reported to the apps that have it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gateway.app.dependency_overrides import Overrides, WatchedOverrides


class App:
    dependency_overrides = WatchedOverrides()

    def __init__(self) -> None:
        self.changes = 0
        self.dependency_overrides = {one: two}

    def changed(self) -> None:
        self.changes += 1


def one() -> int:
    return 1


def two() -> int:
    return 2


CHANGES: dict[str, Callable[[Any], object]] = {
    "an item set": lambda overrides: overrides.__setitem__(one, one),
    "an item deleted": lambda overrides: overrides.__delitem__(one),
    "setdefault": lambda overrides: overrides.setdefault(two, one),
    "update": lambda overrides: overrides.update({two: one}),
    "clear": lambda overrides: overrides.clear(),
    "pop": lambda overrides: overrides.pop(one),
    "popitem": lambda overrides: overrides.popitem(),
    "|=": lambda overrides: overrides.__ior__({two: one}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_every_change_is_reported_once_and_is_that_of_a_dict(change: Callable[[Any], object]) -> None:
    app, plain = App(), {one: two}
    before = app.changes
    change(app.dependency_overrides)
    change(plain)
    assert app.changes == before + 1
    assert dict(app.dependency_overrides) == plain


def test_all_methods_by_which_a_dict_changes_are_covered() -> None:
    changing = {"__setitem__", "__delitem__", "__ior__", "setdefault", "update", "clear", "pop", "popitem"}
    assert changing <= set(vars(Overrides))


def test_another_dict_in_its_place_is_watched_too_and_apps_can_share_one() -> None:
    first, second = App(), App()
    second.dependency_overrides = first.dependency_overrides
    before = first.changes, second.changes
    second.dependency_overrides[two] = one
    assert (first.changes, second.changes) == (before[0] + 1, before[1] + 1)
    assert first.dependency_overrides[two] is one


def test_an_app_is_not_kept_alive() -> None:
    app = App()
    overrides = app.dependency_overrides
    del app
    overrides[two] = one
    assert list(overrides.apps) == []
