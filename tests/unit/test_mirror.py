"""The tests' files mirror those of the package, and share helpers by `tests/support/` alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.layers import MODULES

TESTS = Path(__file__).parents[1]
UNIT = TESTS / "unit"
WITHOUT = {
    "routing.fast_path": "a protocol and a record, without behaviour",
}
"""Modules without a file of tests of their own, and why."""
OF_NO_MODULE = {
    "benchmarks": "the benchmarks' rows and peers",
    "conformance": "the public suite of HTTP caches",
    "docs": "the documentation names all there is",
    "layers": "what a module may import and hold",
    "loadtests": "the load tests' users",
    "mirror": "this",
    "monitoring": "dashboards and alert rules",
    "mutants": "the lines that are broken to see tests fail",
    "order": "the order of tests",
    "packages": "dependencies",
    "prose": "the words of texts",
    "python_api": "the public names",
    "release": "the release script",
    "scale": "the sizes of tests",
    "snippets": "the runner of the snippets of documentation pages",
}
"""Files of tests of what is no module, in the top folder."""


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


def module_of(path: Path) -> str | None:
    """The module that a file of unit tests is about: that of its name, or of the beginning of it up to a `_`."""
    package = [*path.relative_to(UNIT).parts[:-1]]
    words = path.stem.removeprefix("test_").split("_")
    names = (".".join([*package, "_".join(words[:end])]) for end in range(len(words), 0, -1))
    return next((name for name in names if name in MODULES), None)


def own_file(module: str) -> Path:
    folder, _, name = module.replace(".", "/").rpartition("/")
    return UNIT / folder / f"test_{name}.py"


@pytest.mark.parametrize("module", [name for name in MODULES if not name.endswith("__init__")])
def test_a_module_has_a_file_of_tests_of_its_own_or_a_reason(module: str) -> None:
    assert own_file(module).is_file() != (module in WITHOUT)


def test_a_reason_is_of_a_module() -> None:
    assert set(WITHOUT) <= set(MODULES)


def test_a_file_of_unit_tests_is_of_a_module_or_has_a_reason() -> None:
    """`test_store_mutated.py` is a second file about the module `store`, beside `test_store.py`."""
    files = sorted(UNIT.rglob("test_*.py"))
    without = [path for path in files if module_of(path) is None]
    assert {str(path.relative_to(UNIT)) for path in without} == {f"test_{name}.py" for name in OF_NO_MODULE}
