"""A typed handler behind the gateway's `@cached`: its hits go through FastAPI, so that a worker has much to do for each
request and the load little."""

from __future__ import annotations

from fastapi import APIRouter, Response

from benchmarks.traffic import SIZES, body
from gateway import cached

router = APIRouter()


@router.get("/cached/{size}/{number}")
@cached(ttl="1h", edge=False)
async def answer(size: str, number: str) -> Response:
    # Not compressed, so that each answer can be compared byte for byte.
    headers = {"cache-control": "no-transform"}
    return Response(body(SIZES[size], number), media_type="application/json", headers=headers)
