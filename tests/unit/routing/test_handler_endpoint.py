"""The endpoint of a `@cached` handler: the plain function for direct calls, with the annotations that FastAPI reads."""

import functools
import importlib
import pathlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, Request, Response

from gateway import cached
from tests.support.handlers import answers_of, is_hit, taking

HEAD = """
from __future__ import annotations
from typing import TYPE_CHECKING, Annotated
from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel
from gateway import cached
if TYPE_CHECKING:
    from nowhere import Session, Thing
router = APIRouter()
def session():
    yield 1
"""


async def add(a: int, b: int = 1) -> int:
    return a + b


def add_sync(a: int, b: int = 1) -> int:
    return a + b


async def with_both(request: Request, response: Response, a: int = 1) -> int:
    return a


class Decorated:
    def __init__(self, name: str) -> None:
        self.name = name

    @cached(ttl="30s")
    async def slow(self, q: int = 1) -> str:
        return self.name * q

    @cached(ttl="30s")
    def fast(self, q: int = 1) -> str:
        return self.name * q


async def test_a_direct_call_is_one_of_the_plain_function() -> None:
    slow, fast = cached(ttl="30s")(add), cached(ttl="30s")(add_sync)
    assert await slow(1) == await slow(a=1, b=1) == 2
    assert fast(1) == fast(a=1, b=1) == 2
    assert await Decorated("a").slow(q=2) == Decorated("a").fast(2) == "aa"
    request = Request({"type": "http", "headers": []})
    assert await cached(ttl="30s")(with_both)(request=request, response=Response(), a=3) == 3


async def test_a_handler_can_call_another_and_depend_on_it() -> None:
    inner = cached(ttl="30s")(add)

    async def handler(n: Annotated[int, Depends(inner)], request: Request) -> dict[str, int]:
        return {"n": n, "called": await inner(5, b=6)}

    router = APIRouter()
    router.get("/it")(cached(ttl="30s")(handler))
    miss, hit = await answers_of(router, path="/it?a=1&b=3")
    assert miss.json() == hit.json() == {"n": 4, "called": 11}
    assert is_hit(hit)


@pytest.mark.parametrize("name", ["slow", "fast"])
async def test_methods_can_be_decorated_in_their_class(name: str) -> None:
    router = APIRouter()
    router.add_api_route("/it", getattr(Decorated("n"), name))
    miss, hit = await answers_of(router, path="/it?q=3")
    assert miss.json() == hit.json() == "nnn"
    assert is_hit(hit)


async def test_a_partial_of_a_cached_handler_is_cached() -> None:
    router = APIRouter()
    router.add_api_route("/it", functools.partial(cached(ttl="30s")(taking), "p"))
    miss, hit = await answers_of(router)
    assert miss.json() == hit.json() == "p"
    assert is_hit(hit)


async def generator() -> AsyncIterator[int]:
    yield 1


def sync_generator() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize("handler", [generator, sync_generator], ids=lambda each: each.__name__)
def test_a_handler_that_yields_is_refused_where_it_is_decorated(handler: Callable[..., Any]) -> None:
    with pytest.raises(
        ValueError, match=rf"@cached on \S+\.{handler.__name__}: the handler is a generator.*return a list"
    ):
        cached(ttl="30s")(handler)


ANNOTATIONS = {
    "a dependency's": ("", "async def it(s: Session = Depends(session)):\n    return {'a': s}\n"),
    "the return's": ("response_model=None", "async def it() -> Thing:\n    return {'a': 1}\n"),
    "a later model": (
        "response_model=None",
        "async def it() -> Late:\n    return Late(a=1)\nclass Late(BaseModel):\n    a: int\n",
    ),
    "in quotes": (
        "",
        "async def it(r: 'Request', w: 'Response', s: 'Session' = Depends(session)):\n    return {'a': 1}\n",
    ),
}


@pytest.mark.parametrize("name", ANNOTATIONS)
async def test_annotations_that_cannot_be_evaluated_are_taken_as_fastapi_takes_them(
    name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, handler = ANNOTATIONS[name]
    module = f"annotated_{list(ANNOTATIONS).index(name)}"
    (tmp_path / f"{module}.py").write_text(f"{HEAD}@router.get('/it', {options})\n@cached(ttl='30s')\n{handler}")
    monkeypatch.syspath_prepend(tmp_path)
    miss, hit = await answers_of(importlib.import_module(module).router)
    assert (miss.json(), hit.json()) == ({"a": 1}, {"a": 1})
    assert is_hit(hit)
