"""What the demo's shop sells: the same at each start, and prices that swing."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from gateway.demo.goods import CATEGORIES, ITEMS, PRICE_SECONDS, Cart, Line, Shop, Unknown, find
from gateway.testing import TurnedClock


def test_two_shops_sell_the_same_things_at_the_same_prices(clock: TurnedClock) -> None:
    one, two = Shop(clock), Shop(clock)
    assert (one.items, one.users, one.sellers) == (two.items, two.users, two.sellers)
    assert [one.price(item) for item in one.items.values()] == [two.price(item) for item in two.items.values()]


def test_every_item_is_of_another_name_and_each_category_has_as_many(clock: TurnedClock) -> None:
    items = Shop(clock).items.values()
    assert len({item.name for item in items}) == ITEMS
    counts = [sum(item.category == name for item in items) for name in CATEGORIES]
    assert counts == [ITEMS // len(CATEGORIES)] * len(CATEGORIES)


def test_a_price_swings_by_five_percent_around_what_was_set(clock: TurnedClock) -> None:
    shop = Shop(clock)
    item = shop.change_price(shop.items[7], 10_000)
    seen = []
    for _ in range(22):
        price = shop.price(item)
        seen.append(price.price_cents)
        assert price.as_of.timestamp() == clock.now() // PRICE_SECONDS * PRICE_SECONDS
        clock.turn(PRICE_SECONDS)
    assert (min(seen), max(seen)) == (9_500, 10_500)


def test_a_search_needs_all_words_in_any_case(clock: TurnedClock) -> None:
    shop = Shop(clock)
    assert [item.name for item in shop.search("NORDIC teapot")] == ["Nordic Teapot"]
    assert shop.search("nordic bicycle") == shop.search("  ") == []


def test_an_order_of_something_unknown_is_not_taken(clock: TurnedClock) -> None:
    shop = Shop(clock)
    for cart in (
        Cart(user_id=999, items=[Line(id=1, quantity=1)]),
        Cart(user_id=1, items=[Line(id=1, quantity=1), Line(id=999, quantity=1)]),
    ):
        with pytest.raises(Unknown, match="999"):
            shop.order(cart)
    assert shop.orders == {}
    assert shop.order(Cart(user_id=1, items=[])).id == 1


@pytest.mark.parametrize("quantity", [0, 101])
def test_a_line_has_one_to_a_hundred_pieces(quantity: int) -> None:
    with pytest.raises(ValidationError):
        Line(id=1, quantity=quantity)


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(Unknown, match="There is no seller 5"):
        find({}, 5, "seller")
