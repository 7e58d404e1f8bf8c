"""docs/identity.md: its snippets are run, with the demo's shop and issuer, and with fastapi-users."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.config.loader import load
from gateway.config.yaml_document import read_document
from gateway.identity.api_keys import keys_of
from tests.support.processes import free_port
from tests.support.snippets import Reader, Section, sections

SECTIONS = [each for each in sections(Path(__file__).parents[2] / "docs" / "identity.md") if each.blocks]
PORTS = ("8000", "9000", "9100", "9200", "9300")
pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    ports = {port: free_port() for port in PORTS}
    environment = {
        "GATEWAY_PORT": str(ports["8000"]),
        "GATEWAY_SHUTDOWN_DELAY": "0s",
        "GATEWAY_ADMIN_LISTEN": f"127.0.0.1:{ports['9000']}",
        "GATEWAY_ADMIN_URL": f"http://127.0.0.1:{ports['9000']}",
    }
    with Reader(tmp_path, ports, environment) as found:
        yield found


def title(section: Section) -> str:
    return section.title


@pytest.mark.parametrize("section", [each for each in SECTIONS if each.title != "Revocation"], ids=title)
def test_a_section_does_what_it_says(section: Section, reader: Reader, tmp_path: Path) -> None:
    reader.run(section)
    for goes_on in SECTIONS:
        if section is SECTIONS[0] and goes_on.title == "Revocation":
            reader.run(goes_on)
    assert load(tmp_path / "gateway.yaml").config.identity
    if (keys := tmp_path / "keys.yaml").exists():
        assert len(keys_of("partner", read_document(keys))) == 1


def test_the_sections_with_commands_are_there() -> None:
    assert [each.title for each in SECTIONS if any(block.language == "console" for block in each.blocks)] == [
        "A screen of one's own, in ten minutes",
        "API keys",
        "Revocation",
        "fastapi-users as the issuer",
    ]
