"""What is installed: what is imported and no more, floors in pyproject.toml, exact versions in constraints.txt, and no
address of any registry."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PIN = re.compile(r"[a-z0-9-]+==[A-Za-z0-9.+]+( ; [^#]+)?")
PYTHONS = ("3.11.9", "3.12.9", "3.13.9", "3.14.2")
# Older versions have known holes: a Host that changes the URL a request is judged by; framing.
SAFE = {"starlette": "1.0.1", "h11": "0.16"}
# Declared and not imported by name.
NOT_IMPORTED = {
    "fastapi-offline": "its files are served as OpenAPI pages (`app/openapi.py`)",
    "h11": "uvicorn's; older versions have a known hole in framing",
    "jinja2": "fastapi-cache2 imports starlette.templating without declaring it",
    "websockets": "uvicorn's, for WebSockets of clients; before 17 the protocol on it fails our tests",
}


def lines() -> list[str]:
    return [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]


def pins(python: str) -> dict[str, Version]:
    """The versions that a Python on Linux gets."""
    environment = {
        "python_full_version": python,
        "python_version": python.rpartition(".")[0],
        "sys_platform": "linux",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
    }
    found = [Requirement(line) for line in lines()]
    return {
        canonicalize_name(each.name): Version(next(iter(each.specifier)).version)
        for each in found
        if each.marker is None or each.marker.evaluate(environment)
    }


def asked_for() -> Iterator[Requirement]:
    for text in (*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["dev"]):
        yield Requirement(text)


def test_the_constraints_are_exact_versions_and_nothing_else() -> None:
    assert len(lines()) > 50
    assert [line for line in lines() if not PIN.fullmatch(line)] == []


@pytest.mark.parametrize("python", PYTHONS)
def test_every_package_that_is_asked_for_has_a_version_within_its_bounds(python: str) -> None:
    known = pins(python)
    wrong = [
        str(each)
        for each in asked_for()
        if each.marker is None or each.marker.evaluate({"python_version": python.rpartition(".")[0]})
        if not each.specifier.contains(known.get(canonicalize_name(each.name), "0"))
    ]
    assert wrong == [], "run `make constraints`"


@pytest.mark.parametrize("name", SAFE)
def test_no_version_with_a_known_hole_is_allowed(name: str) -> None:
    floors = [each.specifier for each in asked_for() if each.name == name]
    assert floors
    assert all(not each.contains(old) for each in floors for old in ("0.1", f"{SAFE[name]}.dev0"))


def test_no_file_says_where_packages_are_downloaded_from() -> None:
    files = [*ROOT.glob("*lock*"), *ROOT.glob("**/package-lock.json")]
    ours = [path for path in files if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)]
    names = [path for path in ours if "node_modules" not in path.parts]
    assert [path.name for path in names if "http" in path.read_text() and path.suffix in (".json", ".lock")] == []


# --- what is imported is what is declared ------------------------------------------------------------------


def imported(folder: str) -> Iterator[str]:
    """The top-level names of all modules from outside that a folder's modules import, wherever they do."""
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.partition(".")[0]


def distributions(names: Iterator[str]) -> Iterator[set[str]]:
    """For each name from outside the standard library and this repository, the distributions that have it."""
    known = packages_distributions()
    for name in set(names) - sys.stdlib_module_names - {"gateway", "compression"}:
        yield {canonicalize_name(each) for each in known.get(name, [name])}


def declared() -> set[str]:
    optional = [text for extra in PROJECT["project"]["optional-dependencies"].values() for text in extra]
    return {canonicalize_name(Requirement(text).name) for text in (*PROJECT["project"]["dependencies"], *optional)}


def test_every_package_that_is_imported_is_declared() -> None:
    found = list(distributions(imported("gateway")))
    assert [each for each in found if not each & declared()] == []


def test_every_package_that_is_declared_is_imported_or_has_a_reason() -> None:
    used = set().union(*distributions(imported("gateway")))
    assert declared() - used - set(NOT_IMPORTED) == set()


def test_a_reason_is_given_for_what_is_declared_alone() -> None:
    assert set(NOT_IMPORTED) - declared() == set()


def test_every_dependency_has_a_floor() -> None:
    floors = [Requirement(text) for text in PROJECT["project"]["dependencies"]]
    assert [str(each) for each in floors if not any(one.operator == ">=" for one in each.specifier)] == []
