"""What routes ask of credentials, in OpenAPI: security schemes, requirements, and the responses of refusals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi.routing import RouteContext

from gateway.identity.admission import Admission, Provider
from gateway.routing.handler_settings import Runtime


def _scheme_name(provider: Provider, source: str) -> str:
    """The name of the scheme for one field of a provider's credentials: the provider's, for its first field."""
    if source == provider.sources[0]:
        return provider.name
    return f"{provider.name}_{source.replace('cookie:', 'cookie_').replace('-', '_')}"


def _scheme(source: str) -> dict[str, Any]:
    if source == "authorization":
        return {"type": "http", "scheme": "bearer"}
    place, name = ("cookie", source.removeprefix("cookie:")) if source.startswith("cookie:") else ("header", source)
    return {"type": "apiKey", "in": place, "name": name}


def schemes_of(admissions: Iterable[Admission]) -> dict[str, Any]:
    """The security schemes by which requests of these routes are admitted."""
    providers = {provider.name: provider for admission in admissions for provider in admission.providers}
    return {
        _scheme_name(provider, source): _scheme(source)
        for provider in providers.values()
        for source in provider.sources
    }


def security_of(admission: Admission) -> list[dict[str, list[str]]]:
    """The alternatives of a route, each with the scopes that it requires; an empty one if a request needs none."""
    found = [
        {_scheme_name(provider, source): [*admission.scopes]}
        for provider in admission.providers
        for source in provider.sources
    ]
    return [*found, {}] if admission.optional else found


def refusals_of(problem: dict[str, Any]) -> dict[str, Any]:
    """The responses to requests that are not admitted; `problem` describes the content of all."""
    challenge = {"WWW-Authenticate": {"description": "RFC 6750, RFC 9728.", "schema": {"type": "string"}}}
    return {
        "401": {"description": "No valid credential.", "headers": challenge, "content": problem},
        "403": {"description": "The credential lacks a scope or a claim.", "headers": challenge, "content": problem},
    }


def secure_handlers(document: dict[str, Any], runtime: Runtime) -> None:
    """Describe in an OpenAPI document what Python handlers ask of credentials, and which have rate limits."""
    for context in runtime.contexts.values():
        if id(context.dependant) in runtime.limited:
            _limit(document, context)
        admission = runtime.identified.get(id(context.dependant))
        operations = document.get("paths", {}).get(context.path_format or "", {})
        for method in context.methods or () if admission is not None else ():
            operation = operations.get(method.lower())
            if operation is not None and admission is not None:
                operation["security"] = security_of(admission)
                operation.setdefault("responses", {}).update(refusals_of(PROBLEM))
    add_schemes(document, runtime.admissions(None))


def _limit(document: dict[str, Any], context: RouteContext) -> None:
    operations = document.get("paths", {}).get(context.path_format or "", {})
    for method in context.methods or ():
        if (operation := operations.get(method.lower())) is not None:
            operation.setdefault("responses", {})["429"] = LIMITED


PROBLEM: dict[str, Any] = {
    "application/problem+json": {"schema": {"type": "object", "properties": {"detail": {"type": "string"}}}}
}


LIMITED = {"description": "Too many requests; `Retry-After` says when to retry.", "content": PROBLEM}


def add_schemes(document: dict[str, Any], admissions: Iterable[Admission]) -> None:
    """Describe the schemes in an OpenAPI document, beside those that it has."""
    if schemes := schemes_of(admissions):
        document.setdefault("components", {}).setdefault("securitySchemes", {}).update(schemes)
