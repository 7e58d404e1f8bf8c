"""docs/library.md: its apps run as they stand there, in the ways that it names."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import clean_environment

PAGE = (Path(__file__).parents[2] / "docs" / "library.md").read_text(encoding="utf-8")
APPS = re.findall(r"^```python\n# main\.py\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^gateway serve .*$", PAGE, re.MULTILINE)
TEST = """
from fastapi.testclient import TestClient
from main import app

with TestClient(app) as client:
    found = [client.get("/squares/4") for _ in range(2)]
    assert [each.json() for each in found] == [16, 16]
    assert found[1].headers["cache-status"].startswith("gateway; hit")
    assert client.head("/squares/4").status_code == 200
"""


def test_there_are_the_apps_and_commands() -> None:
    assert (len(APPS), len(COMMANDS), PAGE.count("```python")) == (2, 2, 2)


@pytest.mark.parametrize("app", APPS)
def test_an_app_of_the_page_is_cached(app: str, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(app)
    (tmp_path / "run.py").write_text(TEST)
    environment = clean_environment({"PYTHONPATH": f"{tmp_path}:{Path.cwd()}"})
    run = subprocess.run(
        [sys.executable, "run.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_has_options_that_there_are(command: str, tmp_path: Path) -> None:
    """They are run in test_ten_routes.py; a wrong option is refused before the app, which isn't here, is missed."""
    run = subprocess.run(
        [sys.executable, "-m", *command.split()],
        cwd=tmp_path,
        env=clean_environment({"PYTHONPATH": str(Path.cwd()), "GATEWAY_ADMIN_LISTEN": "none"}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "there is no module 'main'" in run.stderr
