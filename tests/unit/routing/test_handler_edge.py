"""Which `@cached` handlers are proven to be the same without the app, and what stands against the others."""

from __future__ import annotations

import datetime
import enum
import functools
import inspect
import ipaddress
from collections.abc import Callable
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from fastapi import APIRouter, BackgroundTasks, Body, Cookie, Depends, Header, Query, Request, Response, Security
from fastapi.security import HTTPBearer
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    Field,
    FilePath,
    HttpUrl,
    PastDatetime,
    SecretStr,
    field_validator,
)
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import HTTPConnection

from gateway import cached
from gateway.routing.handler_edge import judged


def against(*parameters: Any, decorator: Callable[[Any], Any] | None = None, path: str = "/", **arguments: Any) -> Any:
    """What stands against a handler with one parameter of each annotation."""

    def handler(**given: Any) -> None: ...

    kept: list[inspect.Parameter] = []

    for number, annotation in enumerate(parameters):
        default: Any = inspect.Parameter.empty
        if isinstance(annotation, tuple):
            annotation, default = annotation
        kept.append(
            inspect.Parameter(f"p{number}", inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
        )
    handler.__signature__ = inspect.Signature(kept)  # type: ignore[attr-defined]
    router = APIRouter()
    endpoint = cached(**{"ttl": "30s", **arguments})(handler)
    router.get(path)(endpoint if decorator is None else decorator(endpoint))
    (found,) = judged(router.routes, ())
    return found.against


class Plain(enum.Enum):
    A = "a"


class Guessing(enum.Enum):
    A = "a"

    @classmethod
    def _missing_(cls, value: object) -> Any:
        return cls.A


class Page(BaseModel, extra="forbid"):
    number: int = Field(1, ge=1)
    tags: list[str] = Field(default_factory=list)
    colour: Plain = Plain.A


class Checked(BaseModel):
    number: int = 1

    @field_validator("number")
    @classmethod
    def checked(cls, value: int) -> int:
        return value


class Fields(BaseModel):
    x_tenant: str = ""


class AllFields(BaseModel, extra="allow"):
    x_tenant: str = ""


class OnlyFields(BaseModel, extra="forbid"):
    x_tenant: str = ""


PROVEN: dict[str, Any] = {
    "numbers": int,
    "a choice": Literal["a", "b"],
    "an enumeration": Plain,
    "dates": datetime.datetime | AwareDatetime | None,
    "UUIDs": UUID,
    "addresses": ipaddress.IPv4Address | HttpUrl,
    "secrets": SecretStr,
    "limits": Annotated[str, Query(min_length=2, max_length=3, pattern="a+", alias="Q")],
    "lists": (Annotated[list[int], Query()], []),
    "a factory of Python's own": Annotated[list[int], Query(default_factory=list)],
    "a method of Python's own": Annotated[str, AfterValidator(str.lower)],
    "a model of the query": Annotated[Page, Query()],
    "a header": Annotated[int, Header()],
    "a model of headers": Annotated[Fields, Header()],
    "a cookie": Annotated[str, Cookie()],
    "a body": (Annotated[Page | None, Body()], None),
    "the response": Response,
    "background tasks": BackgroundTasks,
}


@pytest.mark.parametrize("kind", PROVEN)
def test_declared_parameters_that_validate_alike_each_time_are_for_the_edge(kind: str) -> None:
    assert against(PROVEN[kind]) is None


def current() -> str:
    return ""


def guess(value: Any) -> Any:
    return value


BY = "the parameter p0 is validated by "
HERE = __name__
UNPROVEN: dict[str, tuple[Any, str]] = {
    "the request": (Request, "it takes the Request"),
    "the connection": (HTTPConnection, "it takes the Request"),
    "a dependency": (Annotated[str, Depends(current)], f"it depends on {HERE}.current"),
    "a security scheme": (Annotated[Any, Security(HTTPBearer())], "it depends on fastapi.security.http.HTTPBearer"),
    "a validator before": (Annotated[int, BeforeValidator(guess)], f"{BY}{HERE}.guess"),
    "a validator behind": (Annotated[int | None, AfterValidator(guess)], f"{BY}{HERE}.guess"),
    "a validator of a model": (Annotated[Checked, Query()], f"{BY}{HERE}.Checked.checked"),
    "the clock": (PastDatetime, f"{BY}the time of the request"),
    "the disk": (FilePath, f"{BY}pydantic.types.PathType.validate_file"),
    "an enumeration that guesses": (Guessing, f"{BY}{HERE}.Guessing._missing_"),
    "a factory": (Annotated[str, Query(default_factory=current)], f"{BY}{HERE}.current"),
    "all headers": (Annotated[AllFields, Header()], "the model of the headers p0 is shown all fields"),
    "no other headers": (Annotated[OnlyFields, Header()], "the model of the headers p0 is shown all fields"),
}


@pytest.mark.parametrize("kind", UNPROVEN)
def test_what_may_refuse_a_request_whose_answer_is_stored_is_the_apps_to_answer(kind: str) -> None:
    annotation, why = UNPROVEN[kind]
    assert against(annotation) == why
    assert against(annotation, edge=True) is None


def test_a_header_is_in_no_key_where_the_handler_decides_the_life() -> None:
    assert against(Annotated[int, Header()], ttl="origin") == 'with ttl="origin" the header p0 is in no key'
    assert against(int, ttl="origin") is None


def test_a_key_of_values_is_made_by_the_app() -> None:
    assert against(int, key=["p0"]) == "key= is made for each request"


def test_a_decorator_above_runs_for_each_request() -> None:
    def above(function: Any) -> Any:
        @functools.wraps(function)
        async def inner(*args: Any, **kwargs: Any) -> Any:
            return await function(*args, **kwargs)

        return inner

    assert str(against(int, decorator=above)).endswith("above @cached runs for each request")


class Odd(Convertor[int]):
    regex = "[0-9]+"

    def convert(self, value: str) -> int:
        return int(value)

    def to_string(self, value: int) -> str:
        return str(value)


def test_a_path_convertor_of_the_apps_own_is_run_by_the_app() -> None:
    register_url_convertor("odd", Odd())
    assert against(path="/{number:odd}") == "the path parameter number has a convertor of the app's own"
    assert against(path="/{number:int}") is None
