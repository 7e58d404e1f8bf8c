"""The demo's upstream: a shop's API that is as slow and as unreliable as configured.

It knows nothing of the gateway.
Most of its answers say nothing of caching, as most APIs' don't; `/origin/news` and a user's cart do. What
reaches it is counted (`GET /_demo`, `X-Shop-Request`), so that a cache's response can be distinguished from its own.

    python -m gateway.demo.shop --port 9100 --delay 400ms --fail 0.0
    curl -X POST 'http://127.0.0.1:9100/_demo?delay=800&fail=0.3&only=/prices'
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from http import HTTPStatus
from typing import Annotated, Any

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, BeforeValidator, Field
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.clock import Clock, SystemClock
from gateway.config.types import parse_duration
from gateway.demo.goods import (
    HEADLINES,
    ITEMS,
    Cart,
    Category,
    Found,
    Item,
    Line,
    Offer,
    Order,
    Page,
    Price,
    PriceChange,
    Review,
    Seller,
    Shop,
    Unknown,
    User,
    find,
)

# Its API --------------------------------------------------------------------------------------------------

router = APIRouter()


async def _shop(request: Request) -> Shop:
    shop: Shop = request.app.state.shop
    return shop


async def _known_item(id: int, shop: Annotated[Shop, Depends(_shop)]) -> Item:
    return find(shop.items, id, "item")


async def _known_user(id: int, shop: Annotated[Shop, Depends(_shop)]) -> User:
    return find(shop.users, id, "user")


TheShop = Annotated[Shop, Depends(_shop)]
KnownItem = Annotated[Item, Depends(_known_item)]
KnownUser = Annotated[User, Depends(_known_user)]


@router.get("/v2/items", response_model=Page)
async def items(
    request: Request,
    shop: TheShop,
    category: str | None = None,
    page: Annotated[int, Query(ge=1)] = 1,
    page_size: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Response:
    found = [item for item in shop.items.values() if category in (None, item.category)]
    start = (page - 1) * page_size
    return validated(request, asdict(Page(found[start : start + page_size], page, page_size, len(found))))


@router.get("/v2/items/{id}", response_model=Item)
async def item(request: Request, item: KnownItem) -> Response:
    return validated(request, asdict(item))


@router.put("/v2/items/{id}")
async def change_item(item: KnownItem, change: PriceChange, shop: TheShop) -> Item:
    return shop.change_price(item, change.price_cents)


@router.get("/v2/items/{id}/reviews")
async def reviews(item: KnownItem, shop: TheShop) -> list[Review]:
    return shop.reviews(item)


@router.get("/v2/categories")
async def categories(shop: TheShop) -> list[Category]:
    counts = Counter(item.category for item in shop.items.values())
    return [Category(name, number) for name, number in counts.items()]


@router.get("/v2/search")
async def search(q: str, shop: TheShop) -> Found:
    found = shop.search(q)
    return Found(q, found[:20], len(found))


class SearchOrder(BaseModel):
    q: str
    page: Annotated[int, Field(ge=1)] = 1


@router.post("/v2/search")
async def search_by_post(order: SearchOrder, shop: TheShop) -> Found:
    found = shop.search(order.q)
    return Found(order.q, found[20 * (order.page - 1) :][:20], len(found))


@router.post("/v2/orders", status_code=201)
async def place_order(cart: Cart, shop: TheShop, response: Response) -> Order:
    try:
        order = shop.order(cart)
    except Unknown as error:
        raise HTTPException(422, str(error)) from None
    response.headers["Location"] = f"/v2/orders/{order.id}"
    return order


@router.get("/v2/orders/{id}")
async def order(id: int, shop: TheShop) -> Order:
    return find(shop.orders, id, "order")


@router.get("/me")
async def me(x_user: Annotated[str, Header()]) -> dict[str, str | int]:
    """The user whom the gateway names: the shop believes it."""
    return {"user": x_user, "points": int(sha256(x_user.encode()).hexdigest()[:4], 16) % 1000}


@router.get("/users/{id}")
async def user(user: KnownUser) -> User:
    return user


@router.get("/users/{id}/recommendations")
async def recommendations(user: KnownUser) -> list[int]:
    return [1 + (user.id * 23 + number * 41) % ITEMS for number in range(6)]


@router.get("/users/{id}/cart")
async def cart(user: KnownUser, response: Response) -> Cart:
    """None to three items: user 7 has three, user 8 none."""
    response.headers["Cache-Control"] = "private"
    ids = [1 + (user.id * 17 + number * 29) % ITEMS for number in range(user.id % 4)]
    return Cart(user_id=user.id, items=[Line(id=id, quantity=1 + id % 3) for id in ids])


@router.get("/sellers/{id}")
async def seller(id: int, shop: TheShop) -> Seller:
    return find(shop.sellers, id, "seller")


@router.get("/prices")
async def prices(ids: Annotated[str, Query(pattern=r"^[0-9]{1,9}(,[0-9]{1,9}){0,99}$")], shop: TheShop) -> list[Price]:
    """The prices of up to 100 items, in the order asked; those of unknown items are left out."""
    asked = [int(id) for id in ids.split(",")]
    return [shop.price(shop.items[id]) for id in asked if id in shop.items]


@router.get("/prices/{id}")
async def price(item: KnownItem, shop: TheShop) -> Price:
    return shop.price(item)


@router.get("/offers")
async def offers(shop: TheShop) -> list[Offer]:
    return shop.offers()


@router.get("/origin/news")
async def news(request: Request, shop: TheShop) -> Response:
    """Says itself how it may be cached, and in which languages it comes."""
    language = negotiated_language(request.headers.get("accept-language", ""))
    response = validated(
        request,
        {"edition": shop.edition(), "language": language, "headlines": HEADLINES[language]},
    )
    response.headers["Cache-Control"] = "max-age=20, stale-while-revalidate=30"
    response.headers["Vary"] = "Accept-Language"
    response.headers["Content-Language"] = language
    return response


def validated(request: Request, content: object) -> Response:
    """`content` as JSON, with a strong ETag of its bytes; 304 where the client has it (RFC 9110 §13.1.2)."""
    response: Response = JSONResponse(content)
    etag = f'"{sha256(response.body).hexdigest()[:16]}"'
    known = ",".join(request.headers.getlist("if-none-match")).split(",")
    if any(tag.strip().removeprefix("W/") in (etag, "*") for tag in known):
        response = Response(status_code=304)
    response.headers["ETag"] = etag
    return response


_LANGUAGE_RANGE = re.compile(r"\s*([a-z]{2})(?:-[a-z0-9-]+)?\s*(?:;\s*q=([01](?:\.[0-9]{0,3})?))?\s*", re.IGNORECASE)


def negotiated_language(accepted: str) -> str:
    """The language of the news that `accepted`, an Accept-Language, prefers; English where that is none."""
    ranges = [match for each in accepted.split(",") if (match := _LANGUAGE_RANGE.fullmatch(each))]
    wanted = [(float(match[2] or 1), match[1].lower()) for match in ranges]
    weight, language = max(
        (each for each in wanted if each[1] in HEADLINES), default=(0.0, "en"), key=lambda each: each[0]
    )
    return language if weight > 0 else "en"


# How it behaves -------------------------------------------------------------------------------------------

CONTROLS = "/_demo"


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Answers take `delay` and up to `jitter` more; `fail`, from 0 to 1, is the share that is a 503."""

    delay: timedelta = timedelta()
    jitter: timedelta = timedelta()
    fail: float = 0.0


