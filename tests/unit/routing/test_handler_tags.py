"""Tags of `@cached` handlers are made of the values of path parameters."""

import enum
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import pytest
from fastapi import APIRouter, Depends, Path

from gateway import cached, create_app
from gateway.errors import ConfigError
from gateway.observability.access_log import silent
from gateway.routing.handler_tags import text_of
from gateway.testing import running
from tests.support.handlers import app_of, of


class Colour(enum.StrEnum):
    RED = "red"


async def number(id: int) -> int:
    return id


async def aliased(number: Annotated[int, Path(alias="id")]) -> int:
    return number


async def uuid(id: UUID) -> str:
    return str(id)


async def text(id: str) -> str:
    return id


async def day(id: date) -> date:
    return id


async def price(id: Decimal) -> Decimal:
    return id


async def flag(id: bool) -> bool:
    return id


async def by_dependency(it: Annotated[int, Depends(number)]) -> int:
    return it


UUID_TEXT = "0a1b2c3d-0000-4000-8000-00000000abcd"
CASES: list[tuple[Callable[..., Any], str, list[str], str]] = [
    (number, "/x/{id}", ["/x/007", "/x/7", "/x/+7"], "it:7"),
    (aliased, "/x/{id}", ["/x/007", "/x/7"], "it:7"),
    (number, "/x/{id:int}", ["/x/007", "/x/7"], "it:7"),
    (by_dependency, "/x/{id}", ["/x/007", "/x/7"], "it:7"),
    (uuid, "/x/{id}", [f"/x/{UUID_TEXT.upper()}", f"/x/{UUID_TEXT.replace('-', '')}"], f"it:{UUID_TEXT}"),
    (text, "/x/{id}", ["/x/%C3%A9%41", "/x/éA"], "it:éA"),
    (day, "/x/{id}", ["/x/2026-01-02"], "it:2026-01-02"),
    (price, "/x/{id}", ["/x/1.50", "/x/1.5"], "it:1.5"),
    (flag, "/x/{id}", ["/x/1", "/x/yes", "/x/true"], "it:true"),
]


@pytest.mark.parametrize(("handler", "path", "targets", "tag"), CASES)
async def test_a_purge_of_the_value_reaches_every_spelling(
    handler: Callable[..., Any], path: str, targets: list[str], tag: str
) -> None:
    router = APIRouter()
    router.get(path)(cached(ttl="30s", tags=["it:{id}"])(handler))
    app = create_app({"redis_url": "none"}, log=silent)
    app.include_router(router)
    async with running(app) as client:
        for target in targets:
            await client.get(target)
            assert (await client.get(target)).headers["cache-status"].startswith("gateway; hit")
            await app.engine.purge(tags=[tag])
            assert not (await client.get(target)).headers["cache-status"].startswith("gateway; hit")


def test_equal_values_have_one_text() -> None:
    assert text_of(Colour.RED) == "red"
    assert text_of(datetime.fromisoformat("2026-01-02T03:00:00+02:00")) == text_of(datetime(2026, 1, 2, 1, tzinfo=UTC))
    assert text_of(Decimal("1E+2")) == text_of(Decimal("100.0")) == "100"
    assert text_of(Decimal("-0.0")) == "0"


def test_a_tag_of_no_parameter_is_refused_at_start() -> None:
    async def handler(user_id: str) -> str:
        return user_id

    with pytest.raises(ConfigError, match=r"\{user\} isn't a parameter of the path /of/.*did you mean user_id"):
        app_of(of(handler, path="/of/{user_id}", tags=["user:{user}"]))
