"""start_message: what the log says once the gateway serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway import __version__
from gateway.config.loader import load
from gateway.server.start_message import start_message


def message(tmp_path: Path, redis: str = "in use", environ: dict[str, str] | None = None, **settings: Any) -> list[str]:
    path = tmp_path / "gateway.yaml"
    upstreams = {"api": {"url": "http://api.test"}}
    routes = {"all": {"path": "/{rest:path}", "upstream": "api"}}
    path.write_text(yaml.safe_dump({"upstreams": upstreams, "routes": routes, **settings}))
    return list(start_message(load(path, environ=environ or {}, dotenv=None), "http://127.0.0.1:1", 2, redis))


def test_it_names_version_file_counts_redis_workers_and_addresses(tmp_path: Path) -> None:
    assert message(tmp_path) == [
        f"gateway {__version__} serves",
        f"  configuration: {tmp_path}/gateway.yaml; 1 route, 1 upstream",
        "  Redis: embedded Valkey, in use",
        "  2 workers",
        "  admin listener: http://127.0.0.1:9000, the console at /console once GATEWAY_ADMIN_TOKEN is set",
        "  listening on http://127.0.0.1:1",
    ]


def test_it_counts_what_variables_override(tmp_path: Path) -> None:
    environ = {"GATEWAY_MEMORY": "1MiB", "GATEWAY_ADMIN_TOKEN": "t" * 16}
    lines = message(tmp_path, environ=environ)
    assert lines[1].endswith("gateway.yaml, 1 setting by variables; 1 route, 1 upstream")
    assert lines[4].endswith("the console at /console")


@pytest.mark.parametrize(
    ("url", "state", "line"),
    [
        ("none", "", "none, memory alone"),
        ("embedded", "", "none, memory alone"),
        (
            "redis://user:secret@r:1/0",
            "not used: connection refused",
            "redis://***@r:1/0, not used: connection refused",
        ),
    ],
)
def test_it_says_the_state_of_redis_and_why_without_its_password(
    tmp_path: Path, url: str, state: str, line: str
) -> None:
    assert f"  Redis: {line}" in message(tmp_path, state, redis_url=url)


def test_an_admin_listener_that_no_browser_reaches_is_named_alone(tmp_path: Path) -> None:
    assert "  admin listener: none" in message(tmp_path, admin_listen="none")
