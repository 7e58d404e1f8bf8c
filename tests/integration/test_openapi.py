"""Requests that Schemathesis makes of our own OpenAPI, right ones and wrong ones: nothing is a failure of ours, and
every answer is one that the description names. For the admin listener, which has no OpenAPI, its orders' types are the
schema.

`--scale` sets how many are made of each operation, of each kind.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import msgspec
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gateway.admin.app import ExplainOrder, PurgeOrder
from gateway.admin.console import OverrideOrder
from tests.support.processes import StartGateway, free_port
from tests.support.scale import size

TOKEN = "a token for the test"
EXAMPLES = size("openapi_requests")
QUIET = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def tried(schema: Any, check: Callable[[Any], None]) -> int:
    """How many requests were made of a schema's operations, each given to `check`."""
    made = 0
    for found in schema.get_all_operations():
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            strategy = found.ok().as_strategy(generation_mode=mode)

            @QUIET
            @given(case=strategy)
            def one(case: Any) -> None:
                nonlocal made
                made += 1
                check(case)

            # Of an operation whose every input is a string nothing wrong can be made.
            with contextlib.suppress(*((Unsatisfiable,) if mode is GenerationMode.NEGATIVE else ())):
                one()
    return made


def test_every_answer_to_what_openapi_allows_and_forbids_is_one_that_it_names(
    start_gateway: StartGateway, origin: str
) -> None:
    gateway = start_gateway(
        {
            "access_log": False,
            "upstreams": {"api": {"url": origin}},
            "routes": {
                "item": {"path": "/items/{id}", "upstream": "api", "ttl": "60s", "query": ["fields", "page"]},
                "found": {"path": "/find/{kind}/{name}", "upstream": "api"},
                "home": {
                    "path": "/home/{user}",
                    "parts": {
                        "profile": {"upstream": "api", "path": "/users/{user}", "ttl": "5m"},
                        "offers": {"upstream": "api", "path": "/offers", "ttl": "5m", "optional": True},
                    },
                },
            },
        }
    )

    def check(case: Any) -> None:
        case.call_and_validate(
            base_url=gateway.url,
            checks=[
                not_a_server_error,
                status_code_conformance,
                content_type_conformance,
                response_schema_conformance,
            ],
        )

    made = tried(schemathesis.openapi.from_url(gateway.url + "/openapi.json"), check)
    assert made >= 3 * EXAMPLES
    assert gateway.errors.count("Traceback") == 0


def test_whatever_order_comes_to_the_admin_listener_it_is_done_or_refused_with_a_reason(
    start_gateway: StartGateway, origin: str
) -> None:
    port = free_port()
    gateway = start_gateway(
        {
            "access_log": False,
            "admin_listen": f"127.0.0.1:{port}",
            "upstreams": {"api": {"url": origin}},
            "routes": {"item": {"path": "/items/{id}", "upstream": "api", "ttl": "60s", "tags": ["items"]}},
        },
        environment={"GATEWAY_ADMIN_TOKEN": TOKEN},
    )

    def check(case: Any) -> None:
        headers = {"authorization": f"Bearer {TOKEN}"}
        answer = case.call(base_url=f"http://127.0.0.1:{port}", headers=headers)
        assert answer.status_code < 500, (case, answer.text)
        if answer.status_code >= 400 and answer.status_code != 405:
            kind = answer.headers["content-type"][0].partition(";")[0]
            assert kind in ("application/problem+json", "text/plain"), (case, answer.headers)

    made = tried(schemathesis.openapi.from_dict(admin_description()), check)
    assert made >= 5 * EXAMPLES
    assert gateway.errors.count("Traceback") == 0


def admin_description() -> dict[str, Any]:
    orders = {"/purge": PurgeOrder, "/explain": ExplainOrder, "/overrides": OverrideOrder}
    (schemas, components) = msgspec.json.schema_components(orders.values(), ref_template="#/components/schemas/{name}")
    answers = {"200": {"description": "done"}}
    paths: dict[str, Any] = {
        path: {"post": {"requestBody": {"content": {"application/json": {"schema": schema}}}, "responses": answers}}
        for path, schema in zip(orders, schemas, strict=True)
    }
    names = [
        {"name": each, "in": "path", "required": True, "schema": {"type": "string"}} for each in ("route", "setting")
    ]
    paths["/overrides/{route}/{setting}"] = {"delete": {"parameters": names, "responses": answers}}
    for path in ("/overrides", "/routes", "/audit", "/advice", "/metrics", "/readyz"):
        paths.setdefault(path, {})["get"] = {"responses": answers}
    info = {"title": "the admin listener", "version": "1"}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": components}}
