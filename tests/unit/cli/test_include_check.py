"""`gateway check` imports what `include` names, and says what `gateway serve` would say."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.cli.include_check import problems_of
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


@pytest.mark.parametrize("place", CASES)
def test_check_refuses_an_include_as_serve_does_and_says_where(tmp_path: Path, place: str) -> None:
    code, said = CASES[place]
    configured(tmp_path, place, code)
    checked = command("check", "--config", "gateway.yaml", cwd=tmp_path)
    served = command("serve", "--config", "gateway.yaml", "--port", "0", cwd=tmp_path)
    assert checked.returncode == served.returncode == 2
    (line,) = [line for line in checked.stderr.splitlines() if line.startswith("  ")]
    assert said in line
    assert line in served.stderr


def test_all_includes_are_tried(tmp_path: Path) -> None:
    (tmp_path / "gateway.yaml").write_text('redis_url: none\ninclude: ["one:a", "two:b"]\n')
    checked = command("check", "--config", "gateway.yaml", cwd=tmp_path)
    assert "there is no module 'one'" in checked.stderr
    assert "there is no module 'two'" in checked.stderr


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
