"""A developer's routes, as the configuration includes them. What was called is counted for the tests."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
from fastapi import APIRouter, Depends, Header, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import BaseModel

from gateway import Upstream, cached, upstream
from gateway.testing import StubUpstream, TurnedClock
from tests.support.gateways import gateway

router = APIRouter(tags=["shop"])
calls: Counter[str] = Counter()
gate = asyncio.Event()


class Summary(BaseModel):
    id: int
    name: str
    secret: str | None = None


class Public(BaseModel):
    id: int
    name: str


@router.get("/products/{id}/summary")
@cached(ttl="30s", stale_while_revalidate="60s", tags=["product:{id}"])
async def summary(id: int, catalog: Annotated[Upstream, upstream("api")]) -> Summary:
    calls["summary"] += 1
    response = await catalog.get(f"/v2/items/{id}", params={"fields": "name"})
    return Summary(id=id, name=response.json()["name"])


@router.get("/filtered/{id}", response_model=Public, status_code=203)
@cached(ttl="30s")
def filtered(id: int, response: Response) -> Any:
    calls["filtered"] += 1
    response.headers["X-Made-By"] = "handler"
    return Summary(id=id, name="filtered", secret="hidden")


@router.get("/raw")
@cached(ttl="30s")
async def raw() -> Response:
    calls["raw"] += 1
    return Response(bytes(range(256)), media_type="application/octet-stream", headers={"X-Own": "1"})


@router.get("/missing")
@cached(ttl="30s")
async def missing() -> JSONResponse:
    calls["missing"] += 1
    return JSONResponse({"why": "none"}, status_code=404)


@router.get("/raised")
@cached(ttl="30s")
async def raised() -> Summary:
    calls["raised"] += 1
    raise HTTPException(404, "no such thing", headers={"X-Reason": "test"})


@router.get("/slow")
@cached(ttl="30s")
async def slow() -> dict[str, int]:
    calls["slow"] += 1
    await gate.wait()
    return {"call": calls["slow"]}


async def allowed(x_token: Annotated[str, Header()] = "") -> str:
    calls["allowed"] += 1
    if x_token == "bad":
        raise HTTPException(403, "not you")
    return x_token


@router.get("/guarded")
@cached(ttl="30s", stale_while_revalidate="1h")
async def guarded(token: Annotated[str, Depends(allowed)]) -> dict[str, str]:
    calls["guarded"] += 1
    return {"token": token}


@router.get("/search")
@cached(ttl="30s")
async def search(q: Annotated[str, Query()] = "") -> dict[str, str]:
    calls["search"] += 1
    return {"q": q}


@router.get("/echo")
@cached(ttl="30s")
async def echo(request: Request) -> dict[str, str]:
    calls["echo"] += 1
    return dict(request.query_params)


async def session() -> AsyncIterator[dict[str, bool]]:
    opened = {"open": True}
    yield opened
    opened["open"] = False


@router.get("/session")
@cached(ttl="1s", stale_while_revalidate="1h")
async def with_session(session: Annotated[dict[str, bool], Depends(session)]) -> dict[str, bool]:
    calls["session"] += 1
    await asyncio.sleep(0)
    return dict(session)


async def stamps(response: Response) -> None:
    calls["stamps"] += 1
    response.headers["X-Stamp"] = str(calls["stamps"])


@router.get("/stamped", dependencies=[Depends(stamps)])
@cached(ttl="30s")
async def stamped() -> dict[str, int]:
    calls["stamped"] += 1
    return {"call": calls["stamped"]}


@router.get("/streamed")
@cached(ttl="30s")
async def streamed() -> StreamingResponse:
    calls["streamed"] += 1

    async def pieces() -> AsyncIterator[bytes]:
        yield b"one "
        yield b"two"

    return StreamingResponse(pieces(), media_type="text/plain")


@router.get("/broken")
@cached(ttl="30s")
async def broken() -> Summary:
    calls["broken"] += 1
    raise RuntimeError("a developer's mistake")


@router.get("/own")
@cached(ttl="origin")
async def own(response: Response) -> dict[str, int]:
    calls["own"] += 1
    response.headers["Cache-Control"] = "max-age=10"
    return {"call": calls["own"]}


@router.get("/plain")
async def plain() -> PlainTextResponse:
    return PlainTextResponse("plain")


@router.get("/special/{name}")
async def special(name: str) -> PlainTextResponse:
    return PlainTextResponse(f"python {name}")


@router.post("/orders", status_code=201)
@cached(ttl="30s")
async def orders() -> dict[str, int]:
    calls["orders"] += 1
    return {"order": calls["orders"]}


def shop(clock: TurnedClock, **settings: object) -> object:
    upstream = StubUpstream(lambda request: httpx.Response(200, json={"name": f"item at {request.url.path}"}))
    include = {"include": ["tests.support.shop_routes:router"]}
    return gateway(upstream, {}, clock=clock, **{**include, **settings})  # type: ignore[arg-type]
