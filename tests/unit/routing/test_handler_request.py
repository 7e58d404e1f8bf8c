"""What is in the key of a `@cached` handler: what it and its dependencies see of a request, or nothing is shared."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Cookie, Depends, Header, Query, Request, Response, Security
from fastapi.responses import StreamingResponse
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import AliasChoices, BaseModel, Field, model_validator
from starlette.requests import HTTPConnection

from gateway import cached, create_app
from gateway.app.gateway import Gateway
from gateway.errors import ConfigError
from gateway.observability.access_log import silent
from gateway.testing import running

Fields = dict[str, str] | list[tuple[str, str]]


def app_of(*routers: APIRouter, **settings: Any) -> Gateway:
    app = create_app({"redis_url": "none", **settings}, log=silent)
    for router in routers:
        app.include_router(router)
    return app


def of(handler: Callable[..., Any], path: str = "/it", **arguments: Any) -> APIRouter:
    """A router whose only route is this handler, with `@cached` for 30 s unless told otherwise."""
    router = APIRouter()
    router.get(path)(cached(**{"ttl": "30s", **arguments})(handler))
    return router


async def asked(app: Gateway, *requests: Fields, path: str = "/it") -> list[httpx.Response]:
    async with running(app) as client:
        return [await client.get(path, headers=headers) for headers in requests]


def is_hit(response: httpx.Response) -> bool:
    return response.headers["cache-status"].startswith("gateway; hit")


ANN, BOB = {"x-user": "ann"}, {"x-user": "bob"}


# --- declared ----------------------------------------------------------------------------------------------


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


async def test_a_field_that_connection_names_is_not_seen() -> None:
    async def handler(request: Request) -> str:
        return request.headers.get("x-tenant", "nobody")

    first, second = await asked(app_of(of(handler)), {"connection": "x-tenant", "x-tenant": "evil"}, {})
    assert (first.json(), second.json()) == ("nobody", "nobody")


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


# --- undeclared --------------------------------------------------------------------------------------------


async def test_what_is_read_of_the_request_selects_among_the_answers() -> None:
    async def handler(request: Request) -> str:
        if request.headers.get("x-a") == "1":
            return request.headers.get("x-b", "none")
        return "other"

    requests: list[Fields] = [{"x-a": "0", "x-b": "1"}, {"x-a": "1", "x-b": "1"}, {"x-a": "1", "x-b": "2"}]
    first, second, third, again = await asked(app_of(of(handler)), *requests, requests[1])
    assert [each.json() for each in (first, second, third, again)] == ["other", "1", "2", "1"]
    assert is_hit(again)


async def test_what_a_connection_or_a_sync_dependency_reads_is_in_the_key() -> None:
    def user(connection: HTTPConnection) -> str:
        return connection.headers.get("x-user", "")

    def handler(user: Annotated[str, Depends(user)]) -> str:
        return user

    ann, bob, again = await asked(app_of(of(handler)), ANN, BOB, ANN)
    assert (ann.json(), bob.json(), again.json(), is_hit(again)) == ("ann", "bob", "ann", True)


async def test_who_waited_takes_an_answer_only_where_its_own_request_agrees() -> None:
    gate, calls = asyncio.Event(), []

    async def handler(request: Request) -> str:
        user = request.headers["x-user"]
        calls.append(user)
        await gate.wait()
        return user

    async with running(app_of(of(handler))) as client:
        waiting = [asyncio.ensure_future(client.get("/it", headers={"x-user": f"{i % 5}"})) for i in range(20)]
        while not calls:
            await asyncio.sleep(0)
        gate.set()
        answers = await asyncio.gather(*waiting)
    assert [each.json() for each in answers] == [f"{i % 5}" for i in range(20)]


async def test_what_a_stream_reads_while_it_is_sent_is_in_the_key() -> None:
    async def handler(request: Request) -> Response:
        async def pieces() -> AsyncIterator[str]:
            yield "for "
            yield request.headers.get("x-user", "")

        return StreamingResponse(pieces())

    ann, bob, again = await asked(app_of(of(handler)), ANN, BOB, ANN)
    assert (ann.text, bob.text, again.text, is_hit(again)) == ("for ann", "for bob", "for ann", True)


def all_headers(request: Request) -> object:
    return dict(request.headers)


def raw_scope(request: Request) -> object:
    return str(request.scope["headers"])


def wrapped_again(request: Request) -> object:
    return Request(request.scope).headers.get("x-user")


def copied_scope(request: Request) -> object:
    return str({**request.scope}["headers"])


def address(request: Request) -> object:
    return [request.client and request.client.host, request.headers.get("x-user"), request.headers.get("x-real-ip")]


async def whole_body(request: Request) -> object:
    return [len(await request.body()), request.headers["x-user"]]


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (all_headers, "headers"),
        (raw_scope, "headers"),
        (wrapped_again, "headers"),
        (copied_scope, "scope"),
        (address, "client"),
        (whole_body, "body"),
    ],
)
async def test_what_no_key_can_hold_is_not_shared_and_told_once(
    handler: Callable[..., Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "gateway"):
        answers = await asked(app_of(of(handler)), ANN, BOB, ANN, ANN)
    assert ["ann" in each.text for each in answers] == [True, False, True, True]
    assert not any(map(is_hit, answers))
    assert {each.headers["cache-status"].rpartition("detail=")[2] for each in answers} == {f"reads-{reason}"}
    assert {each.headers["cache-control"] for each in answers} == {"no-store"}
    told = [each.getMessage() for each in caplog.records if "are not shared" in each.getMessage()]
    assert len(told) == 1
    assert handler.__qualname__ in told[0]


async def test_a_dependency_that_reads_what_no_key_holds_is_named(caplog: pytest.LogCaptureFixture) -> None:
    def whoever(request: Request) -> str:
        return str(request.client) + request.headers.get("x-user", "")

    async def handler(who: Annotated[str, Depends(whoever)]) -> str:
        return who

    ann, bob = await asked(app_of(of(handler)), ANN, BOB)
    assert ("ann" in ann.text, "bob" in bob.text) == (True, True)
    assert "whoever reads request.client" in caplog.text


async def test_names_of_a_clients_choosing_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: Request, name: str) -> str:
        return str(getattr(request.state, name, None))

    async with running(app_of(of(handler))) as client:
        for each in range(5):
            await client.get(f"/it?name=a{each}")
    assert caplog.text.count("are not shared") == 1


async def test_unshared_answers_keep_their_own_directives() -> None:
    async def handler(request: Request, response: Response) -> str:
        response.headers["cache-control"] = "public, max-age=5"
        return str(request.client)

    (answer,) = await asked(app_of(of(handler)), {})
    assert answer.headers["cache-control"] == "private, max-age=5"


# --- places ------------------------------------------------------------------------------------------------


async def place(request: Request) -> list[str]:
    return [str(request.url), str(request.base_url), str(request.url_for("place")), request.headers["host"]]


async def test_the_host_is_in_the_key_of_what_reads_it() -> None:
    evil, shop, again = await asked(
        app_of(of(place)), {"host": "evil.test"}, {"host": "shop.test"}, {"host": "shop.test"}
    )
    assert "evil" not in shop.text + again.text
    assert "shop" not in evil.text
    assert is_hit(again)


async def test_an_answer_that_rests_on_the_host_is_explained() -> None:
    app = app_of(of(place))
    await asked(app, {"host": "shop.test"})
    decisions = [
        (await app.explain("GET", "/it", [(b"host", host), (b"accept", b"*/*")])).decision
        for host in (b"shop.test", b"evil.test")
    ]
    assert decisions == ["hit", "miss"]


async def test_links_are_made_of_the_public_url() -> None:
    async def handler(request: Request) -> list[str]:
        forwarded = request.headers.get("x-forwarded-host", "none")
        return [str(request.url_for("handler")), str(request.base_url), forwarded]

    fields = {"host": "evil.test", "x-forwarded-host": "evil.test", "forwarded": "host=evil.test"}
    evil, shop = await asked(app_of(of(handler), public_url="https://shop.test"), fields, {"host": "shop.test"})
    assert evil.json() == shop.json() == ["https://shop.test/it", "https://shop.test/", "shop.test"]
    assert is_hit(shop)


# --- what others made --------------------------------------------------------------------------------------


def with_users(app: Gateway) -> Gateway:
    @app.middleware("http")
    async def auth(request: Request, call_next: Any) -> Any:
        user = request.headers.get("x-user")
        request.state.user = user
        request.state.role = user
        request.scope["user"] = user
        request.scope["session"] = {"user": user}
        return await call_next(request)

    return app


def by_state(request: Request) -> str:
    return str(request.state.user)


def by_session(request: Request) -> str:
    return str(request.session["user"])


def by_user(request: Request) -> str:
    return str(request.user)


def by_items(request: Request) -> str:
    return str(request["user"])


@pytest.mark.parametrize("made", [by_state, by_session, by_user, by_items])
async def test_what_a_middleware_made_is_shared_where_key_names_it_and_not_otherwise(made: Any) -> None:
    async def handler(user: Annotated[str, Depends(made)]) -> str:
        return user

    ann, bob, again = await asked(with_users(app_of(of(handler))), ANN, BOB, ANN)
    assert (ann.json(), bob.json(), is_hit(again)) == ("ann", "bob", False)
    ann, bob, again = await asked(with_users(app_of(of(handler, key=["user"]))), ANN, BOB, ANN)
    assert (ann.json(), bob.json(), is_hit(again)) == ("ann", "bob", True)
    assert "private" in again.headers["cache-control"]


async def test_key_covers_what_it_reads_and_no_more() -> None:
    async def one(request: Request) -> str:
        return str(request.state.user)

    async def two(request: Request) -> str:
        return str(request.state.user) + str(request.state.role)

    keyed: Any = {"key": lambda request: request.state.user}
    ann, bob, again = await asked(with_users(app_of(of(one, **keyed))), ANN, BOB, ANN)
    assert (ann.json(), bob.json(), is_hit(again)) == ("ann", "bob", True)
    _, _, again = await asked(with_users(app_of(of(two, **keyed))), ANN, BOB, ANN)
    assert not is_hit(again)


async def test_key_covers_no_dependency_whose_value_takes_another_way_too() -> None:
    def session(request: Request) -> Any:
        return request.session

    def user(session: Annotated[Any, Depends(session)]) -> str:
        return "somebody"

    def role(session: Annotated[Any, Depends(session)]) -> str:
        return str(session["user"])

    async def handler(user: Annotated[str, Depends(user)], role: Annotated[str, Depends(role)]) -> str:
        return role

    ann, bob = await asked(with_users(app_of(of(handler, key=["user"]))), ANN, BOB)
    assert (ann.json(), bob.json()) == ("ann", "bob")


async def test_key_covers_no_state_that_its_dependency_left_behind() -> None:
    def user(request: Request) -> str:
        request.state.whole = request.session["user"]
        return "somebody"

    async def handler(request: Request, user: Annotated[str, Depends(user)]) -> str:
        return str(request.state.whole)

    ann, bob = await asked(with_users(app_of(of(handler, key=["user"]))), ANN, BOB)
    assert (ann.json(), bob.json()) == ("ann", "bob")


async def test_key_covers_no_scope_that_its_dependency_wrote() -> None:
    def user(request: Request) -> str:
        request.scope["whole"] = request.session["user"]
        return "somebody"

    async def handler(request: Request, user: Annotated[str, Depends(user)]) -> str:
        return str(request.scope["whole"])

    ann, bob = await asked(with_users(app_of(of(handler, key=["user"]))), ANN, BOB)
    assert (ann.json(), bob.json()) == ("ann", "bob")


async def test_a_user_of_a_bearer_token_or_of_a_session_cookie_is_shared_by_key() -> None:
    def by_token(token: Annotated[Any, Security(HTTPBearer())]) -> str:
        return str(token.credentials)

    async def tokened(user: Annotated[str, Depends(by_token)]) -> str:
        return user

    async def sessioned(user: Annotated[str, Depends(by_session)]) -> str:
        return user

    tokens: list[Fields] = [{"authorization": f"Bearer {who}"} for who in ("ann", "bob", "ann")]
    answers = await asked(app_of(of(tokened, authorization="key", key=["user"])), *tokens)
    assert ([each.json() for each in answers], is_hit(answers[2])) == (["ann", "bob", "ann"], True)
    cookies: list[Fields] = [{**who, "cookie": "sid=1"} for who in (ANN, BOB, ANN)]
    answers = await asked(with_users(app_of(of(sessioned, cookies="ignore", key=["user"]))), *cookies)
    assert ([each.json() for each in answers], is_hit(answers[2])) == (["ann", "bob", "ann"], True)


async def test_key_covers_no_read_that_comes_later() -> None:
    class Context:
        def __init__(self, request: Request) -> None:
            self.request = request
            self.user = request.state.user

    async def handler(context: Annotated[Context, Depends()]) -> str:
        return str(context.request.state.user)

    keyed: Any = {"key": lambda context: "anybody"}
    ann, bob = await asked(with_users(app_of(of(handler, **keyed))), ANN, BOB)
    assert (ann.json(), bob.json()) == ("ann", "bob")


async def test_key_covers_one_item_of_the_session() -> None:
    async def handler(request: Request) -> str:
        return str(request.session["user"])

    async def other(request: Request) -> str:
        return str(request.session.get("cart", request.session["user"]))

    keyed: Any = {"key": lambda request: request.session["user"]}
    _, bob, again = await asked(with_users(app_of(of(handler, **keyed))), ANN, BOB, ANN)
    assert (bob.json(), again.json(), is_hit(again)) == ("bob", "ann", True)
    _, _, again = await asked(with_users(app_of(of(other, **keyed))), ANN, BOB, ANN)
    assert not is_hit(again)


@pytest.mark.parametrize("status", [200, 500])
async def test_answers_that_are_not_stored_say_what_they_were_made_of(status: int) -> None:
    async def handler(request: Request) -> Response:
        return Response(request.headers.get("x-user", "") * 100, status, headers={"cache-control": "max-age=60"})

    ann, bob = await asked(app_of(of(handler, max_body="1B")), ANN, BOB)
    for answer in (ann, bob):
        assert "x-user" in answer.headers["vary"]
        assert "private" in answer.headers["cache-control"]


async def test_answers_that_go_by_the_cache_say_what_others_were_made_of() -> None:
    async def handler(request: Request, response: Response) -> str:
        response.headers["cache-control"] = "public, max-age=60"
        return request.headers.get("x-user", "")

    _, past = await asked(app_of(of(handler)), ANN, {**BOB, "cookie": "a=b"})
    assert "detail=cookie" in past.headers["cache-status"]
    assert "x-user" in past.headers["vary"]
    assert "private" in past.headers["cache-control"]


async def test_a_key_value_that_says_nothing_of_itself_is_not_shared(caplog: pytest.LogCaptureFixture) -> None:
    class User:
        def __init__(self, name: str) -> None:
            self.name = name

        def __repr__(self) -> str:
            return "User"

    def user(request: Request) -> User:
        return User(request.state.user)

    async def handler(user: Annotated[Any, Depends(user)]) -> str:
        return str(user.name)

    ann, bob = await asked(with_users(app_of(of(handler, key=["user"]))), ANN, BOB)
    assert (ann.json(), bob.json()) == ("ann", "bob")
    assert "key=lambda user: user.id" in caplog.text


async def test_state_that_a_dependency_left_follows_from_what_it_read() -> None:
    def user(request: Request) -> None:
        request.state.user = request.headers.get("x-user")

    async def handler(request: Request) -> str:
        return str(request.state.user)

    router = APIRouter(dependencies=[Depends(user)])
    router.get("/it")(cached(ttl="30s")(handler))
    ann, bob, again = await asked(app_of(router), ANN, BOB, ANN)
    assert (ann.json(), bob.json(), is_hit(again)) == ("ann", "bob", True)


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


# --- not in the key, not seen ------------------------------------------------------------------------------


async def seen(request: Request) -> list[Any]:
    names = ("authorization", "cookie")
    return [[request.headers.get(name) for name in names], dict(request.cookies), dict(request.query_params)]


async def test_what_is_not_in_the_key_is_not_seen() -> None:
    app = app_of(of(seen, authorization="ignore", cookies=["lang"], query=["q"]))
    async with running(app) as client:
        fields = {"authorization": "Bearer ann", "cookie": "sid=ann; lang=de"}
        first = await client.get("/it?q=1&utm_source=ann&z=2", headers=fields)
        second = await client.get("/it?q=1", headers={"cookie": "lang=de; sid=bob"})
    assert first.json() == second.json() == [[None, "lang=de"], {"lang": "de"}, {"q": "1"}]
    assert is_hit(second)


async def test_what_is_ignored_is_not_seen_by_the_cache_either() -> None:
    app = app_of(of(seen, authorization="ignore", cookies=["lang"]))
    fields = {"authorization": "Bearer ann", "cookie": "sid=ann; lang=de", "if-match": "*"}
    (past,) = await asked(app, fields)
    assert "detail=precondition" in past.headers["cache-status"]
    assert past.json() == [[None, "lang=de"], {"lang": "de"}, {}]


async def test_parameters_of_a_security_scheme_are_seen_and_in_the_key() -> None:
    class Scheme(APIKeyHeader):
        async def __call__(self, request: Request, tenant: str = "") -> str:
            return tenant + request.headers.get("x-user", "")

    async def handler(key: Annotated[str, Security(Scheme(name="X-API-Key"))]) -> str:
        return key

    async with running(app_of(of(handler))) as client:
        answers = [(await client.get(f"/it?tenant={each}", headers=ANN)).json() for each in ("1", "2", "1")]
    assert answers == ["1ann", "2ann", "1ann"]


async def test_dropped_parameters_are_seen_by_nobody_but_who_declares_them() -> None:
    async def handler(request: Request, utm_source: str = "") -> list[str]:
        return [utm_source, request.query_params.get("utm_medium", "none")]

    async with running(app_of(of(handler), drop_query=["utm_*"])) as client:
        answers = [
            (await client.get(f"/it?utm_source={source}&utm_medium={medium}")).json()
            for source, medium in (("a", "evil"), ("b", "evil"), ("a", "x"))
        ]
    assert answers == [["a", "none"], ["b", "none"], ["a", "none"]]


def test_a_security_scheme_that_would_see_nothing_is_refused_at_start() -> None:
    async def handler(token: Annotated[Any, Security(HTTPBearer())]) -> str:
        return str(token)

    with pytest.raises(ConfigError, match=r"HTTPBearer requires; use authorization='key'"):
        app_of(of(handler, authorization="ignore"))


# --- arguments ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"ttl": 10}, "ttl=10: invalid duration; .* write 10s for seconds"),
        ({"ttl": "30s", "authorization": "Key"}, "authorization='Key' may be .* did you mean key"),
        ({"ttl": "30s", "authorization": "ignored"}, "authorization='ignored' may be .* did you mean ignore"),
        ({"ttl": "30s", "vary": "x-tenant"}, r"vary='x-tenant' must be a list, such as \['x-tenant'\]"),
        ({"ttl": "30s", "vary": ["authorization"]}, "authorization can't be part of the cache key"),
        ({"ttl": "30s", "cookies": "sid"}, r"cookies='sid' may be .*\['sid'\]"),
        ({"ttl": "30s", "cookies": ["none"]}, "'none' is a mode, not a name; write pass"),
        ({"ttl": "30s", "query": ["all"]}, "'all' is a mode, not a name; leave query out"),
        ({"ttl": "30s", "max_body": "2 megabytes"}, "max_body='2 megabytes': invalid size"),
        ({"ttl": "30s", "edge": "yes"}, "edge='yes'"),
        ({"ttl": "30s", "tags": "all"}, "tags='all' must be a list"),
        ({"ttl": "origin", "vary": ["x-a"]}, "vary requires a duration as ttl"),
        ({"ttl": "30s", "key": ["usr"]}, r"key=\['usr'\] 'usr' isn't a parameter .* did you mean user"),
        ({"ttl": "30s", "key": "user"}, r"write key=\['user'\]"),
        ({"ttl": "30s", "key": ["user"], "edge": True}, "key can't be combined with edge=True"),
    ],
)
def test_an_argument_that_means_nothing_is_refused_where_it_stands(arguments: Any, said: str) -> None:
    async def handler(user: str) -> str:
        return user

    with pytest.raises(ValueError, match=rf"@cached on .*handler: .*{said}"):
        cached(**arguments)(handler)


def test_a_tag_of_no_parameter_is_refused_at_start() -> None:
    async def handler(user_id: str) -> str:
        return user_id

    with pytest.raises(ConfigError, match=r"\{user\} isn't a parameter of the path /of/.*did you mean user_id"):
        app_of(of(handler, path="/of/{user_id}", tags=["user:{user}"]))


async def test_a_size_is_written_as_in_the_configuration() -> None:
    async def handler() -> str:
        return "x" * 2000

    small, large = app_of(of(handler, max_body="1KiB")), app_of(of(handler, max_body="2MiB"))
    assert [is_hit((await asked(app, {}, {}))[1]) for app in (small, large)] == [False, True]


async def test_a_cached_handler_reads_its_clients_host_though_links_have_the_public_one() -> None:
    async def orders(request: Request) -> dict[str, str | None]:
        return {"tenant": request.url.hostname, "host": request.headers["host"]}

    app = app_of(of(orders), public_url="https://shop.test")
    acme, umbrella = await asked(app, {"host": "acme.test"}, {"host": "umbrella.test"})
    assert acme.json() == {"tenant": "acme.test", "host": "acme.test"}
    assert umbrella.json() == {"tenant": "umbrella.test", "host": "umbrella.test"}
