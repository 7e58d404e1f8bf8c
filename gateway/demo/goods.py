"""What the demo's shop sells: made here, the same at each start, without files or network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Annotated, TypeVar

from pydantic import BaseModel, Field

from gateway.clock import Clock

CATEGORIES = {
    "kitchen": ("Teapot", "Frying Pan", "Mixing Bowl", "Bread Knife"),
    "garden": ("Trowel", "Lantern", "Planter", "Watering Can"),
    "office": ("Notebook", "Desk Lamp", "Fountain Pen", "Paper Tray"),
    "travel": ("Backpack", "Flask", "Wallet", "Umbrella"),
    "home": ("Blanket", "Cushion", "Wall Clock", "Mirror"),
}
STYLES = (
    "Classic",
    "Modern",
    "Handmade",
    "Nordic",
    "Vintage",
    "Everyday",
    "Little",
    "Large",
    "Festive",
    "Plain",
)
CITIES = ("Lisbon", "Ghent", "Aarhus", "Turin", "Graz", "Lyon", "Porto", "Leipzig")
FIRST_NAMES = ("Ada", "Bruno", "Chloé", "Daan", "Elif", "Finn", "Greta", "Hugo", "Inês", "Jakub")
LAST_NAMES = ("Almeida", "Berg", "Conti", "Dubois", "Eriksen")
OPINIONS = ("As described.", "My second one already.", "Smaller than I thought.", "A gift that was liked.")
HEADLINES = {
    "en": ("Spring sale begins", "New sellers from Porto", "Free returns until June"),
    "de": ("Der Frühlingsverkauf beginnt", "Neue Händler aus Porto", "Kostenlose Rückgabe bis Juni"),
    "fr": (
        "Les soldes de printemps commencent",
        "Nouveaux vendeurs de Porto",
        "Retours gratuits jusqu'en juin",
    ),
}
ITEMS, SELLERS, USERS = 200, 20, 50
PRICE_SECONDS = 10
NEWS_SECONDS = 60
MAX_ORDERS = 1000
"""How many orders are remembered: a load test must not fill the memory."""


@dataclass(frozen=True, slots=True)
class Item:
    id: int
    name: str
    description: str
    category: str
    seller_id: int
    price_cents: int
    rating: float
    image: str


@dataclass(frozen=True, slots=True)
class Page:
    items: list[Item]
    page: int
    page_size: int
    total: int


@dataclass(frozen=True, slots=True)
class Found:
    query: str
    items: list[Item]
    total: int


@dataclass(frozen=True, slots=True)
class Category:
    name: str
    items: int


@dataclass(frozen=True, slots=True)
class Review:
    id: int
    user_id: int
    author: str
    stars: int
    text: str


@dataclass(frozen=True, slots=True)
class User:
    id: int
    name: str
    email: str
    city: str
    member_since: date


@dataclass(frozen=True, slots=True)
class Seller:
    id: int
    name: str
    city: str
    rating: float


@dataclass(frozen=True, slots=True)
class Price:
    id: int
    price_cents: int
    currency: str
    as_of: datetime


@dataclass(frozen=True, slots=True)
class Offer:
    id: int
    title: str
    item_id: int
    percent: int


class Line(BaseModel):
    id: int
    quantity: Annotated[int, Field(ge=1, le=100)]


class Cart(BaseModel):
    user_id: int
    items: Annotated[list[Line], Field(max_length=100)]


class Order(Cart):
    id: int
    total_cents: int


class PriceChange(BaseModel):
    price_cents: Annotated[int, Field(ge=1, le=100_000_000)]


Thing = TypeVar("Thing")


class Unknown(LookupError):
    """There is no such thing in the shop; the message names it."""


class Shop:
    """What the shop has. Only the items' prices and the orders ever change."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.items = {number: _item(number) for number in range(1, ITEMS + 1)}
        self.users = {number: _user(number) for number in range(1, USERS + 1)}
        self.sellers = {number: _seller(number) for number in range(1, SELLERS + 1)}
        self.orders: dict[int, Order] = {}
        self._ordered = 0

    def search(self, text: str) -> list[Item]:
        words = text.lower().split()
        return [
            item
            for item in self.items.values()
            if words and all(word in f"{item.name} {item.description}".lower() for word in words)
        ]

    def price(self, item: Item) -> Price:
        """The item's price as it swings around what PUT set: another one every 10 s."""
        tick = int(self._clock.now() // PRICE_SECONDS)
        percent = 95 + (item.id * 31 + tick * 17) % 11
        as_of = datetime.fromtimestamp(tick * PRICE_SECONDS, UTC)
        return Price(item.id, item.price_cents * percent // 100, "EUR", as_of)

    def reviews(self, item: Item) -> list[Review]:
        return [_review(item, number) for number in range(1, item.id % 6 + 1)]

    def offers(self) -> list[Offer]:
        items = [self.items[number] for number in range(9, ITEMS, 33)]
        return [
            Offer(number, f"{10 + number * 5} % off the {item.name}", item.id, 10 + number * 5)
            for number, item in enumerate(items, 1)
        ]

    def edition(self) -> int:
        return int(self._clock.now() // NEWS_SECONDS)

    def change_price(self, item: Item, price_cents: int) -> Item:
        changed = self.items[item.id] = replace(item, price_cents=price_cents)
        return changed

    def order(self, cart: Cart) -> Order:
        """Raises Unknown."""
        find(self.users, cart.user_id, "user")
        total = sum(find(self.items, line.id, "item").price_cents * line.quantity for line in cart.items)
        self._ordered += 1
        order = Order(id=self._ordered, total_cents=total, **dict(cart))
        self.orders[order.id] = order
        self.orders.pop(order.id - MAX_ORDERS, None)
        return order


def find(things: dict[int, Thing], id: int, kind: str) -> Thing:
    """Raises Unknown."""
    try:
        return things[id]
    except KeyError:
        raise Unknown(f"There is no {kind} {id}.") from None


def _item(number: int) -> Item:
    index = number - 1
    nouns = [(category, noun) for category, nouns in CATEGORIES.items() for noun in nouns]
    category, noun = nouns[index % len(nouns)]
    style = STYLES[index // len(nouns)]
    return Item(
        id=number,
        name=f"{style} {noun}",
        description=f"{style} and made in {CITIES[index % 8]}: a {noun.lower()} for {category} and beyond.",
        category=category,
        seller_id=1 + index * 7 % SELLERS,
        price_cents=995 + index * 37 % 90 * 100,
        rating=(30 + index * 13 % 20) / 10,
        image=f"/images/{number}.webp",
    )


def _user(number: int) -> User:
    first, last = FIRST_NAMES[number % 10], LAST_NAMES[number // 10 % 5]
    return User(
        id=number,
        name=f"{first} {last}",
        email=f"user{number}@shop.example",
        city=CITIES[number % 8],
        member_since=date(2015 + number % 10, 1 + number % 12, 1 + number % 28),
    )


def _seller(number: int) -> Seller:
    city = CITIES[number % 8]
    return Seller(number, f"{LAST_NAMES[number % 5]} & Co., {city}", city, (35 + number * 7 % 15) / 10)


def _review(item: Item, number: int) -> Review:
    author = _user(1 + (item.id * 11 + number * 7) % USERS)
    return Review(number, author.id, author.name, 1 + (item.id + number * 3) % 5, OPINIONS[(item.id + number) % 4])