class Controls:
    """How the shop behaves under which path, and what has reached it."""

    def __init__(self, behaviour: Behaviour, known_paths: Iterable[str]) -> None:
        self._rules = {"/": behaviour}
        self._known_paths = frozenset(known_paths)
        self._requests: Counter[str] = Counter()

    def behaviour(self, path: str) -> Behaviour:
        """The most specific rule: `/prices` holds for `/prices` and `/prices/7`, not for `/prices2`."""
        rules = [prefix for prefix in self._rules if f"{path}/".startswith(f"{prefix.rstrip('/')}/")]
        return self._rules[max(rules, key=len, default="/")]

    def change(self, only: str, delay: timedelta | None, jitter: timedelta | None, fail: float | None) -> None:
        """What is None stays as it is. A change of everything (`/`) ends the rules of single paths."""
        old = self.behaviour(only)
        new = Behaviour(
            old.delay if delay is None else delay,
            old.jitter if jitter is None else jitter,
            old.fail if fail is None else fail,
        )
        self._rules = {"/": new} if only == "/" else self._rules | {only.rstrip("/"): new}

    @property
    def total(self) -> int:
        return self._requests.total()

    def count(self, path: str) -> int:
        """The request's running number."""
        shape = re.sub("/[0-9]+", "/{id}", path)
        self._requests[shape if shape in self._known_paths else "other"] += 1
        return self.total

    def state(self) -> dict[str, object]:
        rules = {prefix: _shown(rule) for prefix, rule in self._rules.items()}
        return rules.pop("/") | {"only": rules, "total": self.total, "requests": dict(self._requests)}


def _shown(behaviour: Behaviour) -> dict[str, object]:
    return {
        "delay_ms": behaviour.delay / timedelta(milliseconds=1),
        "jitter_ms": behaviour.jitter / timedelta(milliseconds=1),
        "fail": behaviour.fail,
    }


def _delay(value: object) -> timedelta:
    """`800` is in milliseconds; otherwise with a unit, such as 400ms or 1.5s."""
    return parse_duration(f"{value}ms" if str(value).isdecimal() else value)


Delay = Annotated[timedelta, BeforeValidator(_delay), Field(le=timedelta(minutes=10))]
controls = APIRouter()


