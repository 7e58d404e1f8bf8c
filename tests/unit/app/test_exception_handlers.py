"""A request that does not validate: FastAPI's own body by default, Problem Details where the configuration says so."""

from __future__ import annotations

from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Cookie, FastAPI, Header, Query
from pydantic import BaseModel

from gateway import cached
from gateway.app.gateway import Gateway, create_app
from gateway.observability.access_log import silent
from gateway.testing import running


class Item(BaseModel):
    name: str
    price: float


router = APIRouter()


@router.get("/items/{id}")
async def item(id: int, page: Annotated[int, Query(ge=1)] = 1) -> int:
    return id * page


@router.post("/items")
async def add(given: Item) -> str:
    return given.name


@router.get("/cached/{id}")
@cached(ttl="30s")
async def kept(id: int, sizes: Annotated[list[int], Query()] = []) -> int:  # noqa: B006
    return id + sum(sizes)


@router.get("/secret")
async def secret(
    api_key: Annotated[int, Query()] = 0,
    x_user: Annotated[int, Header()] = 0,
    sid: Annotated[int, Cookie()] = 0,
) -> int:
    return api_key + x_user + sid


def app(**settings: Any) -> Gateway:
    made = create_app({"redis_url": "none", "access_log": False, **settings}, log=silent)
    made.include_router(router)
    return made


async def plain(method: str, path: str, **more: Any) -> httpx.Response:
    without = APIRouter()
    without.add_api_route("/items/{id}", item)
    without.add_api_route("/items", add, methods=["POST"])
    fastapi = FastAPI()
    fastapi.include_router(without)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(fastapi), base_url="http://plain.test") as client:
        return await client.request(method, path, **more)


@pytest.mark.parametrize(
    ("method", "path", "more"),
    [
        ("GET", "/items/abc", {}),
        ("GET", "/items/1?page=0", {}),
        ("GET", "/items/x?page=y", {}),
        ("POST", "/items", {"json": {"name": 7}}),
        ("POST", "/items", {"content": b"{", "headers": {"content-type": "application/json"}}),
        ("POST", "/items", {"content": b""}),
    ],
)
async def test_what_does_not_validate_gets_what_plain_fastapi_answers(
    method: str, path: str, more: dict[str, Any]
) -> None:
    async with running(app()) as client:
        response = await client.request(method, path, **more)
    expected = await plain(method, path, **more)
    assert (response.status_code, response.json()) == (expected.status_code, expected.json())
    assert response.status_code == 422
    assert response.headers["content-type"] == expected.headers["content-type"]


async def test_a_cached_handler_answers_so_too_and_nothing_is_stored() -> None:
    async with running(app()) as client:
        for _ in range(2):
            response = await client.get("/cached/1?sizes=x")
            assert response.json()["detail"][0]["loc"] == ["query", "sizes", 0]
            assert response.headers["cache-control"] == "no-store"


async def test_what_may_be_a_credential_is_not_shown() -> None:
    headers = {"x-user": "canary-a", "cookie": "sid=canary-b"}
    async with running(app()) as client:
        response = await client.get("/secret?api_key=canary-c", headers=headers)
    assert [each["loc"][1] for each in response.json()["detail"]] == ["api_key", "x-user", "sid"]
    assert "canary" not in response.text


async def test_with_the_setting_it_is_a_problem_and_openapi_says_so() -> None:
    async with running(app(validation_errors="problem")) as client:
        response = await client.get("/items/abc")
        document = (await client.get("/openapi.json")).json()
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["errors"][0]["loc"] == ["path", "id"]
    content = document["paths"]["/items/{id}"]["get"]["responses"]["422"]["content"]
    assert list(content) == ["application/problem+json"]
    assert content["application/problem+json"]["schema"]["properties"]["errors"]["type"] == "array"


async def test_openapi_promises_fastapis_body_by_default() -> None:
    async with running(app()) as client:
        document = (await client.get("/openapi.json")).json()
    content = document["paths"]["/items/{id}"]["get"]["responses"]["422"]["content"]
    assert list(content) == ["application/json"]
