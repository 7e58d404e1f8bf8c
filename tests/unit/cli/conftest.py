"""Fixtures of the tests of commands."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a configuration, in which the commands are run."""
    monkeypatch.chdir(tmp_path)
    for name in ("GATEWAY_ADMIN_URL", "GATEWAY_ADMIN_TOKEN", "GATEWAY_ADMIN_LISTEN"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path
