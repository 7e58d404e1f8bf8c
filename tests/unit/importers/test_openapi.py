"""Routes from an OpenAPI document: what gets a ttl, what is forwarded, what is left out, and why."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.importers.draft import Draft, ImportFailed
from gateway.importers.openapi import add_document, parse_document

SERVED = "http://api.test/openapi.json"


def drafted(
    document: dict[str, Any], source: str = SERVED, upstream: str | None = None, *, prefixed: bool = False
) -> Draft:
    draft = Draft()
    add_document(draft, {"openapi": "3.1.0", **document}, source, upstream, prefixed=prefixed)
    return draft


def settings(item: dict[str, Any], path: str = "/pets/{petId}", **document: Any) -> dict[str, object]:
    [route] = drafted({"paths": {path: item}, **document}).routes
    return route.settings


def test_a_get_that_anyone_may_make_gets_a_ttl_and_the_query_that_is_documented() -> None:
    read = {
        "operationId": "getPet",
        "summary": "One\npet.",
        "parameters": [{"in": "query", "name": "fields"}, {"in": "header", "name": "X-Tenant"}, {"$ref": "#/x/page"}],
    }
    document = {"paths": {"/pets/{petId}": {"get": read}}, "x": {"page": {"in": "query", "name": "page"}}}
    [route] = drafted(document).routes
    assert (route.name, route.why) == ("get_pet", "One pet.")
    assert route.settings == {
        "path": "/pets/{petId}",
        "upstream": "api",
        "methods": ["GET"],
        "ttl": "30s",
        "stale_while_revalidate": "60s",
        "stale_if_error": "10m",
        "query": ["fields", "page"],
        "vary": ["accept", "accept-language", "x-tenant"],
        "tags": ["pets:{petId}"],
    }


@pytest.mark.parametrize(
    ("of_operation", "of_document", "ttl"),
    [
        ({}, {}, "30s"),
        ({}, {"security": [{"key": []}]}, "origin"),
        ({"security": [{"key": []}]}, {}, "origin"),
        ({"security": []}, {"security": [{"key": []}]}, "30s"),
        ({"security": [{}, {"key": []}]}, {}, "30s"),
    ],
)
def test_a_get_with_credentials_follows_the_api(of_operation: Any, of_document: Any, ttl: str) -> None:
    assert settings({"get": of_operation}, **of_document)["ttl"] == ttl


def test_what_only_writes_or_streams_is_not_cached() -> None:
    stream = {"responses": {"200": {"content": {"text/event-stream": {}}}}}
    assert settings({"post": {}, "delete": {}})["methods"] == ["POST", "DELETE"]
    assert settings({"post": {}})["cache"] is settings({"get": stream})["cache"] is False
    assert settings({"get": {}, "post": {}})["methods"] == ["GET", "POST"]


@pytest.mark.parametrize(
    ("document", "url"),
    [
        ({"servers": [{"url": "https://pets.test/v3"}]}, "https://pets.test/v3"),
        ({"servers": [{"url": "/v3"}]}, "http://api.test/v3"),
        ({"servers": [{"url": "https://{at}.test", "variables": {"at": {"default": "eu"}}}]}, "https://eu.test"),
        ({}, "http://api.test"),
        ({"swagger": "2.0", "host": "old.test", "basePath": "/v1", "schemes": ["http"]}, "http://old.test/v1"),
        ({"swagger": "2.0", "host": "old.test", "schemes": ["wss", "http"]}, "http://old.test"),
    ],
)
def test_the_api_is_where_the_document_says_or_where_it_came_from(document: dict[str, Any], url: str) -> None:
    assert drafted({"paths": {"/x": {"get": {}}}, **document}).upstreams[0].url == url


def test_a_given_address_has_precedence_and_a_file_without_servers_needs_one() -> None:
    document = {"paths": {"/x": {"get": {}}}, "info": {"title": "Pet Store API"}}
    assert drafted(document).upstreams[0].name == "pet_store"
    given = drafted(document, "pets.json", "pets=http://localhost:1").upstreams[0]
    assert (given.name, given.url) == ("pets", "http://localhost:1")
    with pytest.raises(ImportFailed, match=r"gateway init URL --openapi pets\.json"):
        drafted(document, "pets.json")


def test_paths_that_can_be_no_route_are_left_out_with_the_reason() -> None:
    paths = {
        "/healthz": {"get": {}},
        "/a/{x}": {"get": {}},
        "/a/{y}": {"get": {}},
        "/trace": {"trace": {}},
        "/a/{pet-id}/{2}": {"get": {}},
    }
    draft = drafted({"paths": paths})
    assert [note.partition(":")[0] for note in draft.notes] == ["/healthz", "/a/{y}", "/trace"]
    assert [route.settings["path"] for route in draft.routes] == ["/a/{x}", "/a/{pet_id}/{p2}"]


def test_several_documents_have_their_upstreams_name_before_each_path() -> None:
    [route] = drafted({"paths": {"/x/{a}": {"get": {}}}, "info": {"title": "Pet store"}}, prefixed=True).routes
    assert (route.settings["path"], route.settings["upstream_path"]) == ("/pet-store/x/{a}", "/x/{a}")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "neither JSON nor YAML"),
        ("[]", "it has no `paths`"),
        (json.dumps({"paths": {}}), "neither `openapi` nor `swagger`"),
    ],
)
def test_what_is_no_document_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ImportFailed, match=reason):
        parse_document(text, "x.json")


def test_references_to_themselves_and_to_other_documents_are_refused() -> None:
    with pytest.raises(ImportFailed, match="leads to itself"):
        settings({"get": {"parameters": [{"$ref": "#/x"}]}}, x={"$ref": "#/x"})
    with pytest.raises(ImportFailed, match="another document"):
        settings({"get": {"parameters": [{"$ref": "other.yaml#/x"}]}})


def test_a_reference_leads_into_lists_and_its_path_may_be_encoded_as_bundlers_do() -> None:
    documented = {"get": {"parameters": [{"name": "page", "in": "query"}]}}
    paths = {
        "/pets/{id}": documented,
        "/cats": {"get": {"parameters": [{"$ref": "#/paths/~1pets~1%7Bid%7D/get/parameters/0"}]}},
    }
    assert [route.settings["query"] for route in drafted({"paths": paths}).routes] == [["page"], ["page"]]


def test_a_reference_that_leads_to_nothing_is_refused() -> None:
    for pointer in ("#/components/parameters/Page", "#/servers/1", "#/servers/x"):
        with pytest.raises(ImportFailed, match="leads to nothing"):
            settings({"get": {"parameters": [{"$ref": pointer}]}}, servers=[{"url": "/v1"}])


def test_json_is_read_with_the_escapes_that_yaml_does_not_have() -> None:
    text = json.dumps({"openapi": "3.0.0", "paths": {}, "info": {"title": "\U0001f600"}})
    assert "\\ud83d" in text
    assert parse_document(text, "x.json")["info"]["title"] == "\U0001f600"


WRONG = ("text", 1, ["text"], [None], {"get": "text"}, {"a": ["text"]}, None)


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_what_has_another_type_than_openapi_says_counts_as_missing(wrong: Any) -> None:
    for name in ("summary", "operationId", "parameters", "responses"):
        settings({"get": {name: wrong}})
    drafted({"paths": {"/x": {"get": {}}, "/y": wrong}, "info": wrong, "servers": wrong})
    drafted({"paths": {"/x": {"get": {"produces": wrong}}}, "servers": [{"url": wrong, "variables": wrong}]})
    drafted({"paths": {"/x": {"get": {}}}, "swagger": "2.0", "schemes": wrong})


@pytest.mark.parametrize("security", ["key", ["key"], {"key": []}, [{}, "key"]], ids=str)
def test_credentials_of_an_unknown_form_are_credentials(security: Any) -> None:
    assert settings({"get": {"security": security}})["ttl"] == "origin"
