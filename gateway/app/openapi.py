"""The API documentation: declared routes in OpenAPI, and the pages that show it, served without any CDN."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.staticfiles import StaticFiles
from starlette.responses import HTMLResponse

from gateway.aggregates.aggregate import Aggregate
from gateway.app.openapi_security import refusals_of, security_of
from gateway.config.part import PartConfig
from gateway.config.route import RouteConfig
from gateway.config.types import show_duration
from gateway.errors import ConfigError, ConfigProblem
from gateway.identity.admission import Admission
from gateway.routing.declared import Declared, root_of

ASSETS = "/_gateway/docs"
OPENAPI = "/openapi.json"
PAGE_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}
# Both pages set styles; ReDoc searches in a worker made of a blob. What descriptions have in them must not run: of
# inline scripts only the one with the nonce of its response does.
_POLICY = (
    "default-src 'self'; script-src 'self' 'nonce-{nonce}'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def documented_methods(config: RouteConfig) -> list[str]:
    """The methods of a route that OpenAPI can describe, HEAD and OPTIONS left out unless nothing else passes; GET alone
    where any method passes."""
    named = [name for name in config.allowed or ("GET",) if name in _OF_OPENAPI]
    return [name for name in named if name not in ("HEAD", "OPTIONS")] or named


def openapi_operation(route: Declared, method: str = "GET") -> dict[str, Any]:
    """The OpenAPI description of a declared route besides its path: parameters and responses."""
    config = route.config
    parameters = [_parameter(name, "path", config.examples, required=True) for name in route.template.parameters] + [
        _parameter(name, "query", config.examples, required=False) for name in config.query or ()
    ]
    described: dict[str, Any] = {
        "upstream": route.upstream.name,
        "ttl": _ttl(config.ttl),
        "tags": config.tags,
        "methods": "any" if config.allowed is None else [*config.allowed],
    }
    secured, refusals = _secured(route.admission, limited=bool(config.rate_limits))
    content = _content_of(route)
    if route.is_content_read("QUERY") and method == documented_methods(config)[0]:
        # OpenAPI has no operation for QUERY before version 3.2.
        described["query"] = {"requestBody": content}
    read = {"parameters": parameters, **secured, "responses": _read_responses(refusals), "x-gateway": described}
    if route.is_content_read(method):
        return {**read, "requestBody": content}
    if method not in ("GET", "HEAD"):
        default = {"description": "The upstream's response. The cache isn't used.", "headers": _HEADERS}
        body: dict[str, Any] = {"requestBody": {"content": {"*/*": {}}}} if method in ("POST", "PUT", "PATCH") else {}
        return {
            "parameters": parameters,
            **body,
            **secured,
            "responses": {"default": default, **refusals},
            "x-gateway": described,
        }
    return read


def _secured(admission: Admission | None, *, limited: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a route asks of credentials, as a part of its operation; and the responses of all its refusals."""
    refusals = {**_REFUSALS, "429": _LIMITED} if limited else _REFUSALS
    if admission is None:
        return {}, refusals
    return {"security": security_of(admission)}, {**refusals, **refusals_of(_PROBLEM)}


def _content_of(route: Declared) -> dict[str, Any]:
    return {"required": True, "content": {kind: {} for kind in route.config.body.types}}


def _read_responses(refusals: dict[str, Any]) -> dict[str, Any]:
    return {
        "200": {"description": "The upstream's response, from the cache or fetched.", "headers": _HEADERS},
        "304": {"description": "The client's copy is still valid."},
        **refusals,
        "502": {"description": "The upstream failed, and no stale response is available.", "content": _PROBLEM},
        "504": {"description": "The upstream timed out.", "content": _PROBLEM},
    }


def aggregate_operation(aggregate: Aggregate) -> dict[str, Any]:
    """The OpenAPI description of an aggregate. Raises ConfigError if a part's schema can't be read."""
    config = aggregate.config
    query = [*sorted(aggregate.kit.plan.query), *(["parts"] if config.selectable else [])]
    parameters = [_parameter(name, "path", config.examples, required=True) for name in config.template.parameters]
    parameters += [_parameter(name, "query", config.examples, required=False) for name in query]
    secured, refusals = _secured(aggregate.admission, limited=bool(config.rate_limits))
    return {
        "parameters": parameters,
        **secured,
        "responses": {
            "200": {
                "description": "The joined responses of the parts. Gateway-Complete is ?0 if one of them failed.",
                "headers": _HEADERS | _PART_HEADERS,
                "content": {"application/json": {"schema": _joined_schema(aggregate)}},
            },
            "304": {"description": "The client's copy is still valid."},
            **refusals,
            "502": {"description": "A required part failed, and no stale copy is available.", "content": _PROBLEM},
            "504": {"description": "A required part timed out.", "content": _PROBLEM},
        },
        "x-gateway": {"parts": list(config.parts)},
    }


def _joined_schema(aggregate: Aggregate) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    required: list[str] = []
    if aggregate.sole is not None:
        return _part_schema(aggregate.name, aggregate.sole, aggregate.config.parts[aggregate.sole])
    for name, part in aggregate.config.parts.items():
        schema = _part_schema(aggregate.name, name, part)
        group = part.group_of(name)
        if part.shadow:
            continue
        if group is None:
            properties |= schema.get("properties", {})
            continue
        nullable = part.optional and not part.has_default
        properties[group] = {"anyOf": [schema, {"type": "null"}]} if nullable else schema
        if part.when is None and not part.is_static and not aggregate.config.selectable:
            required.append(group)
    if aggregate.config.envelope:
        properties["_meta"] = {"type": "object", "description": "The state of each part."}
    if aggregate.config.errors:
        properties["_errors"] = {"type": "object", "description": "Problem details of the parts that failed."}
    return {"type": "object", "properties": properties, "required": required}


