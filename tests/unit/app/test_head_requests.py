"""HEAD for cached handlers that their routes have for GET alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, Response
from fastapi.staticfiles import StaticFiles
from fastapi.testclient import TestClient

from gateway import Cache, Gateway, cached
from tests.support.edge_lines import Line, asked

QUIET = {"redis_url": "none", "access_log": False}


def written(app: FastAPI) -> list[str]:
    calls: list[str] = []

    @app.get("/cached/{id}")
    @cached(ttl="30s")
    async def one(id: int) -> dict[str, int]:
        calls.append("cached")
        return {"id": id}

    @app.get("/off")
    @cached(ttl="0s")
    async def off() -> list[int]:
        return [1, 2, 3]

    @app.get("/plain")
    async def plain() -> int:
        return 1

    @app.head("/own")
    async def own() -> Response:
        return Response(headers={"x-own": "1"})

    @app.get("/own")
    @cached(ttl="30s")
    async def get_own() -> int:
        return 1

    router = APIRouter(prefix="/router")

    @router.get("/cached")
    @cached(ttl="30s")
    def included() -> int:
        return 1

    app.include_router(router)
    return calls


@pytest.fixture(params=["gateway", "cache"])
def app(request: pytest.FixtureRequest) -> FastAPI:
    if request.param == "gateway":
        return Gateway(QUIET)
    app = FastAPI()
    Cache(app, QUIET)
    return app


def test_head_is_answered_as_get_without_content(app: FastAPI) -> None:
    calls = written(app)
    with TestClient(app) as client:
        for path in ("/cached/1", "/router/cached"):
            head, get, again = client.head(path), client.get(path), client.head(path)
            assert (head.status_code, head.content, again.content) == (200, b"", b"")
            assert head.headers["content-length"] == get.headers["content-length"] == str(len(get.content))
            assert "hit" in again.headers["cache-status"]
    assert calls == ["cached"]


def test_head_of_what_is_not_stored_has_no_content_either(app: FastAPI) -> None:
    written(app)
    with TestClient(app) as client:
        head = client.head("/off")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "7")


def test_a_head_handler_of_the_apps_own_and_handlers_without_a_cache_are_as_before(app: FastAPI) -> None:
    written(app)
    with TestClient(app) as client:
        assert client.head("/own").headers["x-own"] == "1"
        assert (client.head("/plain").status_code, client.head("/nowhere").status_code) == (405, 404)
        assert client.head("/cached/a").status_code == 422


def test_files_at_the_root_do_not_take_it(app: FastAPI, tmp_path: Path) -> None:
    calls = written(app)
    (tmp_path / "page.html").write_text("page")
    app.mount("/", StaticFiles(directory=tmp_path), name="files")
    with TestClient(app) as client:
        assert [client.head("/cached/1").status_code for _ in range(2)] == [200, 200]
        assert (client.head("/page.html").status_code, client.head("/other.html").status_code) == (200, 404)
        assert client.head("/own").headers["x-own"] == "1"
    assert calls == ["cached"]


def test_openapi_has_no_operation_for_it(app: FastAPI) -> None:
    written(app)
    with TestClient(app) as client:
        paths = client.get("/openapi.json").json()["paths"]
    assert sorted(paths["/cached/{id}"]) == ["get"]


async def test_the_edge_answers_it_too() -> None:
    app: Any = Gateway(QUIET)
    written(app)
    async with app.lifespan():
        line = Line(app)
        for _ in range(3):
            told = await asked(line, b"HEAD /cached/1 HTTP/1.1\r\nHost: a.test\r\n\r\n")
            assert told.endswith(b"\r\n\r\n")
            assert b"content-length: 8\r\n" in told.lower()
