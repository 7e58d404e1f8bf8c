"""docs/bodies.md: its snippets are run, against the demo shop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import free_port
from tests.support.snippets import Reader, Section, sections

INTRODUCTION, *SECTIONS = sections(Path(__file__).parents[2] / "docs" / "bodies.md")
RUN = [section for section in SECTIONS if section.blocks]
pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    public, admin, shop = free_port(), free_port(), free_port()
    environment = {"GATEWAY_PORT": str(public), "GATEWAY_ADMIN_LISTEN": f"127.0.0.1:{admin}"}
    with Reader(tmp_path, {"8000": public, "9000": admin, "9100": shop}, environment) as found:
        yield found


@pytest.mark.parametrize("section", RUN, ids=lambda section: section.title)
def test_a_section_does_what_it_says(section: Section, reader: Reader) -> None:
    reader.run(INTRODUCTION)
    reader.run(section)


def test_there_is_a_configuration_and_its_commands() -> None:
    assert [[block.language for block in section.blocks] for section in RUN] == [["yaml", "console"]]
