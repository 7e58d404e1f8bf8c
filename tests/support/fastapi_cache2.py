"""Apps and models of tests of fastapi-cache2."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx
from fastapi import APIRouter
from fastapi_cache.decorator import cache
from pydantic import BaseModel, ConfigDict, Field, computed_field, field_serializer

from gateway.cache.engine import Engine
from gateway.cache.memory import Memory
from gateway.cache.purge_log import PurgeLog
from gateway.cache.shared_store import NoShared, SharedStore
from gateway.clock import Clock, SystemClock
from gateway.fastapi_cache2.backend import GatewayBackend, register
from gateway.testing import running
from tests.support.gateways import gateway

Include = Callable[[APIRouter], list[str]]
"""Makes what to write into `include` for a router."""


@contextlib.asynccontextmanager
async def shop(
    include: Include, router: APIRouter, *, clock: Clock | None = None, store: SharedStore | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway that includes the router."""
    app = gateway(routes={}, include=include(router), clock=clock, store=store, redis_budget="1s")
    async with running(app) as client:
        yield client


def hit(response: httpx.Response) -> bool:
    return response.headers["x-fastapi-cache"] == "HIT"


def engine_of(clock: Clock | None = None, store: SharedStore | None = None, purges: PurgeLog | None = None) -> Engine:
    return Engine(memory=Memory(2**24), shared=store or NoShared(), clock=clock or SystemClock(), purges=purges)


class Counter:
    """How often something was called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        return self.calls


class Part(BaseModel):
    name: str = Field(alias="partName")
    note: str | None = None


class Item(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    id: int
    price: Decimal = Decimal("1.50")
    at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    label: str = Field(default="x", serialization_alias="Label", validation_alias="lbl")
    inner: int = Field(default=3, exclude=True)
    parts: list[Part] = []

    @computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> int:
        return self.id * 2

    @field_serializer("price")
    def shown(self, price: Decimal) -> str:
        return f"EUR {price}"


class Cat(BaseModel):
    name: str


@dataclass
class Point:
    x: int
    y: Decimal


def returning(make: Callable[[], Any], kind: Any, *, own_key: bool) -> Callable[..., Any]:
    """A handler that fastapi-cache2 caches."""

    async def handler():  # type: ignore[no-untyped-def]
        return make()

    if kind is not None:
        handler.__annotations__["return"] = kind
    key = (lambda function, namespace="", **_: f"{namespace}:own") if own_key else None
    return cache(expire=30, key_builder=key)(handler)


async def numbers(*keys: str) -> GatewayBackend:
    """A registered backend that stores a value under each key."""
    backend = register(engine_of())
    for key in keys:
        await backend.set(key, key.encode(), 30)
    return backend
