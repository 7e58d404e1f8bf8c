"""docs/getting-started.md, cookbook.md and never-cache.md: every snippet is run, against real upstreams."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import free_port
from tests.support.snippets import Reader, Section, sections, steps

DOCS = Path(__file__).parents[2] / "docs"
COOKBOOK, *TASKS = sections(DOCS / "cookbook.md")
NEVER_CACHE, *NEVER = sections(DOCS / "never-cache.md")
START, *STEPS = sections(DOCS / "getting-started.md")
pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize("section", [*TASKS, *NEVER], ids=lambda section: section.title)
def test_a_section_has_commands_and_shows_what_they_print(section: Section) -> None:
    consoles = [steps(block.text) for block in section.blocks if block.language == "console"]
    assert consoles
    assert any(step.output for console in consoles for step in console)


def test_there_are_twenty_one_tasks() -> None:
    assert [task.title.partition(".")[0] for task in TASKS] == [str(number) for number in range(1, 22)]


@pytest.fixture(scope="module")
def upstreams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """The demo shop and httpbin, as the pages start them: their ports by those of the pages."""
    ports = {"9100": free_port(), "9200": free_port()}
    with Reader(tmp_path_factory.mktemp("upstreams"), ports) as reader:
        for introduction in (COOKBOOK, NEVER_CACHE, START):
            reader.run(introduction)
        yield ports


@pytest.fixture
def reader(tmp_path: Path, upstreams: dict[str, int]) -> Iterator[Reader]:
    public, admin = free_port(), free_port()
    environment = {"GATEWAY_PORT": str(public), "GATEWAY_ADMIN_LISTEN": f"127.0.0.1:{admin}"}
    with Reader(tmp_path, {"8000": public, "9000": admin, **upstreams}, environment) as found:
        yield found


@pytest.mark.parametrize("section", TASKS, ids=lambda section: section.title)
def test_a_task_of_the_cookbook_does_what_it_says(section: Section, reader: Reader) -> None:
    reader.run(section)


@pytest.mark.parametrize("section", NEVER, ids=lambda section: section.title)
def test_a_way_to_cache_never_does_what_it_says(section: Section, reader: Reader) -> None:
    reader.run(section)


def test_the_first_steps_lead_to_a_screen_of_two_upstreams(reader: Reader) -> None:
    """One reader takes all of them, one after the other."""
    for step in STEPS:
        reader.run(step)
