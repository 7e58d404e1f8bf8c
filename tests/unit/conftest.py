"""Fixtures of the unit tests of several packages."""

from __future__ import annotations

import pytest

from tests.support.tls import Authority


@pytest.fixture(scope="session")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ours"), "our authority")


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("others"), "another authority")