def _part_schema(route: str, name: str, part: PartConfig) -> dict[str, Any]:
    if part.schema is None:
        return {"type": "array"} if part.for_each is not None else {}
    try:
        schema: dict[str, Any] = json.loads(Path(part.schema).read_text("utf-8"))
    except (OSError, ValueError) as error:
        message = f"{part.schema} can't be read as JSON Schema: {error}"
        raise ConfigError([ConfigProblem("", f"routes.{route}.parts.{name}.schema", message)]) from None
    return schema


_OF_OPENAPI = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_PART_HEADERS = {
    "Gateway-Parts": {"description": "The state of each part.", "schema": {"type": "string"}},
    "Gateway-Complete": {"description": "?1 if no part failed, else ?0.", "schema": {"type": "string"}},
}


def _ttl(ttl: Any) -> str:
    return ttl if isinstance(ttl, str) else show_duration(ttl)


_HEADERS = {
    "Cache-Status": {"description": "How the cache handled the request (RFC 9211).", "schema": {"type": "string"}},
    "Age": {"description": "Seconds since the response was fetched or validated.", "schema": {"type": "integer"}},
}
_PROPERTIES = {
    "type": {"type": "string"},
    "title": {"type": "string"},
    "status": {"type": "integer"},
    "detail": {"type": "string"},
    "request_id": {"type": "string"},
}
_PROBLEM: dict[str, Any] = {"application/problem+json": {"schema": {"type": "object", "properties": _PROPERTIES}}}

_REFUSALS = {
    "400": {"description": "The request target or a header field is ambiguous.", "content": _PROBLEM},
    "414": {"description": "The request target is too long.", "content": _PROBLEM},
    "431": {"description": "There are too many header fields, or they are too large.", "content": _PROBLEM},
    "503": {"description": "Overloaded; `Retry-After` says when to retry.", "content": _PROBLEM},
}


_LIMITED = {"description": "Too many requests; `Retry-After` says when to retry.", "content": _PROBLEM}


def show_validation_problems(schema: dict[str, Any]) -> None:
    """Specify in an OpenAPI document that a request which does not validate gets Problem Details, not FastAPI's
    body."""
    errors = {"type": "array", "items": {"type": "object"}}
    problem = _PROBLEM["application/problem+json"]["schema"]
    content = {"application/problem+json": {"schema": {**problem, "properties": {**_PROPERTIES, "errors": errors}}}}
    for path in schema.get("paths", {}).values():
        for operation in path.values():
            answer = operation.get("responses", {}).get("422") if isinstance(operation, dict) else None
            if answer is not None and "HTTPValidationError" in json.dumps(answer):
                answer["content"] = content


def _parameter(name: str, place: str, examples: dict[str, Any], *, required: bool) -> dict[str, Any]:
    described = {"name": name, "in": place, "required": required, "schema": {"type": "string"}}
    return {**described, "example": examples[name]} if name in examples else described


def add_pages(app: FastAPI, *, docs: str, redoc: str) -> None:
    """Serve Swagger UI at `docs` and ReDoc at `redoc` (`off` for none), with their scripts and styles."""
    static = str(files("fastapi_offline") / "static")
    app.mount(ASSETS, StaticFiles(directory=static), name="gateway-docs-assets")
    if docs != "off":
        app.add_api_route(docs, _swagger_page(app), include_in_schema=False, methods=["GET"])
    if redoc != "off":
        app.add_api_route(redoc, _redoc_page(app), include_in_schema=False, methods=["GET"])


def _swagger_page(app: FastAPI) -> Any:
    async def swagger(request: Request) -> HTMLResponse:
        root = root_of(request)
        page = get_swagger_ui_html(
            openapi_url=root + (app.openapi_url or OPENAPI),
            title=f"{app.title} - Swagger UI",
            swagger_js_url=f"{root}{ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{root}{ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{root}{ASSETS}/favicon.png",
        )
        return _guarded(page)

    return swagger


def _redoc_page(app: FastAPI) -> Any:
    async def redoc(request: Request) -> HTMLResponse:
        root = root_of(request)
        page = get_redoc_html(
            openapi_url=root + (app.openapi_url or OPENAPI),
            title=f"{app.title} - ReDoc",
            redoc_js_url=f"{root}{ASSETS}/redoc.standalone.js",
            redoc_favicon_url=f"{root}{ASSETS}/favicon.png",
            with_google_fonts=False,
        )
        return _guarded(page)

    return redoc


def _guarded(page: HTMLResponse) -> HTMLResponse:
    """A page that runs no script but ours, whatever is in the descriptions that it shows; ReDoc sanitises them,
    too, as Swagger UI does by itself."""
    nonce = token_urlsafe(16)
    text = bytes(page.body).decode().replace("<script>", f'<script nonce="{nonce}">')
    text = text.replace("<redoc ", '<redoc sanitize="true" ')
    return HTMLResponse(text, headers={**PAGE_HEADERS, "content-security-policy": _POLICY.format(nonce=nonce)})
