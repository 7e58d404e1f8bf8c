"""Inputs that a handler declares: all of them are in its key, or its responses are not shared."""

from collections.abc import Callable
from typing import Annotated, Any

import pytest
from fastapi import Cookie, Depends, Header, Query, Request, Response, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import AliasChoices, BaseModel, Field, model_validator

from gateway.errors import ConfigError
from gateway.testing import running
from tests.support.handlers import ANN, BOB, app_of, asked, is_hit, of


class Tenant(BaseModel):
    x_tenant: str = ""
    other: str = Field("", validation_alias=AliasChoices("X-Other", "x-else"))


async def by_model(h: Annotated[Tenant, Header()]) -> str:
    return h.x_tenant + h.other


async def by_alias(t: Annotated[str, Header(alias="x_tenant")] = "") -> str:
    return t


async def by_underscore(x_tenant: Annotated[str, Header(convert_underscores=False)] = "") -> str:
    return x_tenant


async def by_choice(t: Annotated[str, Header(validation_alias=AliasChoices("x-one", "x-two"))] = "") -> str:
    return t


async def by_list(x_tag: Annotated[list[str], Header()]) -> list[str]:
    return x_tag


async def by_key(key: Annotated[str, Security(APIKeyHeader(name="X-API-Key"))]) -> str:
    return key


DECLARED: list[tuple[Callable[..., Any], str]] = [
    (by_model, "x-tenant"),
    (by_model, "x-other"),
    (by_model, "x-else"),
    (by_alias, "x_tenant"),
    (by_underscore, "x_tenant"),
    (by_choice, "x-one"),
    (by_choice, "x-two"),
    (by_list, "x-tag"),
    (by_key, "x-api-key"),
]


@pytest.mark.parametrize("ttl", ["30s", "origin"])
@pytest.mark.parametrize(("handler", "field"), DECLARED)
async def test_every_form_of_a_declared_header_is_in_the_key(handler: Callable[..., Any], field: str, ttl: str) -> None:
    async def depending(response: Response, value: Annotated[Any, Depends(handler)]) -> Any:
        response.headers["cache-control"] = "max-age=30"
        return value

    ann, bob, again = await asked(app_of(of(depending, ttl=ttl)), *({field: who} for who in ("ann", "bob", "ann")))
    assert ("ann" in ann.text, "bob" in bob.text, "ann" in again.text) == (True, True, True)
    assert is_hit(again)


async def test_the_models_of_cookies_and_query_are_in_the_key() -> None:
    class Crumbs(BaseModel):
        sid: str = ""

    class Page(BaseModel):
        number: int = Field(1, alias="p")

    async def handler(crumbs: Annotated[Crumbs, Cookie()], page: Annotated[Page, Query()]) -> str:
        return f"{crumbs.sid} {page.number}"

    app = app_of(of(handler, cookies="ignore"))
    async with running(app) as client:
        for sid, page in (("ann", 1), ("bob", 1), ("bob", 2)):
            answer = await client.get(f"/it?p={page}", headers={"cookie": f"sid={sid}; other={sid}"})
            assert answer.json() == f"{sid} {page}"


async def test_a_cookie_that_is_sent_twice_is_seen_as_the_key_has_it() -> None:
    async def handler(sid: Annotated[str, Cookie()] = "") -> str:
        return sid

    evil, bob = await asked(
        app_of(of(handler, cookies=["sid"])), {"cookie": "sid=bob; sid=evil"}, {"cookie": "sid=bob"}
    )
    assert "evil" not in evil.text + bob.text


class Curious(BaseModel):
    x_tenant: str = ""

    @model_validator(mode="before")
    @classmethod
    def peek(cls, values: Any) -> Any:
        return {"x_tenant": values.get("x-user", "")}


class Greedy(BaseModel):
    model_config = {"extra": "allow"}


@pytest.mark.parametrize("model", [Curious, Greedy])
async def test_a_model_that_sees_every_field_is_not_shared(
    model: type[BaseModel], caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(h: Any) -> str:
        return str(h)

    handler.__annotations__["h"] = Annotated[model, Header()]
    app = app_of(of(handler))
    assert "handler(h)" in caplog.text
    ann, bob, again = await asked(app, ANN, BOB, ANN)
    assert ("ann" in ann.text, "bob" in bob.text, is_hit(again)) == (True, True, False)
    assert again.headers["cache-control"] == "no-store"
    assert caplog.text.count("are not shared") == 1


async def test_parameters_of_a_security_scheme_are_seen_and_in_the_key() -> None:
    class Scheme(APIKeyHeader):
        async def __call__(self, request: Request, tenant: str = "") -> str:
            return tenant + request.headers.get("x-user", "")

    async def handler(key: Annotated[str, Security(Scheme(name="X-API-Key"))]) -> str:
        return key

    async with running(app_of(of(handler))) as client:
        answers = [(await client.get(f"/it?tenant={each}", headers=ANN)).json() for each in ("1", "2", "1")]
    assert answers == ["1ann", "2ann", "1ann"]


def test_a_security_scheme_that_would_see_nothing_is_refused_at_start() -> None:
    async def handler(token: Annotated[Any, Security(HTTPBearer())]) -> str:
        return str(token)

    with pytest.raises(ConfigError, match=r"HTTPBearer requires; use authorization='key'"):
        app_of(of(handler, authorization="ignore"))
