"""Routers written in Python, as `include` names them, and how specific their paths are among the declared ones."""

from __future__ import annotations

import copy
import importlib
import sys
import traceback
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.routing import iter_route_contexts

from .errors import ConfigError, ConfigProblem
from .spelling import did_you_mean
from .templates import PathTemplate, compile_path


def router_of(place: str) -> APIRouter:
    """The router that `module:attribute` names. Raises ConfigError, with the line at which its module fails."""
    module, _, attribute = place.partition(":")
    try:
        imported = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever a module's own code raises
        raise _problem(f"{place} cannot be imported: {_said(error)}") from error
    found = getattr(imported, attribute, None)
    if found is None:
        raise _problem(
            f"{place} cannot be imported: {module} has no {attribute!r}{did_you_mean(attribute, dir(imported))}"
        )
    if not isinstance(found, APIRouter):
        raise _problem(f"{place} is a {type(found).__name__}; expected a fastapi.APIRouter")
    return found


def _problem(message: str) -> ConfigError:
    return ConfigError([ConfigProblem("", "include", message)])


def _said(error: BaseException) -> str:
    """An error with its kind, and where in the user's code it was raised."""
    if isinstance(error, ModuleNotFoundError):
        text = f"there is no module {error.name!r} (searched are the current folder and the installed packages)"
    elif isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: SyntaxError: {error.msg}"
    else:
        text = f"{type(error).__name__}: {error}"
    place = _raised_at(error)
    return f"{place}: {text}" if place else text


def _raised_at(error: BaseException) -> str:
    """`file:line` of the last frame that is neither this package's nor the import system's; empty where none is."""
    ours = str(Path(__file__).parent)
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(("<", ours))
    ]
    users = [frame for frame in frames if not frame.filename.startswith(sys.prefix)] or frames
    standard = str(Path(importlib.__file__).parent.parent)
    users = [frame for frame in users if not frame.filename.startswith(standard)]
    return f"{users[-1].filename}:{users[-1].lineno}" if users else ""


def pieces_of(router: APIRouter) -> list[tuple[Any, APIRouter]]:
    """A router as routers of one route each, so that its routes can stand among the others by how specific they are.

    The first keeps the router's lifespan and event handlers.
    """
    pieces = []
    for position, route in enumerate(router.routes):
        piece = copy.copy(router)
        piece.routes = [route]
        if position:
            piece.on_startup, piece.on_shutdown = [], []
            piece.lifespan_context = APIRouter().lifespan_context
        contexts = list(iter_route_contexts([route]))
        pieces.append((specificity_of(contexts[0].path or "/" if contexts else "/"), piece))
    return pieces


def specificity_of(path: str) -> tuple[tuple[int, int], ...]:
    """How specific a FastAPI path is; convertors other than `path` take one segment."""
    plain = path if ":path}" in path else _without_convertors(path)
    try:
        return compile_path(plain).specificity
    except ValueError:
        return PathTemplate(plain).specificity


def _without_convertors(path: str) -> str:
    pieces = path.split("{")
    return pieces[0] + "".join(
        "{" + piece.split(":")[0].rstrip("}") + "}" + piece.partition("}")[2] for piece in pieces[1:]
    )
