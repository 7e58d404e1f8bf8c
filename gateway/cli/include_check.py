"""Makes the app of a configuration once, in a separate process, to find errors in its Python code.

A module that `include` names may print, wait, or exit. `gateway check` must not.
"""

from __future__ import annotations

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
_CODE = "import sys; sys.path[:] = {path!r}; from gateway.cli.include_check import main; main({fd}, {file!r})"


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
    """What the code that a configuration includes comes to."""

    problems: list[ConfigProblem]
    handlers: list[Handler] = []


def problems_of(file: str | None, *, seconds: float = SECONDS) -> list[ConfigProblem]:
    """What is wrong with the Python code that a configuration file includes, as `gateway serve` would say it.

    `file` is None where there is no file.
    """
    return included_by(file, seconds=seconds).problems


def included_by(file: str | None, *, seconds: float = SECONDS) -> Included:
    """What the Python code that a configuration file includes comes to; `file` is None where there is no file."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as answer:
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CODE.format(path=sys.path, fd=writer, file=file)],
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
            return _failed(f"importing its modules took more than {seconds:g} s")
        found = answer.read()
    if not found:
        lines = errors.decode(errors="replace").strip().splitlines()
        said = f": {lines[-1]}" if lines else ""
        return _failed(f"importing its modules ended the process (status {process.returncode}){said}")
    return msgspec.json.decode(found, type=Included)


def _failed(message: str) -> Included:
    return Included([ConfigProblem("", "include", message)])


def _refused(make: Callable[[], object]) -> list[ConfigProblem]:
    try:
        make()
    except ConfigError as error:
        return error.problems
    return []


def main(descriptor: int, file: str | None) -> None:
    """What the process runs: writes an `Included` to `descriptor`, as JSON."""
    from gateway.app.gateway import create_app
    from gateway.app.python_routes import router_of
    from gateway.config.loader import load

    config = load(Path(file) if file is not None else None).config
    problems = [problem for place in config.include for problem in _refused(partial(router_of, place))]
    handlers: list[Handler] = []
    problems = problems or _refused(lambda: handlers.extend(map(_listed, create_app(config).handler_routes())))
    with os.fdopen(descriptor, "wb") as answer:
        answer.write(msgspec.json.encode(Included(problems, handlers)))


def _listed(route: HandlerRoute) -> Handler:
    cached = route.cached
    if cached is None:
        return Handler(route.name, route.path, route.order[1])
    rules = cached.route.rules
    return Handler(
        *(route.name, route.path, route.order[1], cached.edge, not rules.off, rules.ttl),
        *(rules.stale_while_revalidate, rules.stale_if_error, cached.tags),
    )
