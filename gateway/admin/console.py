"""The data of the console and of commands: figures, routes, overrides, audit list, page.

The page is static and contains no data; it requests everything with the token.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from importlib.resources import files

import msgspec
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse

from gateway.admin.figures import Between, Reading
from gateway.admin.operations import NoSuchOverride, Operations
from gateway.advisor.advice import Advice
from gateway.app.generation import Generation
from gateway.config.overrides import OverridesUnavailable, setting_key
from gateway.config.types import show_duration
from gateway.config.yaml_document import Key
from gateway.errors import PROBLEM_MEDIA_TYPE, ConfigError, problem_document

EVERY = 1.0
"""Seconds between two figures."""
MOST_EVENTS = 200
# The page brings all its own: nothing else may be loaded, framed or sent anywhere.
SECURITY = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".txt": "text/plain"}

Render = Callable[[], Awaitable[bytes]]


class OverrideOrder(msgspec.Struct, forbid_unknown_fields=True, frozen=True, rename={"lasts": "for"}):
    """The body of `POST /overrides`: `for` is a duration, at most 7 days."""

    route: str
    value: str
    setting: str = "ttl"
    lasts: str = "1h"
    by: str = ""


class RouteRow(msgspec.Struct, frozen=True):
    """A route in the console's list. `ttl` is in seconds, None if it follows the upstream."""

    name: str
    path: str
    ttl: float | None
    shown: str
    sources: list[str]
    overridden: bool
    advice: Advice | None


def page(request: Request) -> Response:
    """The console's page and its files."""
    name = request.path_params.get("file", "index.html")
    found = files("gateway.admin") / "static" / name
    suffix = name[name.rfind(".") :]
    if "/" in name or suffix not in _KINDS or not found.is_file():
        return Response(status_code=404, headers=SECURITY)
    return FileResponse(str(found), headers=SECURITY, media_type=_KINDS[suffix])


async def routes(gateway: Generation, operations: Operations) -> Response:
    advice = {each.route: each for each in await gateway.advice() if each.tells}
    rows = [_row(gateway, operations, name, ttl, advice.get(name)) for name, ttl in sorted(gateway.ttls().items())]
    return encoded({"routes": rows})


def _row(gateway: Generation, operations: Operations, name: str, ttl: float | None, advice: Advice | None) -> RouteRow:
    path, key = _place(gateway, name)
    sources = [source.place for source in gateway.origins((*key, "ttl"))]
    if path is None:
        path = gateway.handler_path(name)
        sources.append("@cached")
    elif _is_written(gateway, name):
        sources.append("aggregate()")
    shown = "origin" if ttl is None else show_duration(timedelta(seconds=ttl))
    return RouteRow(name, path, ttl, shown, sources, f"{name}.ttl" in operations.overrides, advice)


def _place(gateway: Generation, name: str) -> tuple[str | None, Key]:
    """The path of a route, and the key of its settings; the path is None for a Python handler."""
    if (config := gateway.config.routes.get(name)) is not None:
        return config.path, setting_key(name, None)
    whole, _, part = name.rpartition(".")
    joined = next((each for each in gateway.aggregates if each.name == whole), None)
    if joined is None:
        return None, setting_key(name, None)
    return f"part of {joined.config.path}", setting_key(whole, part)


def _is_written(gateway: Generation, name: str) -> bool:
    """Whether it is a part of an aggregate that is written in Python."""
    return name not in gateway.config.routes and name.rpartition(".")[0] in gateway.written


async def overrides(operations: Operations) -> Response:
    await operations.turn()
    return encoded({"overrides": sorted(operations.overrides.values(), key=lambda each: each.key)})


async def set_override(operations: Operations, body: bytes, by: Callable[[str], str]) -> Response:
    """`by` completes the name that the client gave. Raises msgspec.MsgspecError for an invalid body."""
    order = msgspec.json.decode(body, type=OverrideOrder)
    try:
        made = await operations.override(order.route, order.setting, order.value, order.lasts, by=by(order.by))
    except ConfigError as error:
        return problem(400, "; ".join(str(each) for each in error.problems))
    except OverridesUnavailable as away:
        return problem(503, str(away))
    return encoded(made)


async def end_override(operations: Operations, route: str, setting: str, by: str) -> Response:
    try:
        await operations.end(route, setting, by=by)
    except NoSuchOverride as unknown:
        return problem(404, str(unknown))
    except OverridesUnavailable as away:
        return problem(503, str(away))
    return encoded({"ended": f"{route}.{setting}"})


def settings(operations: Operations) -> Response:
    return encoded({"settings": operations.settings()})


async def audit(operations: Operations) -> Response:
    return encoded({"events": await operations.live.audit(MOST_EVENTS)})


def live(operations: Operations, render: Render) -> Response:
    """Figures each second, as server-sent events, until the client leaves or this worker ends."""
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(_events(operations, render), media_type="text/event-stream", headers=headers)


async def _events(operations: Operations, render: Render) -> AsyncIterator[bytes]:
    before = Reading((await render()).decode(), time.time())
    while not await _closing_within(operations, EVERY):
        after = Reading((await render()).decode(), time.time())
        yield b"data: " + msgspec.json.encode(Between(before, after).figures()) + b"\n\n"
        before = after


async def _closing_within(operations: Operations, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await operations.closing.wait()
    except TimeoutError:
        return False
    return True


def encoded(value: object, status: int = 200) -> Response:
    headers = {"cache-control": "no-store"}
    return Response(msgspec.json.encode(value), status, media_type="application/json", headers=headers)


def problem(status: int, detail: str) -> Response:
    """Problem Details (RFC 9457)."""
    return JSONResponse(problem_document(status, detail, ""), status, media_type=PROBLEM_MEDIA_TYPE.decode())
