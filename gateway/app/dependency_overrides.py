"""`app.dependency_overrides` as a dict that reports changes, so that no response relies on an outdated proof."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakSet

Dependency = Callable[..., Any]


class Overrides(dict[Dependency, Dependency]):
    """By a dependency: what FastAPI calls in its place. After each change `changed` of all `apps` is called, which it
    does not keep alive."""

    def __init__(self, given: Mapping[Dependency, Dependency]) -> None:
        super().__init__(given)
        self.apps: WeakSet[Any] = WeakSet()

    def _changed(self) -> None:
        for app in list(self.apps):
            app.changed()

    def __setitem__(self, key: Dependency, value: Dependency) -> None:
        super().__setitem__(key, value)
        self._changed()

    def __delitem__(self, key: Dependency) -> None:
        super().__delitem__(key)
        self._changed()

    def __ior__(self, other: Any) -> Overrides:  # type: ignore[override, misc]
        self.update(other)
        return self

    def setdefault(self, key: Dependency, default: Dependency) -> Dependency:
        value = super().setdefault(key, default)
        self._changed()
        return value

    def update(self, *args: Any, **kwargs: Any) -> None:
        super().update(*args, **kwargs)
        self._changed()

    def clear(self) -> None:
        super().clear()
        self._changed()

    def pop(self, *args: Any) -> Any:
        value = super().pop(*args)
        self._changed()
        return value

    def popitem(self) -> tuple[Dependency, Dependency]:
        pair = super().popitem()
        self._changed()
        return pair


class WatchedOverrides:
    """The attribute `dependency_overrides` of an app, whose `changed` is called after each change."""

    def __get__(self, app: Any, owner: object = None) -> Overrides:
        overrides: Overrides = vars(app)["dependency_overrides"]
        return overrides

    def __set__(self, app: Any, given: Mapping[Dependency, Dependency]) -> None:
        watched = given if isinstance(given, Overrides) else Overrides(given)
        watched.apps.add(app)
        vars(app)["dependency_overrides"] = watched
        app.changed()
