"""Handlers that answer as the upstream of `test_identity` does, for the gateway that the test starts."""

from __future__ import annotations

from fastapi import APIRouter, Response

from gateway import cached
from tests.support.identity import BODY, FIELDS, VARY

router = APIRouter()


@router.get("/cached/{name}")
@cached(ttl="10m", vary=["accept", "accept-language"])
async def whole(name: str) -> Response:
    status = 404 if name == "missing" else 200
    response = Response(BODY, status, media_type="application/octet-stream")
    for field, value in (*FIELDS, *VARY):
        response.headers.append(field, value)
    return response
