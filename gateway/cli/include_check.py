"""Makes the app of a configuration once, in a process of its own: what only its Python code can refuse is found so.

A module that `include` names may print, wait, or end the process. `gateway check` must not.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from gateway.errors import ConfigError, ConfigProblem

SECONDS = 30.0
"""How long the modules may take to be imported."""
_CODE = "import sys; sys.path[:] = {path!r}; from gateway.cli.include_check import main; main({fd}, {file!r})"


def problems_of(file: str | None, *, seconds: float = SECONDS) -> list[ConfigProblem]:
    """What is wrong with the Python code that a configuration file includes, as `gateway serve` would say it.

    `file` is None where there is no file.
    """
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
            return [ConfigProblem("", "include", f"importing its modules took more than {seconds:g} s")]
        found = answer.read()
    if not found:
        lines = errors.decode(errors="replace").strip().splitlines()
        said = f": {lines[-1]}" if lines else ""
        message = f"importing its modules ended the process (status {process.returncode}){said}"
        return [ConfigProblem("", "include", message)]
    return msgspec.json.decode(found, type=list[ConfigProblem])


def _refused(make: Callable[[], object]) -> list[ConfigProblem]:
    try:
        make()
    except ConfigError as error:
        return error.problems
    return []


def main(descriptor: int, file: str | None) -> None:
    """What the process runs: writes the problems to `descriptor`, as JSON."""
    from gateway.app.gateway import create_app
    from gateway.app.python_routes import router_of
    from gateway.config.loader import load

    config = load(Path(file) if file is not None else None).config
    problems = [problem for place in config.include for problem in _refused(partial(router_of, place))]
    problems = problems or _refused(partial(create_app, config))
    with os.fdopen(descriptor, "wb") as answer:
        answer.write(msgspec.json.encode(problems))
