"""Tables of commands: settings with their sources, and routes in their order."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.support.commands import CONFIG, configured, run
from tests.support.processes import command
from tests.support.tls import Authority


def test_a_valid_configuration_is_shown_with_where_each_value_came_from(tmp_path: Path) -> None:
    result = run("check", "--config", configured(tmp_path))
    assert result.exit_code == 0
    (line,) = [line for line in result.output.splitlines() if line.startswith("routes.item.ttl ")]
    assert "gateway.yaml" in line
    assert result.output.endswith("The configuration is valid: 1 route, 1 upstream.\n")


def test_the_date_at_which_the_certificate_ends_is_shown(tmp_path: Path, ours: Authority) -> None:
    certificate, key = ours.issue("gateway.test", days=2)
    result = run("check", "-c", configured(tmp_path, listen={"tls": {"cert": str(certificate), "key": str(key)}}))
    until = datetime.now(UTC) + timedelta(days=2)
    assert f"1 upstream, a certificate until {until:%Y-%m-%d}.\n" in result.output


def test_a_route_that_takes_websockets_says_so(tmp_path: Path) -> None:
    routes = {"talk": {"path": "/talk", "upstream": "api", "websocket": True}, **CONFIG["routes"]}
    lines = run("routes", "-c", configured(tmp_path, routes=routes)).output.splitlines()
    assert ["also by WebSocket" in line for line in lines if line.split()[0] in ("talk", "item")].count(True) == 1


def test_routes_are_listed_in_the_order_in_which_they_are_tried(tmp_path: Path) -> None:
    parts = {"path": "/home", "parts": {"one": {"upstream": "api", "path": "/one"}}}
    rest = {"path": "/{path:path}", "upstream": "api", "stale_while_revalidate": "1m", "stale_if_error": "1h"}
    routes = {"rest": rest, "home": parts, **CONFIG["routes"]}
    result = run("routes", "-c", configured(tmp_path, routes=routes))
    names = [line.split()[0] for line in result.output.splitlines()[1:]]
    assert names.index("rest") == 2
    assert "parts: one" in result.output


def test_handlers_are_listed_among_the_routes_and_why_the_edge_leaves_them_to_the_app(tmp_path: Path) -> None:
    (tmp_path / "listed_handlers.py").write_text(HANDLERS)
    configured(
        tmp_path, routes={"rest": {"path": "/{path:path}", "upstream": "api"}}, include=["listed_handlers:router"]
    )
    listed = command("routes", "--config", "gateway.yaml", cwd=tmp_path)
    rows = [line.split("  ") for line in listed.stdout.splitlines()[1:]]
    told = {row[0]: row[-1].strip() for row in rows}
    assert told == {
        "listed_handlers.plain": "yes",
        "listed_handlers.asking": "no: it depends on listed_handlers.user",
        "uncached": "no: nothing is cached",
        "rest": "yes",
    }
    assert list(told)[-1] == "rest"


HANDLERS = """
from fastapi import APIRouter, Depends
from gateway import cached
router = APIRouter()
def user(): ...
@router.get("/plain/{id}")
@cached(ttl="30s", tags=["a:{id}"])
async def plain(id: int): ...
@router.get("/asking")
@cached(ttl="30s")
async def asking(user=Depends(user)): ...
@router.get("/uncached")
async def uncached(): ...
"""


def test_routes_show_the_stale_windows_that_are_in_force(tmp_path: Path) -> None:
    lines = run("routes", "-c", configured(tmp_path)).output.splitlines()
    assert "origin, 10m" in lines[1]
