"""SIGTERM while the gateway starts, at each stage: it ends with status 0 and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.processes import Child, Watched, command_of, write_config

pytestmark = pytest.mark.timeout(120)


def named(child: Child, name: str) -> list[int]:
    return [pid for pid in child.children if name in command_of(pid)]


STAGES: dict[str, Callable[[Child], object]] = {
    "imports": lambda child: child.children,
    "a worker's imports": lambda child: named(child, "gateway-spare"),
    "the embedded Valkey": lambda child: named(child, "valkey"),
    "several workers": lambda child: len(child.children) >= 3,
    "the first worker answers": lambda child: named(child, "gateway-worker"),
    "all answer": lambda child: "listening on" in child.errors,
}


def start(tmp_path: Path) -> Child:
    file = write_config(
        tmp_path / "gateway.yaml",
        {
            "redis_url": "embedded",
            "workers": 2,
            "admin_listen": f"unix:{tmp_path}/admin.sock",
            "shutdown_delay": "0s",
            "upstreams": {"api": {"url": "http://127.0.0.1:9"}},
            "routes": {"rest": {"path": "/{path:path}", "upstream": "api"}},
        },
    )
    (tmp_path / "tmp").mkdir()
    return Child(
        [sys.executable, "-m", "gateway", "serve", "--config", str(file), "--port", "0"],
        output=tmp_path / "out",
        cwd=tmp_path,
        environment={"TMPDIR": str(tmp_path / "tmp")},
    )


def reached(child: Child, stage: str) -> None:
    """Return once the stage is reached; that is another process's, there is nothing to wait on."""
    while not STAGES[stage](child):
        assert not child.ended, child.errors
        time.sleep(0.002)


@pytest.mark.parametrize("everyone", [False, True], ids=["the supervisor", "the whole group"])
@pytest.mark.parametrize("stage", STAGES)
def test_it_ends_with_status_0_and_leaves_nothing(tmp_path: Path, stage: str, everyone: bool) -> None:
    child = start(tmp_path)
    try:
        reached(child, stage)
        others = []
        for pid in child.children:
            with suppress(ProcessLookupError):
                others.append(Watched(pid))
        for pid in [*(each.pid for each in others), child.pid] if everyone else [child.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        assert child.wait(20) == 0, child.errors
        for other in others:
            with other:
                assert other.gone(5)
        assert "Traceback" not in child.errors
        assert list((tmp_path / "tmp").iterdir()) == []
        assert not (tmp_path / "admin.sock").exists()
    finally:
        child.end()
