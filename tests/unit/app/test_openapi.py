"""OpenAPI of declared routes, and where its pages are."""

from __future__ import annotations

import pytest

from gateway.testing import StubUpstream, running
from tests.support.gateways import THIRTY, gateway, json_answer


async def test_the_docs_give_way_to_a_declared_route_of_their_path(caplog: pytest.LogCaptureFixture) -> None:
    routes = {"mine": {"path": "/docs", "upstream": "api"}}
    async with running(gateway(StubUpstream(json_answer()), routes)) as client:
        assert (await client.get("/docs")).json() == {"n": 1}
    assert "the docs page is not served" in caplog.text


async def test_the_docs_can_be_off_or_elsewhere() -> None:
    async with running(gateway(StubUpstream(json_answer()), THIRTY, docs="off", redoc="off")) as client:
        for path in ("/docs", "/redoc", "/openapi.json"):
            assert (await client.get(path)).status_code == 404
    async with running(gateway(StubUpstream(json_answer()), THIRTY, docs="/api")) as client:
        assert "/_gateway/docs/swagger-ui-bundle.js" in (await client.get("/api")).text


async def test_declared_routes_are_in_openapi_with_parameters_and_examples() -> None:
    routes = {"item": {**THIRTY["item"], "query": ["page"], "summary": "One item", "examples": {"id": 7}}}
    async with running(gateway(StubUpstream(json_answer()), routes)) as client:
        operation = (await client.get("/openapi.json")).json()["paths"]["/items/{id}"]["get"]
    assert operation["summary"] == "One item"
    assert [(p["name"], p["in"], p.get("example")) for p in operation["parameters"]] == [
        ("id", "path", 7),
        ("page", "query", None),
    ]


async def test_reads_with_content_are_described_with_their_types() -> None:
    search = {"path": "/search", "upstream": "api", "methods": ["GET", "QUERY", "POST"], "reads": ["POST"]}
    routes = {"search": {**search, "body": {"types": ["application/json", "text/*"]}}}
    async with running(gateway(StubUpstream(json_answer()), routes)) as client:
        operations = (await client.get("/openapi.json")).json()["paths"]["/search"]
    body = {"required": True, "content": {"application/json": {}, "text/*": {}}}
    assert set(operations) == {"get", "post"}
    assert operations["post"]["requestBody"] == body
    assert {"200", "304", "502"} <= set(operations["post"]["responses"])
    assert operations["get"]["x-gateway"]["query"] == {"requestBody": body}
    assert "query" not in operations["post"]["x-gateway"]
