"""The tests' files mirror those of the package, and share helpers by `tests/support/` alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]


def imported_modules(path: Path) -> Iterator[str]:
    """All modules and names that a file imports, as dotted names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_collected(name: str) -> bool:
    """Whether a dotted name is that of a file which pytest collects, or of something in one."""
    return name.startswith("tests.") and any(
        part == "conftest" or (part.startswith("test_") and (TESTS.parent / path).with_suffix(".py").is_file())
        for part, path in ((part, "/".join(name.split(".")[: index + 1])) for index, part in enumerate(name.split(".")))
    )


def test_no_file_imports_a_test_module_or_a_conftest() -> None:
    """A file's tests change with what it tests; helpers that several need are in `tests/support/`."""
    found = [
        f"{path.relative_to(TESTS)}: {name}"
        for path in sorted(TESTS.rglob("*.py"))
        for name in imported_modules(path)
        if is_collected(name)
    ]
    assert found == []


def test_imports_of_collected_files_are_distinguished_from_others() -> None:
    assert is_collected("tests.unit.test_mirror.TESTS")
    assert is_collected("tests.integration.conftest.origin")
    assert not is_collected("tests.support.scale.size")
    assert not is_collected("gateway.testing.running")
