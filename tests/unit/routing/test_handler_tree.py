"""Requests of dependencies: each dependency's reads are its own, whatever stands before or in place of it."""

from typing import Annotated, Any

import pytest
from fastapi import Depends, Header, Request

from tests.support.handlers import ANN, BOB, app_of, asked, of


async def test_a_dependency_that_reads_what_no_key_holds_is_named(caplog: pytest.LogCaptureFixture) -> None:
    def whoever(request: Request) -> str:
        return str(request.client) + request.headers.get("x-user", "")

    async def handler(who: Annotated[str, Depends(whoever)]) -> str:
        return who

    ann, bob = await asked(app_of(of(handler)), ANN, BOB)
    assert ("ann" in ann.text, "bob" in bob.text) == (True, True)
    assert "whoever reads request.client" in caplog.text


async def test_a_path_and_fields_that_a_middleware_wrote_are_in_the_key() -> None:
    async def handler(request: Request, place: str, x_tenant: Annotated[str, Header()] = "") -> str:
        return place + x_tenant + request.headers.get("x-inner", "")

    class Rewriting:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            who = dict(scope["headers"]).get(b"x-user", b"") if scope["type"] == "http" else b""
            if scope["type"] == "http":
                inner = [(b"x-tenant", who), (b"x-inner", who)]
                scope = {**scope, "path": f"/of/{who.decode()}", "headers": [*scope["headers"], *inner]}
            await self.app(scope, receive, send)

    app = app_of(of(handler, path="/of/{place}"))
    app.add_middleware(Rewriting)
    ann, bob = await asked(app, ANN, BOB, path="/of/x")
    assert (ann.json(), bob.json()) == ("annannann", "bobbobbob")


async def test_an_override_that_takes_the_request_is_not_shared() -> None:
    def user() -> str:
        return ""

    def other(request: Request) -> str:
        return request.headers.get("x-user", "")

    async def handler(user: Annotated[str, Depends(user)]) -> str:
        return user

    app = app_of(of(handler))
    app.dependency_overrides[user] = other
    ann, bob = await asked(app, ANN, BOB)
    assert (ann.json(), bob.json()) == ("ann", "bob")
