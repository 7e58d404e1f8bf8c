"""The API documentation: declared routes in OpenAPI, and the pages that show it, served without any CDN."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.staticfiles import StaticFiles
from starlette.responses import HTMLResponse

from .config import show_duration
from .routes import Declared

ASSETS = "/_gateway/docs"
OPENAPI = "/openapi.json"


def openapi_operation(route: Declared) -> dict[str, Any]:
    """What OpenAPI says of a declared route beside its path: parameters, and what answers it may give."""
    config = route.config
    parameters = [_parameter(name, "path", config.examples, required=True) for name in route.template.parameters] + [
        _parameter(name, "query", config.examples, required=False) for name in config.query or ()
    ]
    return {
        "parameters": parameters,
        "responses": {
            "200": {"description": "The upstream's answer, from the cache or fresh.", "headers": _HEADERS},
            "304": {"description": "What the client has is still good."},
            "502": {
                "description": "The upstream failed, and nothing stored could stand in.",
                "content": _PROBLEM,
            },
            "504": {"description": "The upstream did not answer in time.", "content": _PROBLEM},
        },
        "x-gateway": {"upstream": route.upstream.name, "ttl": _ttl(config.ttl), "tags": config.tags},
    }


def _ttl(ttl: Any) -> str:
    return ttl if isinstance(ttl, str) else show_duration(ttl)


_HEADERS = {
    "Cache-Status": {"description": "What the cache did (RFC 9211).", "schema": {"type": "string"}},
    "Age": {"description": "Seconds since the upstream was asked.", "schema": {"type": "integer"}},
}
_PROBLEM = {
    "application/problem+json": {
        "schema": {
            "type": "object",
            "properties": {
                "type": {"type": "string"},
                "title": {"type": "string"},
                "status": {"type": "integer"},
                "detail": {"type": "string"},
                "request_id": {"type": "string"},
            },
        }
    }
}


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
        root = request.scope.get("root_path", "")
        return get_swagger_ui_html(
            openapi_url=root + OPENAPI,
            title=f"{app.title} - Swagger UI",
            swagger_js_url=f"{root}{ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{root}{ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{root}{ASSETS}/favicon.png",
        )

    return swagger


def _redoc_page(app: FastAPI) -> Any:
    async def redoc(request: Request) -> HTMLResponse:
        root = request.scope.get("root_path", "")
        return get_redoc_html(
            openapi_url=root + OPENAPI,
            title=f"{app.title} - ReDoc",
            redoc_js_url=f"{root}{ASSETS}/redoc.standalone.js",
            redoc_favicon_url=f"{root}{ASSETS}/favicon.png",
            with_google_fonts=False,
        )

    return redoc