@controls.get(CONTROLS)
async def show(request: Request) -> dict[str, object]:
    return _controls(request).state()


@controls.post(CONTROLS)
async def change(
    request: Request,
    delay: Delay | None = None,
    jitter: Delay | None = None,
    fail: Annotated[float | None, Query(ge=0, le=1)] = None,
    only: Annotated[str, Query(pattern="^/")] = "/",
) -> dict[str, object]:
    _controls(request).change(only, delay, jitter, fail)
    return _controls(request).state()


def _controls(request: Request) -> Controls:
    found: Controls = request.app.state.controls
    return found


Sleep = Callable[[float], Awaitable[object]]


class Behaving:
    """Counts requests, keeps them waiting, fails some, and marks each answer with its time and number.

    A failure is as slow as an answer. The controls themselves are neither slow nor counted. HEAD is answered
    as GET; the server leaves out the body.
    """

    def __init__(self, app: ASGIApp, *, controls: Controls, clock: Clock, chance: random.Random, sleep: Sleep) -> None:
        self._app = app
        self._controls = controls
        self._clock = clock
        self._chance = chance
        self._sleep = sleep

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, app = scope["path"], self._app
        number = self._controls.total if path == CONTROLS else self._controls.count(path)
        if path != CONTROLS:
            app = await self._outcome(self._controls.behaviour(path))

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                served_at = datetime.fromtimestamp(self._clock.now(), UTC)
                headers = MutableHeaders(scope=message)
                headers["X-Served-At"] = served_at.isoformat(timespec="milliseconds")
                headers["X-Shop-Request"] = str(number)
            await send(message)

        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        await app({**scope, "method": method}, receive, send_marked)

    async def _outcome(self, behaviour: Behaviour) -> ASGIApp:
        seconds = (behaviour.delay + self._chance.random() * behaviour.jitter).total_seconds()
        fails = self._chance.random() < behaviour.fail
        if seconds:
            await self._sleep(seconds)
        return problem(503, "The demo is configured to fail.") if fails else self._app


# Put together ---------------------------------------------------------------------------------------------


def create_shop(
    *,
    delay: timedelta = timedelta(),
    jitter: timedelta = timedelta(),
    fail: float = 0.0,
    clock: Clock | None = None,
    chance: random.Random | None = None,
    sleep: Sleep = asyncio.sleep,
) -> FastAPI:
    """The shop's API. `clock` moves prices and news; `chance` says what fails, the same at each start."""
    clock = clock or SystemClock()
    known_paths = (route.path for route in router.routes if isinstance(route, APIRoute))
    settings = Controls(Behaviour(delay, jitter, fail), known_paths)
    app = FastAPI(title="Demo shop", docs_url=None, redoc_url=None, exception_handlers=dict(_EXCEPTION_HANDLERS))
    app.state.shop = Shop(clock)
    app.state.controls = settings
    app.include_router(router)
    app.include_router(controls)
    app.add_middleware(Behaving, controls=settings, clock=clock, chance=chance or random.Random(0), sleep=sleep)
    return app


def problem(status: int, detail: object) -> JSONResponse:
    """An error as Problem Details (RFC 9457)."""
    content = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return JSONResponse(content, status, media_type="application/problem+json")


async def _unknown(request: Request, error: Unknown) -> Response:
    return problem(404, str(error))


async def _http_error(request: Request, error: StarletteHTTPException) -> Response:
    response = problem(error.status_code, error.detail)
    response.headers.update(error.headers or {})
    return response


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    wrong = [(each["loc"], each["msg"]) for each in error.errors()]
    if any(where[0] == "path" for where, _ in wrong):
        return problem(404, "There is no such thing: ids are numbers.")
    return problem(422, "; ".join(f"{'.'.join(map(str, where))}: {what}" for where, what in wrong))


_EXCEPTION_HANDLERS: dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    Unknown: _unknown,
    StarletteHTTPException: _http_error,
    RequestValidationError: _invalid,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m gateway.demo.shop", description="A shop's API to try the gateway on."
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    parser.add_argument("--port", default=9100, type=int, help="the port to listen on (default: %(default)s)")
    parser.add_argument("--delay", default="0", type=_duration, help="how long each answer takes, such as 400ms")
    parser.add_argument("--jitter", default="0", type=_duration, help="how much longer it takes at most")
    parser.add_argument("--fail", default=0.0, type=_share, help="the share of answers that are a 503, from 0 to 1")
    given = parser.parse_args(arguments)
    shop = create_shop(delay=given.delay, jitter=given.jitter, fail=given.fail)
    uvicorn.run(shop, host=given.host, port=given.port, access_log=False, log_level="warning")


def _duration(text: str) -> timedelta:
    try:
        return _delay(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} {error}") from None


def _share(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= (share := float(text)) <= 1:
            return share
    raise argparse.ArgumentTypeError(f"{text} isn't a valid share; expected a number from 0 to 1, such as 0.3")


if __name__ == "__main__":
    main()
