"""tests/support/snippets.py: a snippet that is wrong, or that nothing runs, is an error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.snippets import Block, Reader, Section, Step, blocks, sections, shows, steps


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    with Reader(tmp_path, {"8000": 4711}) as found:
        yield found


def section(text: str) -> Section:
    return Section("a task", text, list(blocks(text)))


def test_a_page_has_sections_with_their_blocks_and_lines(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```console\n$ a\n```\n\n## One\n\n```yaml\n# b.yaml\n```\n\n## Two\n")
    assert [(each.title, each.blocks) for each in sections(page)] == [
        ("", [Block("console", "$ a\n", 3)]),
        ("One", [Block("yaml", "# b.yaml\n", 9)]),
        ("Two", []),
    ]


def test_commands_go_on_after_a_backslash_and_have_their_output() -> None:
    assert steps("$ a \\\n    b\none\n\n$ c\n") == [Step("a \\\n    b", ["one", ""]), Step("c", [])]


@pytest.mark.parametrize(
    ("expected", "shown"),
    [
        (["a", "c"], True),
        (["c", "a"], False),
        (["A: 1"], False),
        (["B: …"], True),
        (["…2"], True),
        (["b: 3"], False),
        ([], True),
    ],
)
def test_lines_are_found_in_their_order(expected: list[str], shown: bool) -> None:
    assert shows("a\nb: 12\nc\n", expected) is shown


def test_files_are_written_with_the_ports_of_the_test_and_commands_see_them(reader: Reader, tmp_path: Path) -> None:
    reader.run(
        section(
            "```yaml\n# conf/a.yaml\nurl: http://127.0.0.1:8000\n```\n```console\n$ cat conf/a.yaml\nurl: http://127.0.0.1:8000\n```\n"
        )
    )
    assert (tmp_path / "conf/a.yaml").read_text().endswith(":4711\n")


def test_an_exported_variable_is_there_for_later_commands(reader: Reader) -> None:
    reader.run(section("```console\n$ export COLOUR=red\n$ echo $COLOUR\nred\n```\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```yaml\nroutes: {}\n```\n", "a block of yaml names no file"),
        ("```\nplain\n```\n", "a block of no language names no file"),
        ("```console\nprinted\n```\n", "output without a command"),
        ("```console\n$ echo curl\nwget\n```\n", r"prints\ncurl\n\nand the page has\nwget"),
        ("```console\n$ : curl; false\n```\n", "line 1"),
    ],
)
def test_a_snippet_that_is_wrong_or_not_run_is_an_error(reader: Reader, text: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        reader.run(section(text))
