"""Commands as they are run, with the configuration of a folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from gateway.cli.commands import app as cli
from gateway.cli.commands import main

CONFIG: dict[str, Any] = {
    "redis_url": "none",
    "access_log": False,
    "upstreams": {"api": {"url": "http://api.test"}},
    "routes": {"item": {"path": "/items/{id}", "upstream": "api", "ttl": "100s", "tags": ["items"]}},
}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the console script says on standard error where it ends with status 2."""
    monkeypatch.setattr(sys, "argv", ["gateway", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    return capsys.readouterr().err


def configured(tmp_path: Path, **settings: Any) -> str:
    path = tmp_path / "gateway.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, **settings}))
    return str(path)
