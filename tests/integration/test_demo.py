"""The first minute: `gateway demo`, as `make run` starts it, the lines that it prints, and Ctrl-C."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.support.processes import Child, Watched

START_SECONDS = 60.0


class Demo(Child):
    """The demo on a free port, in an empty directory."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.printed = directory / "demo.out"
        super().__init__(
            [sys.executable, "-m", "gateway", "demo", "--port", "0"],
            output=self.printed,
            cwd=directory,
            environment={"GATEWAY_ADMIN_LISTEN": "none", **environment},
        )

    def welcomed(self) -> tuple[str, str]:
        """The addresses of the shop and of the gateway, once both answer."""
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            text = self.printed.read_text()
            if "Ctrl-C ends it all" in text:
                return tuple(re.findall(r": +(http://[\d.:]+)\n", text)[:2])  # type: ignore[return-value]
            time.sleep(0.05)
        raise AssertionError(f"no welcome within {START_SECONDS} s:\n{self.errors}")

    def mentioned(self, pattern: str) -> str:
        """What the welcome has in the place of the pattern's group."""
        found = re.search(pattern, self.printed.read_text())
        assert found is not None
        return found[1]


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    with ExitStack() as stack:

        def start(**environment: str) -> Demo:
            child = Demo(tmp_path, environment)
            stack.callback(child.end)
            return child

        yield start


def test_the_three_lines_it_prints_do_what_it_says(demo: Callable[..., Demo]) -> None:
    running = demo()
    shop, gateway = running.welcomed()
    with httpx.Client(timeout=20, trust_env=False) as client:
        first, second = client.get(f"{gateway}/products/7"), client.get(f"{gateway}/products/7")
        assert first.headers["cache-status"].startswith("gateway; fwd=miss; stored")
        assert second.headers["cache-status"].startswith("gateway; hit; ttl=")
        assert float(first.headers["x-process-time"]) > 0.39
        assert float(second.headers["x-process-time"]) < 0.39, "the shop's delay"
        assert first.headers["x-shop-request"] == second.headers["x-shop-request"]
        assert client.post(f"{shop}/_demo?fail=1").json()["fail"] == 1
        assert client.get(f"{shop}/_demo").json()["requests"] == {"/v2/items/{id}": 1}
        assert client.get(f"{gateway}/docs").status_code == 200
        client.post(f"{shop}/_demo?fail=0")
        issuer = running.mentioned(r"demo's issuer, (http://[\d.:]+),")
        token = client.post(f"{issuer}/token", content="sub=berta").text
        assert client.get(f"{gateway}/mobile/mine").status_code == 401
        mine = client.get(f"{gateway}/mobile/mine", headers={"authorization": f"Bearer {token}"})
        assert mine.json()["me"]["user"] == "berta"


def test_a_variable_changes_one_ttl_and_the_old_answer_stands_in_for_the_failing_shop(
    demo: Callable[..., Demo],
) -> None:
    child = demo(GATEWAY_ROUTES__PRODUCT__TTL="1s", GATEWAY_ROUTES__PRODUCT__STALE_WHILE_REVALIDATE="0s")
    shop, gateway = child.welcomed()
    with httpx.Client(timeout=20, trust_env=False) as client:
        fetched = client.get(f"{gateway}/products/7")
        assert fetched.headers["cache-control"] in ("max-age=0", "max-age=1")
        client.post(f"{shop}/_demo?fail=1")
        time.sleep(1.1)
        stale = client.get(f"{gateway}/products/7")
    assert stale.status_code == 200
    assert stale.content == fetched.content
    assert "fwd=stale; fwd-status=503" in stale.headers["cache-status"]


def test_ctrl_c_ends_the_gateway_and_the_shop(demo: Callable[..., Demo]) -> None:
    child = demo()
    child.welcomed()
    with ExitStack() as stack:
        processes = [stack.enter_context(Watched(pid)) for pid in child.children]
        assert len(processes) == 3
        child.signal(signal.SIGINT)
        assert child.wait(40) == 0
        assert all(process.gone(5) for process in processes)
