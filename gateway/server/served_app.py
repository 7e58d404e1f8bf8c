"""The app that `gateway serve MODULE:APP` names: made in each worker, and once before in a process of its own.

Decides which of an app's forms can be served (a Gateway, a FastAPI with a Cache, any other FastAPI, or a function that
makes one), and what the supervisor learns of it: its configuration. The supervisor itself imports nothing of an app's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import FastAPI
from pydantic import ValidationError

from gateway.app.existing_app import Cache
from gateway.app.generation import Generation
from gateway.app.python_routes import object_at
from gateway.app.worker_state import SERVED, Served
from gateway.config.loader import AppSource, Loaded
from gateway.config.models import Config
from gateway.errors import ConfigError, ConfigProblem
from gateway.routing.handler_settings import STATE
from gateway.server.ipc import Problem, Setup

SECONDS = 60.0
"""How long the app's modules may take to be imported."""
_CODE = "import sys; sys.path[:] = {path!r}; from gateway.server.served_app import main; main({fd})"


def served_app(source: AppSource, redis_url: str) -> Generation:
    """The app, with the cache that its code gave it, or else one of the configuration's. Raises ConfigError."""
    token = SERVED.set(Served(redis_url, source.file, source.options))
    try:
        found = object_at(source.place, "app")
        if callable(found) and not isinstance(found, FastAPI):
            found = found()
        if isinstance(found, Generation):
            return found
        if not isinstance(found, FastAPI):
            raise _refused(f"{source.place} is a {type(found).__name__}; expected a FastAPI, such as a Gateway")
        bearer = getattr(getattr(found.state, STATE, None), "bearer", None)
        return bearer if isinstance(bearer, Generation) else Cache(found)
    finally:
        SERVED.reset(token)


class Described(msgspec.Struct):
    """What the process that imports an app tells: its configuration, or what is wrong with it."""

    setup: Setup | None = None
    problems: list[Problem] = []


def configuration_of(source: AppSource, *, seconds: float = SECONDS) -> Loaded:
    """The configuration of an app, which is imported in a process of its own. Raises ConfigError."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as answer:
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CODE.format(path=["", *sys.path], fd=writer)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(writer,),
            )
        finally:
            os.close(writer)
        try:
            _, errors = process.communicate(msgspec.json.encode(source), timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise _refused(f"importing {source.place} took more than {seconds:g} s") from None
        found = answer.read()
    if not found:
        last = errors.decode(errors="replace").strip().splitlines()[-1:] or [""]
        raise _refused(f"importing {source.place} ended the process (status {process.returncode}): {last[0]}")
    described = msgspec.json.decode(found, type=Described)
    if described.setup is None:
        raise ConfigError([each.problem for each in described.problems])
    return described.setup.loaded


def main(descriptor: int) -> None:
    """What that process runs: reads an AppSource from standard input, and writes a Described to `descriptor`."""
    source = msgspec.json.decode(sys.stdin.buffer.read(), type=AppSource)
    try:
        described = Described(_setup(source, served_app(source, "none").loaded))
    except ConfigError as error:
        described = Described(problems=[Problem.of(each) for each in error.problems])
    with os.fdopen(descriptor, "wb") as answer:
        answer.write(msgspec.json.encode(described))
        answer.flush()
    os._exit(0)  # an app's threads may not end


def _setup(source: AppSource, loaded: Loaded) -> Setup:
    tree = _plain(loaded.tree) or _plain(loaded.config.model_dump(mode="json", exclude_unset=True)) or {}
    if not _is_same(tree, loaded.config):  # a secret, for one, is masked
        raise _refused(
            f"the configuration of {source.place} can't be sent to workers; write it as a mapping of plain "
            "values, or as a file"
        )
    return Setup(1, json.dumps(tree), list(loaded.sources.items()), loaded.admin_token, source)


def _is_same(tree: Any, config: Config) -> bool:
    try:
        return Config.model_validate(tree) == config
    except ValidationError:
        return False


def _plain(tree: Mapping[str, Any]) -> Any:
    """A tree as JSON has it; None if it holds anything else, or nothing."""
    try:
        return json.loads(json.dumps(tree)) or None
    except TypeError:
        return None


def _refused(message: str) -> ConfigError:
    return ConfigError([ConfigProblem("", "app", message)])
