"""The admin listener: metrics and health, on an address of its own and never on the public port."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .app import Gateway


def create_admin(gateway: Gateway) -> Starlette:
    """The admin app of a gateway: `/metrics`, `/healthz`, `/readyz`."""

    async def metrics(request: Request) -> Response:
        return Response(gateway.metrics.render(), headers={"content-type": CONTENT_TYPE_LATEST})

    async def alive(request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def ready(request: Request) -> Response:
        return JSONResponse(gateway.readiness())

    return Starlette(
        routes=[Route("/metrics", metrics), Route("/healthz", alive), Route("/readyz", ready)],
    )
