"""`key=` of `@cached`: the inputs that it covers, and those that it doesn't."""

from typing import Annotated, Any

import pytest
from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer

from tests.support.handlers import ANN, BOB, Fields, app_of, asked, is_hit, of, with_users


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
