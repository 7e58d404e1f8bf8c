"""The documentation: a setting, command, header, metric or field of the log that it does not name fails here."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from pydantic import BaseModel

from docs.generate_reference import PAGES, commands
from gateway.admin.app import create_admin
from gateway.app.gateway import create_app
from gateway.config.environment import OTHER_VARIABLES
from gateway.config.json_schema import meanings
from gateway.config.models import Config
from gateway.context import Result
from gateway.observability.access_log import fields_of

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PACKAGE = sorted(path for path in (ROOT / "gateway").rglob("*.py") if path.parent.name != "demo")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")


def text(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def all_text() -> str:
    pages = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md"]
    return "\n".join(page.read_text(encoding="utf-8") for page in pages)


@pytest.mark.parametrize("name", PAGES)
def test_a_reference_page_is_what_the_code_would_make_of_it(name: str) -> None:
    assert text(name) == PAGES[name](), "run `make docs`"


def models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for name, field in model.model_fields.items():
        for inner in re.findall(r"\b(\w+Config)\b", str(field.annotation)):
            found = getattr(
                next(
                    module
                    for name in ("models", "route", "part", "upstream", "identity")
                    if hasattr(module := import_module(f"gateway.config.{name}"), inner)
                ),
                inner,
            )
            assert found is not model, name
            yield from models(found)


def test_every_setting_is_named_and_explained() -> None:
    page = text("configuration.md")
    found = [(model, name) for model in models(Config) for name in model.model_fields]
    assert len(found) > 60
    said = {model: meanings(model) for model in {model for model, _ in found}}  # each is read from its source
    assert [name for _, name in found if f"| `{name}` |" not in page] == []
    assert [(model.__name__, name) for model, name in found if not said[model].get(name)] == []


def test_every_command_and_option_is_named_and_explained() -> None:
    page = text("commands.md")
    found = [(name, parameter) for name, command in commands() for parameter in command.params]
    options = [option for _, parameter in found for option in parameter.opts if option.startswith("-")]
    assert {"--config", "--all", "-H"} <= set(options)
    assert [option for option in options if f"`{option}`" not in page] == []
    assert [(name, parameter.name) for name, parameter in found if not getattr(parameter, "help", None)] == []


def test_every_variable_that_is_no_setting_is_named() -> None:
    assert [name for name in OTHER_VARIABLES if name not in text("configuration.md")] == []


async def test_every_metric_is_named() -> None:
    gateway = create_app(Config.model_validate({"redis_url": "none", "upstreams": {"shop": {"url": "http://shop"}}}))
    names = [family.name for family in gateway.metrics.registry.collect()]
    assert len(names) > 20
    page = text("operations.md")
    assert [name for name in names if not re.search(rf"`{name}(_total)?`", page)] == []


def test_every_outcome_is_named() -> None:
    assert [each.value for each in Result if f"`{each.value}`" not in text("operations.md")] == []


def test_every_field_of_the_access_log_is_named() -> None:
    source = ast.parse((ROOT / "gateway/observability/access_log.py").read_text())
    function = next(node for node in ast.walk(source) if getattr(node, "name", "") == fields_of.__name__)
    names = [
        key.value
        for node in ast.walk(function)
        if isinstance(node, ast.Dict)
        for key in node.keys
        if isinstance(key, ast.Constant)
    ]
    assert {"request_id", "outcome"} <= set(names)
    assert [name for name in names if f"| `{name}` |" not in text("operations.md")] == []


async def test_every_path_of_the_admin_listener_is_named() -> None:
    admin = create_admin(create_app({"redis_url": "none"}))
    paths = [getattr(route, "path", "") for route in admin.routes]
    assert [path for path in paths if f"{path}`" not in text("operations.md")] == []


def literals() -> Iterator[str]:
    """The texts and bytes that stand in the package's code, its docstrings left out."""
    for module in PACKAGE:
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
                yield node.value if isinstance(node.value, str) else node.value.decode("latin-1")


OURS = ("age", "cache-status", "server-timing", "retry-after", "vary", "etag")
EXTENSION = re.compile(r"x-(?!gzip$)[a-z][a-z\-]*[a-z]")  # x-gzip is a coding


def test_every_header_of_ours_is_named() -> None:
    found = {each for each in map(str.lower, literals()) if EXTENSION.fullmatch(each)} | set(OURS)
    assert {"x-request-id", "x-process-time"} <= found
    documented = all_text().lower()
    assert sorted(name for name in found if f"`{name}" not in documented) == []


def reasons() -> Iterator[str]:
    """The reasons for which the package refuses requests, as the metric names them."""
    for module in PACKAGE:
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "RequestRefused" and len(node.args) == 3:
                reason = node.args[2]
                if isinstance(reason, ast.Constant):
                    yield str(reason.value)


def test_every_reason_for_a_refusal_is_named() -> None:
    found = set(reasons())
    assert "slow_head" in found
    assert sorted(reason for reason in found if f"`{reason}`" not in all_text()) == []


@pytest.mark.parametrize("page", [*sorted(DOCS.rglob("*.md")), *sorted(ROOT.glob("*.md"))], ids=lambda path: path.name)
def test_no_link_between_the_pages_is_broken(page: Path) -> None:
    targets = [target for target in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []
