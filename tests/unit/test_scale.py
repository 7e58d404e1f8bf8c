"""The sizes of tests: one table, one option, no environment variables."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.scale import FULL_TIMEOUT, SIZES, size

TESTS = Path(__file__).parents[1]
# What else tests take from the environment: what child processes inherit, and where pictures of the console go.
READERS = {"support/processes.py", "integration/test_console.py"}


def sources(*words: str) -> Iterator[tuple[str, ast.Module]]:
    """The files that have one of the words: to parse all of them takes seconds."""
    for path in sorted(TESTS.rglob("*.py")):
        text = path.read_text()
        if any(word in text for word in words):
            yield str(path.relative_to(TESTS)), ast.parse(text)


def named_sizes() -> Iterator[str]:
    """The arguments of all calls of `size`."""
    for _, tree in sources("size("):
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Name("size"), args=[ast.Constant(str(name))]):
                    yield name


def test_every_size_is_used_and_every_size_used_is_in_the_table() -> None:
    assert set(named_sizes()) == set(SIZES)


def test_a_size_is_that_of_the_scale_of_this_run(request: pytest.FixtureRequest) -> None:
    scale = request.config.getoption("--scale")
    assert [size(name) for name in SIZES] == [getattr(each, scale) for each in SIZES.values()]
    assert (request.config.option.timeout == FULL_TIMEOUT) == (scale == "full")


@pytest.mark.parametrize("name", SIZES)
def test_full_scale_tries_more(name: str) -> None:
    assert SIZES[name].full > SIZES[name].ci


def test_no_test_takes_its_size_from_the_environment() -> None:
    readers = {
        name
        for name, tree in sources("environ", "getenv")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute | ast.Name) and ast.unparse(node) in ("os.environ", "os.getenv")
    }
    assert readers == READERS
