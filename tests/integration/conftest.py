"""Fixtures of the tests with real processes. Each process is ended by its pid when its test ends."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import CHROMEDRIVER, CHROMIUM
from tests.support.processes import LISTENING, Child, GatewayProcess, MakeValkey, StartGateway, Valkey


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


@pytest.fixture
def browser() -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM or ""
        for argument in (
            *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"),
            *("disable-component-update", "disable-sync", "force-prefers-reduced-motion"),
            *(f"user-data-dir={profile}", "window-size=1280,1400"),
        ):
            options.add_argument(f"--{argument}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
        try:
            yield driver
        finally:
            driver.quit()
