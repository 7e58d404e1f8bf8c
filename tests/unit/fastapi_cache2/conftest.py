"""Fixtures of the tests of apps that use fastapi-cache2."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from uuid import uuid4

import pytest
from fastapi import APIRouter
from fastapi_cache import FastAPICache

from tests.support.fastapi_cache2 import (
    Include,
)


@pytest.fixture
def include(monkeypatch: pytest.MonkeyPatch) -> Include:
    """What to write into `include` for a router made in a test."""

    def name(router: APIRouter) -> list[str]:
        module = ModuleType(f"shop_{uuid4().hex}")
        module.router = router  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return [f"{module.__name__}:router"]

    return name


@pytest.fixture(autouse=True)
def unregistered() -> Iterator[None]:
    yield
    FastAPICache.reset()
