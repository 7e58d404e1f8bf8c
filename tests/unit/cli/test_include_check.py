"""`gateway check` imports what `include` names, or an app, and says what `gateway serve` would say; so do `gateway
routes` and `gateway openapi`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.cli.include_check import included_by, problems_of
from tests.support.commands import run, told
from tests.support.processes import command

GOOD = "from fastapi import APIRouter\nrouter = APIRouter()\n"
WANTING = """
from typing import Annotated
from fastapi import APIRouter
from gateway import Upstream, upstream
router = APIRouter()
@router.get("/a")
async def a(u: Annotated[Upstream, upstream("nope")]) -> int:
    return 1
"""
CASES = {
    "nothere:router": ("", "there is no module 'nothere'"),
    "m:router": ("def (\n", "m.py:1: SyntaxError: invalid syntax"),
    "m:rooter": (GOOD, "m has no 'rooter'; did you mean router?"),
    "m:routers": ("routers = [1]\n", "m:routers is a list; expected a fastapi.APIRouter"),
    "m:fails": ("import os\n\ndef f():\n    os.nonexistent\n\nf()\n", "m.py:4: AttributeError: module 'os' has no"),
    "m:ends": ("import sys\nprint('hello')\nsys.exit(3)\n", "m.py:3: SystemExit: 3"),
    "m:imports": ("import nothere_either\n", "there is no module 'nothere_either'"),
    "m:argument": (
        "from gateway import cached\n@cached(ttl=10)\nasync def a(): ...\n",
        "m.py:2: ValueError: @cached on m.a",
    ),
    "m:router ": (WANTING, "requires the upstream 'nope', which is not configured"),
}


def configured(folder: Path, place: str, code: str) -> Path:
    (folder / "m.py").write_text(code)
    file = folder / "gateway.yaml"
    file.write_text(f'redis_url: none\nadmin_listen: none\ninclude: ["{place.strip()}"]\n')
    return file


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Checks the configuration, and returns why it is refused. The check runs here, as in a process that was started in
    that folder; what the configuration includes is imported in a process of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    return lambda: told(monkeypatch, capsys, "check", "--config", "gateway.yaml")


def reason(said: str) -> str:
    (line,) = [line for line in said.splitlines() if line.startswith("  ")]
    return line


@pytest.mark.parametrize("place", CASES)
def test_check_refuses_an_include_and_says_where(tmp_path: Path, place: str, refused: Callable[[], str]) -> None:
    code, said = CASES[place]
    configured(tmp_path, place, code)
    assert said in reason(refused())


@pytest.mark.parametrize("place", ["nothere:router", "m:fails", "m:router "])
def test_serve_refuses_what_check_refuses_and_says_the_same(
    tmp_path: Path, place: str, refused: Callable[[], str]
) -> None:
    configured(tmp_path, place, CASES[place][0])
    served = command("serve", "--config", "gateway.yaml", "--port", "0", cwd=tmp_path)
    assert served.returncode == 2
    assert reason(refused()) in served.stderr


def test_all_includes_are_tried(tmp_path: Path, refused: Callable[[], str]) -> None:
    (tmp_path / "gateway.yaml").write_text('redis_url: none\ninclude: ["one:a", "two:b"]\n')
    said = refused()
    assert "there is no module 'one'" in said
    assert "there is no module 'two'" in said


def test_a_router_that_can_be_imported_is_valid(tmp_path: Path) -> None:
    configured(tmp_path, "m:router", GOOD + "print('hello')\n")
    checked = command("check", "--config", "gateway.yaml", "--changed", cwd=tmp_path)
    assert checked.returncode == 0
    assert "hello" not in checked.stdout


def test_a_module_that_takes_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = configured(tmp_path, "m:router", "import threading\nthreading.Event().wait()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (problem,) = problems_of(str(file), seconds=3)
    assert problem.message == "importing its modules took more than 3 s"


def test_a_module_that_kills_the_process_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = configured(tmp_path, "m:router", "import os\nos._exit(7)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (problem,) = problems_of(str(file))
    assert problem.message == "importing its modules ended the process (status 7)"


APP = """
from fastapi import FastAPI
from gateway import Cache, Gateway, cached
print("imported")
settings = {"redis_url": "none", "admin_listen": "none"}
if KIND == "gateway":
    routes = {"all": {"path": "/api/{path:path}", "upstream": "api"}}
    app = Gateway({**settings, "upstreams": {"api": {"url": "http://127.0.0.1:9"}}, "routes": routes}, title="Mine")
else:
    app = FastAPI(title="Mine")
    Cache(app, **settings)

@app.get("/late/{id}")
@cached(ttl="30s", tags=["late:{id}"])
async def late(id: int) -> int:
    return id
"""


@pytest.mark.timeout(300)
def test_a_gateway_is_checked_and_shown_with_its_handlers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "main.py").write_text(APP.replace("KIND", repr("gateway")))
    checked = command("check", "main:app", "--changed", cwd=tmp_path)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "The configuration is valid: 1 route, 1 upstream, 1 handler." in checked.stdout
    monkeypatch.chdir(tmp_path)
    shown = run("routes", "main:app")
    assert [line.split() for line in shown.stdout.splitlines()[1:]] == [
        ["main.late", "/late/{id}", "Python", "30s", "origin", "origin", "late:{id}", "yes"],
        [*("all", "/api/{path:path}", "api:/api/{path:path}", "origin", "origin", "origin,", "10m", "yes")],
    ]
    assert run("openapi", "main:app", "-o", "document.json").exit_code == 0
    document = json.loads((tmp_path / "document.json").read_text())
    assert (document["info"]["title"], "/late/{id}" in document["paths"]) == ("Mine", True)


def test_an_app_with_a_cache_is_shown_with_its_handlers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "main.py").write_text(APP.replace("KIND", repr("cache")))
    monkeypatch.chdir(tmp_path)
    found = included_by(None, "main:app")
    assert [(each.name, each.edge, each.ttl) for each in found.handlers if each.cached] == [("main.late", "yes", 30.0)]
    assert json.loads(found.openapi)["info"]["title"] == "Mine"


@pytest.mark.parametrize("name", ["routes", "openapi"])
def test_an_app_that_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "main.py").write_text("app = 1\n")
    ran = command(name, "main:app", cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "app: main:app is a int; expected a FastAPI" in ran.stderr
