"""Fixtures of the tests of routes."""

from __future__ import annotations

import asyncio

import pytest

from tests.support import shop_routes


@pytest.fixture(autouse=True)
def fresh_counts() -> None:
    shop_routes.calls.clear()
    shop_routes.gate = asyncio.Event()
    shop_routes.gate.set()
