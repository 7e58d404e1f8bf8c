"""The demo shop: its API, how it says what may be cached, and how it is made slow and faulty."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from gateway.demo.goods import MAX_ORDERS, Cart, Shop
from gateway.demo.shop import create_shop, main
from gateway.testing import TurnedClock

MS = timedelta(milliseconds=1)
NEW_ORDER = {"user_id": 7, "items": [{"id": 3, "quantity": 2}]}


def client(shop: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(shop), base_url="http://shop.test")


async def get(path: str, **settings: Any) -> httpx.Response:
    """A shop's only answer."""
    async with client(create_shop(**settings)) as shop:
        return await shop.get(path)


class Naps:
    """A sleep that takes no time, and knows how long it should have been."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


# The catalogue --------------------------------------------------------------------------------------------


async def test_an_item_has_what_a_product_page_shows() -> None:
    response = await get("/v2/items/7")

    assert response.json() == {
        "id": 7,
        "name": "Classic Planter",
        "description": "Classic and made in Porto: a planter for garden and beyond.",
        "category": "garden",
        "seller_id": 3,
        "price_cents": 5195,
        "rating": 4.8,
        "image": "/images/7.webp",
    }


async def test_json_has_no_needless_spaces() -> None:
    response = await get("/users/7")

    assert response.text.startswith('{"id":7,"name":"')


async def test_the_pages_of_the_list_hold_each_of_the_200_items_once() -> None:
    async with client(create_shop()) as shop:
        pages = [(await shop.get("/v2/items", params={"page": page, "page_size": 60})).json() for page in range(1, 5)]

    assert [item["id"] for page in pages for item in page["items"]] == list(range(1, 201))
    assert {page["total"] for page in pages} == {200}


async def test_a_page_beyond_the_last_is_empty() -> None:
    response = await get("/v2/items?page=11")

    assert response.json() == {"items": [], "page": 11, "page_size": 20, "total": 200}


async def test_a_list_of_a_category_has_its_items_only() -> None:
    page = (await get("/v2/items?category=garden&page_size=100")).json()

    assert {item["category"] for item in page["items"]} == {"garden"}
    assert page["total"] == len(page["items"]) == 40


async def test_categories_tell_how_many_items_they_have() -> None:
    categories = (await get("/v2/categories")).json()

    assert {"name": "garden", "items": 40} in categories
    assert sum(category["items"] for category in categories) == 200


async def test_a_search_finds_the_items_that_have_all_its_words() -> None:
    found = (await get("/v2/search?q=teapot+LITTLE")).json()

    assert [item["name"] for item in found["items"]] == ["Little Teapot"]
    assert found["total"] == 1


async def test_a_search_for_nothing_finds_nothing() -> None:
    assert (await get("/v2/search?q=+")).json() == {"query": " ", "items": [], "total": 0}


async def test_reviews_are_by_users_of_the_shop() -> None:
    async with client(create_shop()) as shop:
        reviews = (await shop.get("/v2/items/11/reviews")).json()
        authors = [(await shop.get(f"/users/{review['user_id']}")).json()["name"] for review in reviews]

    assert [review["author"] for review in reviews] == authors
    assert len(reviews) == 5


async def test_every_item_has_a_seller() -> None:
    async with client(create_shop()) as shop:
        items = (await shop.get("/v2/items?page_size=100")).json()["items"]
        answers = [await shop.get(f"/sellers/{id}") for id in {item["seller_id"] for item in items}]

    assert {answer.status_code for answer in answers} == {200}
    assert len(answers) == 20


async def test_offers_are_a_list_and_name_their_items() -> None:
    async with client(create_shop()) as shop:
        offer = (await shop.get("/offers")).json()[1]
        item = (await shop.get(f"/v2/items/{offer['item_id']}")).json()

    assert offer["title"] == f"{offer['percent']} % off the {item['name']}"


@pytest.mark.parametrize("path", ["/v2/items?page_size=100", "/users/9", "/sellers/4", "/offers"])
async def test_the_data_is_the_same_at_each_start(path: str) -> None:
    assert (await get(path)).content == (await get(path)).content


@pytest.mark.parametrize(
    "path",
    [
        "/v2/items/201",
        "/v2/items/0",
        "/v2/items/201/reviews",
        "/v2/orders/1",
        "/users/51",
        "/users/51/cart",
        "/users/51/recommendations",
        "/sellers/21",
        "/prices/201",
        "/v2/items/seven",
        "/nowhere",
    ],
)
async def test_what_does_not_exist_is_a_404_problem(path: str) -> None:
    response = await get(path)

    assert response.status_code == response.json()["status"] == 404
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "path",
    [
        "/v2/items?page=0",
        "/v2/items?page_size=101",
        "/v2/search",
        "/prices",
        "/prices?ids=1,x",
        "/prices?ids=",
    ],
)
async def test_a_parameter_that_makes_no_sense_is_a_422_problem(path: str) -> None:
    response = await get(path)

    assert response.status_code == response.json()["status"] == 422
    assert response.headers["content-type"] == "application/problem+json"


async def test_a_method_that_a_path_does_not_have_is_a_405_problem() -> None:
    async with client(create_shop()) as shop:
        response = await shop.delete("/v2/categories")

    assert response.status_code == response.json()["status"] == 405
    assert response.headers["allow"] == "GET"


# Users ----------------------------------------------------------------------------------------------------


async def test_recommendations_are_ids_of_items() -> None:
    ids = (await get("/users/7/recommendations")).json()

    assert len(set(ids)) == 6
    assert all(1 <= id <= 200 for id in ids)


async def test_a_cart_is_private() -> None:
    response = await get("/users/7/cart")

    assert response.headers["cache-control"] == "private"


async def test_a_cart_lists_items_by_id() -> None:
    cart = (await get("/users/7/cart")).json()

    assert cart["user_id"] == 7
    assert [line["id"] for line in cart["items"]] == [120, 149, 178]


async def test_a_cart_may_be_empty() -> None:
    assert (await get("/users/8/cart")).json() == {"user_id": 8, "items": []}


# Prices ---------------------------------------------------------------------------------------------------


async def test_a_price_stands_for_ten_seconds_and_then_changes(clock: TurnedClock) -> None:
    async with client(create_shop(clock=clock)) as shop:
        first = (await shop.get("/prices/7")).json()
        clock.turn(9.9)
        same = (await shop.get("/prices/7")).json()
        clock.turn(0.1)
        changed = (await shop.get("/prices/7")).json()

    assert same == first
    assert changed["price_cents"] != first["price_cents"]


async def test_bulk_prices_are_the_single_ones_in_the_order_asked(clock: TurnedClock) -> None:
    async with client(create_shop(clock=clock)) as shop:
        single = [(await shop.get(f"/prices/{id}")).json() for id in (9, 2, 5)]
        bulk = (await shop.get("/prices?ids=9,2,5")).json()

    assert bulk == single


async def test_bulk_prices_leave_out_unknown_items() -> None:
    prices = (await get("/prices?ids=1,999,2")).json()

    assert [price["id"] for price in prices] == [1, 2]


# Changes --------------------------------------------------------------------------------------------------


async def test_put_changes_the_price_of_an_item() -> None:
    async with client(create_shop()) as shop:
        answer = await shop.put("/v2/items/7", json={"price_cents": 100})
        item = (await shop.get("/v2/items/7")).json()

    assert answer.json() == item
    assert item["price_cents"] == 100


async def test_put_moves_the_price_that_swings(clock: TurnedClock) -> None:
    async with client(create_shop(clock=clock)) as shop:
        await shop.put("/v2/items/7", json={"price_cents": 100})
        price = (await shop.get("/prices/7")).json()

    assert 95 <= price["price_cents"] <= 105


async def test_a_price_of_nothing_is_refused() -> None:
    async with client(create_shop()) as shop:
        response = await shop.put("/v2/items/7", json={"price_cents": 0})

    assert response.status_code == 422


async def test_shops_do_not_share_their_changes() -> None:
    async with client(create_shop()) as shop:
        await shop.put("/v2/items/7", json={"price_cents": 100})

    assert (await get("/v2/items/7")).json()["price_cents"] == 5195


async def test_an_order_is_created_at_its_location() -> None:
    async with client(create_shop()) as shop:
        created = await shop.post("/v2/orders", json=NEW_ORDER)
        order = await shop.get(created.headers["location"])

    assert created.status_code == 201
    assert order.json() == created.json()


async def test_an_order_costs_what_its_items_cost() -> None:
    async with client(create_shop()) as shop:
        item = (await shop.get("/v2/items/3")).json()
        order = (await shop.post("/v2/orders", json=NEW_ORDER)).json()

    assert order["total_cents"] == 2 * item["price_cents"]


@pytest.mark.parametrize("change", [{"user_id": 51}, {"items": [{"id": 201, "quantity": 1}]}])
async def test_an_order_of_what_does_not_exist_is_refused(change: Mapping[str, Any]) -> None:
    async with client(create_shop()) as shop:
        response = await shop.post("/v2/orders", json={**NEW_ORDER, **change})

    assert response.status_code == 422


def test_only_the_last_orders_are_remembered(clock: TurnedClock) -> None:
    shop = Shop(clock)
    for _ in range(MAX_ORDERS + 5):
        shop.order(Cart(user_id=1, items=[]))

    assert list(shop.orders) == list(range(6, MAX_ORDERS + 6))


# What it says of caching ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v2/items/7", "/v2/items", "/users/7", "/prices/7", "/offers"])
async def test_most_answers_say_nothing_of_how_long_they_live(path: str) -> None:
    response = await get(path)

    assert "cache-control" not in response.headers


@pytest.mark.parametrize("path", ["/v2/items/7", "/v2/items?category=home", "/origin/news"])
@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', "*"])
async def test_who_has_the_representation_is_told_304(path: str, form: str, clock: TurnedClock) -> None:
    async with client(create_shop(clock=clock)) as shop:
        etag = (await shop.get(path)).headers["etag"]
        response = await shop.get(path, headers={"If-None-Match": form.format(etag)})

    assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", etag)


async def test_who_has_another_representation_gets_this_one() -> None:
    async with client(create_shop()) as shop:
        etag = (await shop.get("/v2/items/8")).headers["etag"]
        response = await shop.get("/v2/items/7", headers={"If-None-Match": etag})

    assert response.status_code == 200


async def test_the_etag_of_an_item_is_strong_and_changes_with_it() -> None:
    async with client(create_shop()) as shop:
        before = (await shop.get("/v2/items/7")).headers["etag"]
        await shop.put("/v2/items/7", json={"price_cents": 100})
        after = (await shop.get("/v2/items/7")).headers["etag"]

    assert before.startswith('"')
    assert after != before


@pytest.mark.parametrize("known", [False, True])
async def test_news_say_how_they_may_be_cached_in_a_304_too(known: bool, clock: TurnedClock) -> None:
    async with client(create_shop(clock=clock)) as shop:
        etag = (await shop.get("/origin/news")).headers["etag"]
        response = await shop.get("/origin/news", headers={"If-None-Match": etag} if known else {})

    assert response.status_code == (304 if known else 200)
    assert response.headers["cache-control"] == "max-age=20, stale-while-revalidate=30"
    assert response.headers["vary"] == "Accept-Language"


async def test_news_have_a_new_edition_every_minute(clock: TurnedClock) -> None:
    async with client(create_shop(clock=clock)) as shop:
        etag = (await shop.get("/origin/news")).headers["etag"]
        clock.turn(60)
        response = await shop.get("/origin/news", headers={"If-None-Match": etag})

    assert response.status_code == 200


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("", "en"),
        ("de", "de"),
        ("fr-CA", "fr"),
        ("DE-at, en;q=0.8", "de"),
        ("en;q=0.5, fr; q=0.9", "fr"),
        ("it, de;q=0.1", "de"),
        ("fr, de", "fr"),
        ("*", "en"),
        ("de;q=0", "en"),
        ("de;q=9, x" * 20, "en"),
    ],
)
async def test_news_come_in_the_language_that_the_client_prefers(accepted: str, language: str) -> None:
    async with client(create_shop()) as shop:
        response = await shop.get("/origin/news", headers={"Accept-Language": accepted})

    assert response.headers["content-language"] == response.json()["language"] == language


# How it is made slow and faulty ---------------------------------------------------------------------------


async def test_answers_are_numbered_in_the_order_of_their_requests() -> None:
    async with client(create_shop()) as shop:
        answers = [await shop.get(path) for path in ("/offers", "/nowhere", "/v2/items/1")]

    assert [answer.headers["x-shop-request"] for answer in answers] == ["1", "2", "3"]


async def test_answers_tell_when_they_were_made(clock: TurnedClock) -> None:
    clock.turn(0.25)

    response = await get("/offers", clock=clock)

    assert response.headers["x-served-at"] == "2027-01-15T08:00:00.250+00:00"


async def test_head_is_answered_as_get_is() -> None:
    async with client(create_shop()) as shop:
        got = await shop.get("/v2/items/7")
        head = await shop.head("/v2/items/7")

    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["etag"] == got.headers["etag"]
    assert head.headers["content-length"] == got.headers["content-length"]


async def test_answers_take_the_delay() -> None:
    naps = Naps()

    async with client(create_shop(delay=400 * MS, sleep=naps)) as shop:
        await shop.get("/offers")
        await shop.get("/nowhere")

    assert naps.seconds == [0.4, 0.4]


async def test_jitter_adds_to_the_delay_up_to_itself() -> None:
    naps = Naps()

    async with client(create_shop(delay=100 * MS, jitter=50 * MS, sleep=naps)) as shop:
        for _ in range(50):
            await shop.get("/offers")

    assert 0.1 <= min(naps.seconds) < 0.11
    assert 0.14 < max(naps.seconds) <= 0.15


async def test_a_failure_is_a_503_problem_and_marked_as_an_answer_is() -> None:
    response = await get("/offers", fail=1.0)

    assert response.status_code == response.json()["status"] == 503
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-shop-request"] == "1"


async def test_a_failure_is_as_slow_as_an_answer() -> None:
    naps = Naps()

    await get("/offers", delay=400 * MS, fail=1.0, sleep=naps)

    assert naps.seconds == [0.4]


async def test_the_given_share_of_answers_fails_the_same_ones_at_each_start() -> None:
    async def statuses() -> list[int]:
        async with client(create_shop(fail=0.3)) as shop:
            return [(await shop.get("/offers")).status_code for _ in range(200)]

    first, second = await statuses(), await statuses()

    assert first == second
    assert 45 <= first.count(503) <= 75


async def test_controls_tell_the_settings_and_what_was_asked_by_path() -> None:
    async with client(create_shop(delay=1 * MS, jitter=1 * MS, fail=0.0)) as shop:
        for path in ("/v2/items/7", "/v2/items/8", "/users/7/cart", "/nowhere", "/nowhere/9"):
            await shop.get(path)
        state = (await shop.get("/_demo")).json()

    assert state == {
        "delay_ms": 1.0,
        "jitter_ms": 1.0,
        "fail": 0.0,
        "only": {},
        "total": 5,
        "requests": {"/v2/items/{id}": 2, "/users/{id}/cart": 1, "other": 2},
    }


async def test_requests_are_counted_when_they_come_not_when_they_are_answered() -> None:
    async def ask_meanwhile(seconds: float) -> None:
        counted.append((await controls.get("/_demo")).json()["total"])

    counted: list[int] = []
    shop = create_shop(delay=400 * MS, sleep=ask_meanwhile)
    async with client(shop) as controls:
        await controls.get("/offers")

    assert counted == [1]


async def test_controls_are_neither_slow_nor_faulty_nor_counted() -> None:
    naps = Naps()

    async with client(create_shop(delay=400 * MS, fail=1.0, sleep=naps)) as shop:
        await shop.get("/_demo")
        response = await shop.get("/_demo")

    assert (response.status_code, response.json()["total"], naps.seconds) == (200, 0, [])


async def test_a_change_holds_for_its_path_and_those_beneath() -> None:
    async with client(create_shop()) as shop:
        await shop.post("/_demo", params={"fail": 1, "only": "/prices"})
        paths = ("/prices/7", "/prices?ids=7", "/offers", "/pricesandmore")
        statuses = [(await shop.get(path)).status_code for path in paths]

    assert statuses == [503, 503, 200, 404]


async def test_the_more_specific_path_decides() -> None:
    async with client(create_shop()) as shop:
        await shop.post("/_demo", params={"fail": 0, "only": "/users/7/cart"})
        await shop.post("/_demo", params={"fail": 1, "only": "/users"})
        statuses = [(await shop.get(path)).status_code for path in ("/users/7/cart", "/users/7")]

    assert statuses == [200, 503]


async def test_a_change_leaves_what_it_does_not_name() -> None:
    async with client(create_shop(delay=400 * MS, jitter=50 * MS)) as shop:
        state = (await shop.post("/_demo?fail=0.5&only=/prices")).json()

    assert state["only"] == {"/prices": {"delay_ms": 400.0, "jitter_ms": 50.0, "fail": 0.5}}


async def test_a_change_of_everything_ends_those_of_single_paths() -> None:
    async with client(create_shop()) as shop:
        await shop.post("/_demo", params={"fail": 1, "only": "/prices"})
        state = (await shop.post("/_demo", params={"fail": 0})).json()
        response = await shop.get("/prices/7")

    assert state["only"] == {}
    assert response.status_code == 200


@pytest.mark.parametrize(("text", "milliseconds"), [("800", 800.0), ("800ms", 800.0), ("1.5s", 1500.0), ("0", 0.0)])
async def test_a_delay_without_a_unit_is_in_milliseconds(text: str, milliseconds: float) -> None:
    async with client(create_shop()) as shop:
        state = (await shop.post("/_demo", params={"delay": text})).json()

    assert state["delay_ms"] == milliseconds


@pytest.mark.parametrize(
    "change", ["fail=1.1", "fail=-1", "fail=nan", "delay=-5", "delay=1h", "delay=x", "only=prices"]
)
async def test_a_change_that_makes_no_sense_is_refused_and_changes_nothing(change: str) -> None:
    async with client(create_shop(delay=1 * MS)) as shop:
        response = await shop.post(f"/_demo?{change}")
        state = (await shop.get("/_demo")).json()

    assert response.status_code == 422
    assert (state["delay_ms"], state["fail"], state["only"]) == (1.0, 0.0, {})


@pytest.mark.parametrize("wrong", [["--delay", "4x"], ["--fail", "2"], ["--fail", "half"], ["--jitter", "-1"]])
def test_the_command_refuses_what_makes_no_sense(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(wrong)

    assert ended.value.code == 2
    assert wrong[0] in capsys.readouterr().err
