"""Makes the app of a configuration, or the one that `module:attribute` names, once, in a separate process: to find
errors in its Python code, and what its handlers are.

Such a module may print, wait, or exit. `gateway check` must not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from gateway.errors import ConfigError, ConfigProblem

if TYPE_CHECKING:
    from gateway.explain.routes import HandlerRoute

SECONDS = 30.0
"""How long the modules may take to be imported."""
_CODE = (
    "import sys; sys.path[:] = {path!r}; from gateway.cli.include_check import main; main({fd}, {file!r}, {place!r})"
)


class Handler(msgspec.Struct, frozen=True):
    """A route of a Python handler as `gateway routes` lists it. `order` is how specific its path is; `edge` whether the
    edge answers its hits, and else why not. The windows are in seconds; `ttl` is None where the handler decides."""

    name: str
    path: str
    order: tuple[tuple[int, int], ...]
    edge: str = ""
    cached: bool = False
    ttl: float | None = None
    stale_while_revalidate: float | None = None
    stale_if_error: float | None = None
    tags: tuple[str, ...] = ()


class Included(msgspec.Struct, frozen=True):
    """What the code that a configuration includes, or an app, comes to. `openapi` is the app's OpenAPI document, as
    JSON."""

    problems: list[ConfigProblem]
    handlers: list[Handler] = []
    openapi: str = ""


def problems_of(file: str | None, *, seconds: float = SECONDS) -> list[ConfigProblem]:
    """What is wrong with the Python code that a configuration file includes, as `gateway serve` would say it.

    `file` is None where there is no file.
    """
    return included_by(file, seconds=seconds).problems


def included_by(file: str | None, place: str | None = None, *, seconds: float = SECONDS) -> Included:
    """What the Python code that a configuration file includes comes to, or, with a `place`, the app there.

    `file` is None where there is no file.
    """
    setting = "include" if place is None else "app"
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as answer:
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CODE.format(path=_path(place), fd=writer, file=file, place=place)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(writer,),
            )
        finally:
            os.close(writer)
        try:
            _, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return _failed(setting, f"importing its modules took more than {seconds:g} s")
        found = answer.read()
    if not found:
        lines = errors.decode(errors="replace").strip().splitlines()
        said = f": {lines[-1]}" if lines else ""
        return _failed(setting, f"importing its modules ended the process (status {process.returncode}){said}")
    return msgspec.json.decode(found, type=Included)


def _path(place: str | None) -> list[str]:
    """Where modules are found: those of an app also in the present folder, as `gateway serve` does it."""
    return sys.path if place is None else ["", *sys.path]


def _failed(setting: str, message: str) -> Included:
    return Included([ConfigProblem("", setting, message)])


def _refused(make: Callable[[], object]) -> list[ConfigProblem]:
    try:
        make()
    except ConfigError as error:
        return error.problems
    return []


def main(descriptor: int, file: str | None, place: str | None) -> None:
    """What the process runs: writes an `Included` to `descriptor`, as JSON."""
    found = _of_configuration(file) if place is None else _of_app(place, file)
    with os.fdopen(descriptor, "wb") as answer:
        answer.write(msgspec.json.encode(found))
        answer.flush()
    os._exit(0)  # an app's threads may not end


def _of_app(place: str, file: str | None) -> Included:
    from gateway.config.loader import AppSource
    from gateway.server.served_app import served_app

    try:
        served = served_app(AppSource(place, file), "none")
        served.rebind()
        document = json.dumps(served.app.openapi(), ensure_ascii=False)
        return Included([], [*map(_listed, served.handler_routes())], document)
    except ConfigError as error:
        return Included(error.problems)


def _of_configuration(file: str | None) -> Included:
    from gateway.app.gateway import create_app
    from gateway.app.python_routes import router_of
    from gateway.config.loader import load

    config = load(Path(file) if file is not None else None).config
    problems = [problem for place in config.include for problem in _refused(partial(router_of, place))]
    handlers: list[Handler] = []
    problems = problems or _refused(lambda: handlers.extend(map(_listed, create_app(config).handler_routes())))
    return Included(problems, handlers)


def _listed(route: HandlerRoute) -> Handler:
    cached = route.cached
    if cached is None:
        return Handler(route.name, route.path, route.order[1])
    rules = cached.route.rules
    return Handler(
        *(route.name, route.path, route.order[1], cached.edge, not rules.off, rules.ttl),
        *(rules.stale_while_revalidate, rules.stale_if_error, cached.tags),
    )
