"""One handler in each way that the rows `handlers` compare: without a cache, cached, with a dependency.

The routers are for the gateway's `include`; `apps` serves the same handlers by FastAPI alone.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Response

from benchmarks.traffic import SIZES, body
from gateway import cached

PATH = "/cached/{size}/{number}"


def answered(size: str, number: str) -> Response:
    # Not compressed, so that each answer can be compared byte for byte.
    headers = {"cache-control": "no-transform"}
    return Response(body(SIZES[size], number), media_type="application/json", headers=headers)


async def platform(x_platform: Annotated[str, Header()]) -> str:
    return x_platform


async def plain(size: str, number: str) -> Response:
    return answered(size, number)


async def dependent(size: str, number: str, platform: Annotated[str, Depends(platform)]) -> Response:
    return answered(size, number)


uncached, default, at_edge, dependency = APIRouter(), APIRouter(), APIRouter(), APIRouter()
uncached.get(PATH)(plain)
default.get(PATH)(cached(ttl="1h")(plain))
at_edge.get(PATH)(cached(ttl="1h", edge=True)(plain))
dependency.get(PATH)(cached(ttl="1h")(dependent))
