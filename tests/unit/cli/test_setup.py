"""`gateway init`, `schema` and `openapi`: the files that they write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from typer.testing import CliRunner, Result

from gateway.cli.commands import app


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GATEWAY_CONFIG", raising=False)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def openapi(folder: Path, paths: dict[str, Any], name: str = "api.json", **more: Any) -> str:
    text = json.dumps({"openapi": "3.0.3", "servers": [{"url": "http://api.test"}], "paths": paths, **more})
    (folder / name).write_text(text)
    return name


def test_init_writes_a_configuration_that_check_and_an_editor_accept(folder: Path) -> None:
    result = run("init", "http://localhost:3000")
    assert result.exit_code == 0, result.output
    assert "1 route of 1 upstream" in result.output
    assert "The configuration is valid: 1 route, 1 upstream." in run("check").output
    first = (folder / "gateway.yaml").read_text().splitlines()[0]
    schema = json.loads((folder / first.partition("$schema=")[2]).read_text())
    assert jsonschema_rs.validator_for(schema).is_valid(yaml.safe_load((folder / "gateway.yaml").read_text()))
    assert (folder / ".env.example").exists()


def test_init_replaces_nothing_unless_it_is_forced(folder: Path) -> None:
    (folder / "gateway.yaml").write_text("mine")
    (folder / ".env.example").write_text("mine too")
    refused = run("init", "http://localhost:3000")
    assert refused.exit_code == 2
    assert (folder / "gateway.yaml").read_text() == "mine"
    assert run("init", "http://localhost:3000", "-o", "config/other.yaml").exit_code == 0
    assert (folder / "config/other.yaml").exists()
    assert (folder / "config/.env.example").exists()
    assert run("init", "http://localhost:3000", "--force").exit_code == 0
    assert "upstreams" in (folder / "gateway.yaml").read_text()
    assert "mine" not in (folder / ".env.example").read_text()


def test_init_needs_an_api(folder: Path) -> None:
    assert run("init").exit_code == 2
    assert list(folder.iterdir()) == []


def test_init_makes_routes_of_documents(folder: Path) -> None:
    pets = openapi(folder, {"/pets": {"get": {}}, "/orders": {"post": {}}})
    assert run("init", "--openapi", pets).exit_code == 0
    assert [line.split()[1] for line in run("routes").output.splitlines()[1:]] == ["/pets", "/orders"]
    more = openapi(folder, {"/pets": {"get": {}}}, "more.json", info={"title": "More"})
    assert run("init", "http://localhost:1", "--openapi", pets, "--openapi", more, "--force").exit_code == 0
    lines = run("routes").output.splitlines()[1:]
    assert sorted(line.split()[1] for line in lines) == ["/api/orders", "/api/pets", "/more/pets"]


def test_init_leaves_out_a_path_that_no_route_can_have(folder: Path) -> None:
    document = openapi(folder, {"/good": {"get": {}}, "/bad/../x": {"get": {}}})
    result = run("init", "--openapi", document)
    assert result.exit_code == 0, result.output
    assert "left out: /bad/../x must not have dot segments" in result.output.replace("\n", " ")
    assert "/bad/../x" in (folder / "gateway.yaml").read_text()
    assert list(yaml.safe_load((folder / "gateway.yaml").read_text())["routes"]) == ["good"]


def test_init_names_what_it_left_out_and_no_file_that_is_gone(folder: Path) -> None:
    documented = {"get": {"parameters": [{"name": "*", "in": "query"}]}}
    document = openapi(folder, {"/x": documented, "/": {"get": {}}})
    assert "left out: /x: '*' is a mode" in run("init", "--openapi", document).output
    error = run("init", "http://user:password@api.test", "--force").exception
    assert str(error).startswith("upstreams.test.url: ")


@pytest.mark.parametrize("source", ["missing.json", "http://127.0.0.1:1/openapi.json"])
def test_init_says_why_a_document_can_not_be_read(folder: Path, source: str) -> None:
    error = run("init", "--openapi", source).exception
    assert "can't be" in str(error)
    assert list(folder.iterdir()) == []


def test_the_configuration_is_found_by_a_variable_then_in_the_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path, port in (("config/gateway.yaml", 3), ("gateway.yaml", 2), ("other.yaml", 1)):
        assert run("init", f"http://localhost:{port}", "-o", path).exit_code == 0
    shown = lambda: run("check", "--changed").output  # noqa: E731
    assert "http://localhost:2" in shown()
    (folder / ".env").write_text("GATEWAY_CONFIG=other.yaml\n")
    assert "http://localhost:1" in shown()
    monkeypatch.setenv("GATEWAY_CONFIG", "config/gateway.yaml")
    assert "http://localhost:3" in shown()
    assert "http://localhost:2" in run("check", "--changed", "-c", "gateway.yaml").output


def test_schema_and_openapi_print_json_or_write_it(folder: Path) -> None:
    assert json.loads(run("schema").output)["title"] == "gateway.yaml"
    assert run("schema", "-o", "schema.json").output == ""
    assert json.loads((folder / "schema.json").read_text())["title"] == "gateway.yaml"
    run("init", "--openapi", openapi(folder, {"/pets/{id}": {"get": {"summary": "A pet."}}}))
    assert list(json.loads(run("openapi").output)["paths"]) == ["/pets/{id}"]
