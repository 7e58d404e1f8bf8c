"""The admin listener: metrics, health and purging, on an address of its own and never on the public port.

Reading needs no token. Whatever changes something needs GATEWAY_ADMIN_TOKEN, as a bearer token in Authorization, which
no web page can make a browser send: that is what keeps other people's pages from purging.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from hmac import compare_digest

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .app import Gateway, ready_response
from .errors import PROBLEM_MEDIA_TYPE, RequestRefused, problem_document
from .routes import purge_response

MAX_BODY = 1024 * 1024


class ExplainOrder(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The body of `POST /explain`: a request as a client would send it."""

    target: str
    method: str = "GET"
    headers: list[tuple[str, str]] = []


class PurgeOrder(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The body of `POST /purge`: what to purge, and whether softly."""

    keys: list[str] = []
    tags: list[str] = []
    routes: list[str] = []
    all: bool = False
    soft: bool = False


def create_admin(
    gateway: Gateway | Callable[[], Gateway],
    token: str | None = None,
    render: Callable[[], Awaitable[bytes]] | None = None,
) -> Starlette:
    """The admin app of a gateway: `/metrics`, `/healthz`, `/readyz`, `/advice`, `POST /purge`, `POST /explain`.

    `render` gives the metrics of all workers; without it, they are this process's.
    """

    def current() -> Gateway:
        return gateway if isinstance(gateway, Gateway) else gateway()

    async def metrics(request: Request) -> Response:
        text = await render() if render is not None else current().metrics.render()
        return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})

    async def alive(request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def ready(request: Request) -> Response:
        return ready_response(current())

    async def purge(request: Request) -> Response:
        refusal = _refusal(request, token)
        return refusal if refusal is not None else await _purge(current(), request)

    async def explain(request: Request) -> Response:
        refusal = _refusal(request, token)
        return refusal if refusal is not None else await _explain(current(), request)

    async def advice(request: Request) -> Response:
        refusal = _refusal(request, token)
        if refusal is not None:
            return refusal
        found = {"routes": await current().advice()}
        return Response(msgspec.json.encode(found), media_type="application/json")

    return Starlette(
        routes=[
            Route("/metrics", metrics),
            Route("/healthz", alive),
            Route("/readyz", ready),
            Route("/purge", purge, methods=["POST"]),
            Route("/explain", explain, methods=["POST"]),
            Route("/advice", advice),
        ],
    )


def _refusal(request: Request, token: str | None) -> Response | None:
    if not token:
        return _problem(403, "Nothing can be changed here: no GATEWAY_ADMIN_TOKEN is set for the gateway.")
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not compare_digest(given.strip().encode(), token.encode()):
        response = _problem(401, "This wants the token of GATEWAY_ADMIN_TOKEN, as `Authorization: Bearer …`.")
        response.headers["www-authenticate"] = "Bearer"
        return response
    return None


async def _purge(gateway: Gateway, request: Request) -> Response:
    try:
        order = msgspec.json.decode(await _body(request), type=PurgeOrder)
        if not (order.keys or order.tags or order.routes or order.all):
            return _problem(400, "Nothing to purge: give keys, tags, routes, or all.")
        report = await gateway.purge(
            keys=order.keys,
            tags=order.tags,
            routes=order.routes,
            everything=order.all,
            soft=order.soft,
            by=f"admin {request.client.host if request.client else 'socket'}",
        )
    except RequestRefused as refused:
        return _problem(400, refused.detail)
    except (msgspec.MsgspecError, ValueError) as error:
        return _problem(400, f"The order is refused: {error}.")
    return purge_response(report)


async def _explain(gateway: Gateway, request: Request) -> Response:
    try:
        order = msgspec.json.decode(await _body(request), type=ExplainOrder)
        headers = tuple((name.strip().lower().encode(), value.strip().encode()) for name, value in order.headers)
    except (msgspec.MsgspecError, ValueError) as error:
        return _problem(400, f"The order is refused: {error}.")
    trace = await gateway.explain(order.method.upper(), order.target, headers)
    return Response(msgspec.json.encode(trace), media_type="application/json")


async def _body(request: Request) -> bytes:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY:
            raise ValueError(f"it is larger than {MAX_BODY} bytes")
    return body


def _problem(status: int, detail: str) -> Response:
    return JSONResponse(problem_document(status, detail, ""), status, media_type=PROBLEM_MEDIA_TYPE.decode())
