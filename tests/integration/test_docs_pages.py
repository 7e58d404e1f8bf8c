"""The documentation pages: everything they need comes from the gateway, and they show the declared routes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest

from tests.support.processes import GatewayProcess

ANY_HOST = re.compile(r"""(?:https?:|["'(=]\s*)//[^\s"')]+""", re.IGNORECASE)
ASSET = re.compile(r"""(?:src|href)\s*=\s*["']([^"']+)["']""", re.IGNORECASE)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    settings = {
        "upstreams": {"api": {"url": "http://127.0.0.1:9"}},
        "routes": {
            "product": {
                "path": "/shops/{shop}/products/{id}",
                "upstream": "api",
                "ttl": "90s",
                "query": ["fields", "page"],
                "summary": "A product",
                "description": "One of a shop's *products*.",
                "tags": ["product:{id}"],
                "examples": {"shop": "berlin", "id": 7, "fields": "name,price"},
            },
            "rest": {"path": "/api/{path:path}", "upstream": "api"},
        },
        "include": ["tests.support.shop_routes:router"],
    }
    settings["upstreams"]["api"] = {"url": "http://127.0.0.1:9"}
    process = GatewayProcess(tmp_path_factory.mktemp("docs"), settings)
    yield process
    process.end()


@pytest.fixture(scope="module")
def openapi(gateway: GatewayProcess) -> dict[str, Any]:
    answer = httpx.get(f"{gateway.url}/openapi.json")
    assert answer.status_code == 200
    document: dict[str, Any] = answer.json()
    return document


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_a_page_names_no_other_host(gateway: GatewayProcess, page: str) -> None:
    answer = httpx.get(gateway.url + page)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert ANY_HOST.findall(answer.text) == []


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_all_that_a_page_loads_comes_from_the_gateway(gateway: GatewayProcess, page: str) -> None:
    text = httpx.get(gateway.url + page).text
    assets = [*ASSET.findall(text), *re.findall(r"""(?:spec-url=|url:\s*)["']([^"']+)["']""", text)]
    assert any(asset.endswith(".js") for asset in assets)
    assert "/openapi.json" in assets
    for asset in assets:
        url = urljoin(gateway.url + page, asset)
        assert url.startswith(gateway.url + "/")
        answer = httpx.get(url)
        assert answer.status_code == 200, asset
        assert len(answer.content) > 100
        expected = {".js": "javascript", ".css": "text/css", ".png": "image/png", ".json": "application/json"}
        assert expected[re.sub(r".*(?=\.)", "", asset)] in answer.headers["content-type"]


def test_a_style_loads_nothing_from_another_host(gateway: GatewayProcess) -> None:
    text = httpx.get(gateway.url + "/docs").text
    styles = [asset for asset in ASSET.findall(text) if asset.endswith(".css")]
    assert styles
    for style in styles:
        css = httpx.get(urljoin(gateway.url, style)).text
        assert re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", css) == []


def test_openapi_shows_a_declared_route_with_its_parameters_and_examples(openapi: dict[str, Any]) -> None:
    operation = openapi["paths"]["/shops/{shop}/products/{id}"]["get"]
    assert operation["operationId"] == "product"
    assert operation["summary"] == "A product"
    assert operation["description"] == "One of a shop's *products*."
    assert operation["parameters"] == [
        {"name": "shop", "in": "path", "required": True, "schema": {"type": "string"}, "example": "berlin"},
        {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}, "example": 7},
        {"name": "fields", "in": "query", "required": False, "schema": {"type": "string"}, "example": "name,price"},
        {"name": "page", "in": "query", "required": False, "schema": {"type": "string"}},
    ]
    assert {"200", "304", "502", "504"} <= set(operation["responses"])


def test_openapi_shows_a_catch_all_with_its_parameter(openapi: dict[str, Any]) -> None:
    (path,) = [path for path in openapi["paths"] if path.startswith("/api/")]
    (parameter,) = openapi["paths"][path]["get"]["parameters"]
    assert path == "/api/{path}"
    assert (parameter["name"], parameter["in"], parameter["required"]) == ("path", "path", True)


def test_openapi_shows_a_cached_handler_with_its_model(openapi: dict[str, Any]) -> None:
    operation = openapi["paths"]["/products/{id}/summary"]["get"]
    content = operation["responses"]["200"]["content"]["application/json"]
    assert content["schema"] == {"$ref": "#/components/schemas/Summary"}
    assert openapi["components"]["schemas"]["Summary"]["properties"].keys() == {"id", "name", "secret"}
    assert [parameter["name"] for parameter in operation["parameters"]] == ["id"]


def test_openapi_is_whole(openapi: dict[str, Any]) -> None:
    """Every parameter of a path is declared, no operation id stands twice, every reference leads somewhere."""
    ids = []
    for path, methods in openapi["paths"].items():
        for operation in methods.values():
            ids.append(operation["operationId"])
            named = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"}
            assert named == set(re.findall(r"\{(\w+)\}", path)), path
    assert len(ids) == len(set(ids))
    for reference in re.findall(r"'\$ref': '#/components/schemas/(\w+)'", str(openapi)):
        assert reference in openapi["components"]["schemas"]
