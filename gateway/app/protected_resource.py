"""OAuth 2.0 Protected Resource Metadata (RFC 9728): which issuers' tokens a path takes, and which scopes it requires.

The path of a resource follows the well-known one: `/.well-known/oauth-protected-resource/home` describes `/home`. A 401
names that URL, so that a client that knows nothing of the gateway finds where to get a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.config.identity import IssuerConfig
from gateway.http.headers import first
from gateway.http.target import Target
from gateway.identity.admission import Admission
from gateway.routing.admitting import WELL_KNOWN, url_below
from gateway.routing.declared import local_path, root_of

FRESH = 300
"""Seconds: a reload may change what is required."""
Admissions = Callable[[Target | None], Iterable[Admission]]
"""What the route that serves a target asks of credentials, if it does; for None, what any route asks."""


@dataclass(frozen=True)
class ProtectedResources:
    """Serves the documents, by what `current` returns: the settings of identities, by name, and what routes ask of
    credentials."""

    current: Callable[[], tuple[Mapping[str, IssuerConfig], Admissions]]

    def add_to(self, app: FastAPI) -> None:
        for path in (WELL_KNOWN, WELL_KNOWN + "/{path:path}"):
            app.router.routes.append(Route(path, self._answer, methods=["GET"], include_in_schema=False))

    async def _answer(self, request: Request) -> Response:
        path = local_path(request).removeprefix(WELL_KNOWN)
        target = Target(path, (), "/" + request.path_params["path"]) if path else None
        identities, admissions = self.current()
        asked = [*admissions(target)]
        if not asked:
            return Response(status_code=404, headers={"cache-control": "no-store"})
        host = (first(request.scope["headers"], b"host") or "").lower()
        resource = url_below(request.scope["scheme"], host, root_of(request), path)
        issuers = {name: each.issuer for name, each in identities.items() if each.issues_by_url}
        return JSONResponse(_document(resource, asked, issuers), headers={"cache-control": f"max-age={FRESH}"})


def _document(resource: str, admissions: Sequence[Admission], issuers: Mapping[str, str]) -> dict[str, Any]:
    """The metadata of a resource (RFC 9728 §2) for which these ask credentials. `issuers` are the URLs of those that a
    client can get tokens from, by name."""
    providers = {each.name: each for admission in admissions for each in admission.providers}
    found: dict[str, Any] = {"resource": resource}
    if servers := sorted({issuers[name] for name in providers if name in issuers}):
        found["authorization_servers"] = servers
    if scopes := sorted({scope for admission in admissions for scope in admission.scopes}):
        found["scopes_supported"] = scopes
    if any("authorization" in each.sources for each in providers.values()):
        found["bearer_methods_supported"] = ["header"]
    return found
