"""Routers written in Python, as `include` names them, and how specific their paths are among the declared ones."""

from __future__ import annotations

import copy
import importlib
from typing import Any

from fastapi import APIRouter
from fastapi.routing import iter_route_contexts

from .errors import ConfigError, ConfigProblem
from .templates import PathTemplate, compile_path


def router_of(place: str) -> APIRouter:
    """The router that `module:attribute` names. Raises ConfigError."""
    module, _, attribute = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        message = f"{place} cannot be imported: {error}"
        raise ConfigError([ConfigProblem("", "include", message)]) from error
    if not isinstance(found, APIRouter):
        message = f"{place} is a {type(found).__name__}, no fastapi.APIRouter"
        raise ConfigError([ConfigProblem("", "include", message)])
    return found


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
