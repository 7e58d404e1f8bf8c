"""Handlers that tests of waiting and of failures include."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, HTTPException

from gateway import cached

router = APIRouter()
limited = False
inside = 0
gate = asyncio.Event()


@router.get("/limited")
@cached(ttl="30s", stale_if_error="10m")
async def limited_at_times() -> dict[str, str]:
    if limited:
        raise HTTPException(429, "slow down", {"Retry-After": "30"})
    return {"is": "good"}


@router.get("/never")
@cached(ttl="30s", cache=False)
async def never() -> dict[str, int]:
    return await _held()


@router.get("/zero")
@cached(ttl="0s")
async def zero() -> dict[str, int]:
    return await _held()


async def _held() -> dict[str, int]:
    global inside
    inside += 1
    mine = inside
    await gate.wait()
    return {"n": mine}
