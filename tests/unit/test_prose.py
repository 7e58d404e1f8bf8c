"""Messages, docstrings and pages of the documentation use the terms of the glossary, in plain English."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PHRASES = (
    *("told", "hears?", "heard", "whoever", "somebody", "who asks", "goes not", "all the same", "in vain"),
    *("(?:go|goes|pass|passes|passed) by the cache", "the door", "not to be had", "seen this evening"),
)
"""Words that let code speak and hear, or stand for a term that the glossary has. What to write instead: reports, reads,
any client, the client, can't be combined, still, bypasses the cache, the edge."""
FORBIDDEN = re.compile(rf"\b(?:{'|'.join(PHRASES)})\b", re.IGNORECASE)
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/deploying").glob("*.md")),
    *(ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md")),
]
NAMES = re.compile(r"`[^`\n]*`")
"""Code in a text, which may have such a name."""


def texts(source: str) -> Iterator[tuple[int, str]]:
    """The docstrings, messages and comments of a module, without the expressions in f-strings."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def found(place: str, text: str) -> list[str]:
    return [f"{place}: {match[0]!r} in {text[:120]!r}" for match in FORBIDDEN.finditer(NAMES.sub("", text))]


@pytest.mark.parametrize("package", sorted(path.name for path in (ROOT / "gateway").iterdir() if path.name[0] != "_"))
def test_the_code_says_it_plainly(package: str) -> None:
    path = ROOT / "gateway" / package
    for module in [path] if path.suffix == ".py" else sorted(path.rglob("*.py")):
        problems = [each for line, text in texts(module.read_text()) for each in found(f"{module}:{line}", text)]
        assert not problems, "\n".join(problems)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_says_it_plainly(page: Path) -> None:
    lines = enumerate(page.read_text().splitlines(), 1)
    problems = [each for line, text in lines for each in found(f"{page.name}:{line}", text)]
    assert not problems, "\n".join(problems)


def test_the_words_are_found_in_docstrings_messages_and_comments() -> None:
    source = '''"""What it is told."""\nname = f"the client is {told} and heard"  # whoever asks\n'''
    problems = [each for line, text in texts(source) for each in found(str(line), text)]
    assert [re.findall("'([^']*)' in", each)[0] for each in problems] == ["told", "heard", "whoever"]
