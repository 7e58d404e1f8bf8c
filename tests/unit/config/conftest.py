"""Fixtures of the tests of the configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.config.loader import Loaded, load
from gateway.errors import ConfigError, ConfigProblem
from tests.support.settings import Load


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads `gateway.yaml` with the given text, seen from the directory that it is in."""
    monkeypatch.chdir(tmp_path)

    def read(text: str | bytes = "", dotenv: str | None = None, **environ: str) -> Loaded:
        Path("gateway.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        if dotenv is not None:
            Path(".env").write_text(dotenv)
        return load(Path("gateway.yaml"), environ=environ)

    return read


@pytest.fixture
def refused(read: Load) -> Callable[..., list[ConfigProblem]]:
    def refused(*args: Any, **environ: str) -> list[ConfigProblem]:
        with pytest.raises(ConfigError) as caught:
            read(*args, **environ)
        return caught.value.problems

    return refused
