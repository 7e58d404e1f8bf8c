"""Which middleware of an app can be skipped for a hit."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.testclient import TestClient
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware

from gateway.routing.user_middleware import KnownMiddleware, fields_read, opaque

CORS = Middleware(CORSMiddleware, allow_origins=["https://b.test"], allow_credentials=True, expose_headers=["x-a"])
OPEN = Middleware(CORSMiddleware, allow_origins=["*"])
SESSION = Middleware(SessionMiddleware, secret_key="s")


class Own(CORSMiddleware):
    pass


@pytest.mark.parametrize(
    ("middleware", "name", "fields"),
    [
        ([], None, set()),
        ([CORS, SESSION], None, {b"origin", b"cookie"}),
        ([CORS, Middleware(GZipMiddleware)], "GZipMiddleware", {b"origin"}),
        ([Middleware(Own, allow_origins=["*"])], "Own", set()),
        ([Middleware(BaseHTTPMiddleware, dispatch=None)], "BaseHTTPMiddleware", set()),
        ([Middleware(lambda app: app)], "<lambda>", set()),
    ],
)
def test_only_what_is_known_is_skipped(middleware: Any, name: str | None, fields: set[bytes]) -> None:
    assert (opaque(middleware), fields_read(middleware)) == (name, fields)


@pytest.mark.parametrize(
    "middleware", [[CORS], [SESSION], [SESSION, CORS], [Middleware(CORSMiddleware, allow_origins="*")]]
)
def test_without_its_field_known_middleware_changes_what_it_is_said_to_change(middleware: list[Middleware]) -> None:
    """What the edge relies on: without the fields, whatever else a request has, its response is the handler's with the
    fields of `told`."""

    def made(*middleware: Middleware) -> TestClient:
        app = FastAPI(middleware=list(middleware))

        @app.get("/a")
        def a(request: Request, response: Response) -> list[str]:
            response.headers["vary"] = "accept"
            return sorted(request.headers)

        return TestClient(app)

    with_it, without, known = made(*middleware), made(), KnownMiddleware(middleware)
    for method in ("GET", "HEAD"):
        for headers in (
            {},
            {"accept-encoding": "gzip"},
            {"authorization": "a"},
            {"access-control-request-method": "a"},
        ):
            ours, plain = (each.request(method, "/a", headers=headers) for each in (with_it, without))
            assert (ours.status_code, ours.content) == (plain.status_code, plain.content)
            assert ours.headers.raw == known.told(plain.headers.raw, None)
