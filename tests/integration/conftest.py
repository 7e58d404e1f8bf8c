"""Fixtures of the tests with real processes. Each process is ended by its pid when its test ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import LISTENING, Child, GatewayProcess, Valkey

StartGateway = Callable[..., GatewayProcess]
MakeValkey = Callable[..., Valkey]


@pytest.fixture
def start_gateway(tmp_path: Path) -> Iterator[StartGateway]:
    """Starts a gateway and returns once it listens."""
    with ExitStack() as stack:

        def start(settings: dict[str, Any], **more: Any) -> GatewayProcess:
            gateway = GatewayProcess(tmp_path, settings, **more)
            stack.callback(gateway.end)
            return gateway

        yield start


@pytest.fixture
def make_valkey(tmp_path: Path) -> Iterator[MakeValkey]:
    """Starts a Valkey and returns once it is ready."""
    with ExitStack() as stack:

        def make(*arguments: str, **more: Any) -> Valkey:
            valkey = Valkey(tmp_path, *arguments, **more)
            stack.callback(valkey.end)
            valkey.start()
            return valkey

        yield make


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[str]:
    child = Child([sys.executable, "-m", "tests.support.origin"], output=tmp_path / "origin.out", cwd=Path.cwd())
    try:
        yield child.said(LISTENING)[1]
    finally:
        child.end()
