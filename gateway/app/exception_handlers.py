"""Error responses: FastAPI's exception handlers. The gateway's own errors are Problem Details (RFC 9457).

A request that does not validate gets FastAPI's own body by default: clients are generated from the app's OpenAPI
document, which specifies it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from fastapi.encoders import jsonable_encoder
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.context import Outcome, RequestContext, Result, exchange_of
from gateway.errors import PROBLEM_MEDIA_TYPE, RequestRefused, UpstreamError, problem_document
from gateway.http.target import is_credential
from gateway.identity.admission import NotAdmitted
from gateway.routing.admitting import not_admitted
from gateway.routing.handler_settings import runtime_of
from gateway.routing.responses import AnswerResponse, ClientLeft, RaisedAnswer

CLIENT_LEFT = 499
"""nginx's status for a client that disconnected; only the log shows it."""


def problem(request: Request, status: int, detail: Any, *, title: str | None = None, **more: Any) -> Response:
    """A problem as a response; `detail` is text, or what a handler gave its HTTPException."""
    exchange = exchange_of(request.scope)
    document = problem_document(status, detail, exchange.request_id if exchange is not None else "", title)
    body = json.dumps(document | more, ensure_ascii=False, separators=(",", ":")).encode()
    headers = {"cache-control": "no-store", "content-type": PROBLEM_MEDIA_TYPE.decode()}
    return Response(b"" if request.method == "HEAD" else body, status, headers=headers)


async def _upstream(request: Request, error: Exception) -> Response:
    """The response to a handler's client if an upstream that the handler used has failed."""
    assert isinstance(error, UpstreamError)
    exchange = exchange_of(request.scope)
    if exchange is not None:
        exchange.failure = error.why
        exchange.outcome = Outcome(Result.ERROR, forward="miss", detail=error.kind)
    response = problem(request, error.status, f"{error.title} ({error.upstream}).", title=error.title)
    if error.status == 503:
        response.headers["retry-after"] = str(max(1, math.ceil(error.retry_after or 1)))
    return response


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestRefused)
    return problem(request, error.status, error.detail)


async def _not_admitted(request: Request, error: Exception) -> Response:
    assert isinstance(error, NotAdmitted)
    runtime, exchange = runtime_of(request), exchange_of(request.scope)
    runtime.metrics.refused(f"identity-{error.reason}")
    if exchange is None:
        exchange = RequestContext("", 0.0, request.method, "", request.url.scheme)
    bearer = runtime.bearer
    # The metadata are of the app's own handlers, and not of those of apps that are mounted in it.
    described = request.app in (bearer, getattr(bearer, "app", None))
    return AnswerResponse(not_admitted(exchange, error, described=described))


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)


async def _answered(request: Request, error: Exception) -> Response:
    assert isinstance(error, RaisedAnswer)
    return error.response


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code < 200 or error.status_code in (204, 304):
        return Response(status_code=error.status_code, headers=error.headers)
    response = problem(request, error.status_code, error.detail)
    if error.status_code in (404, 410):
        del response.headers["cache-control"]
    response.headers.update(error.headers or {})
    return response


async def _invalid(request: Request, error: Exception) -> Response:
    """FastAPI's own body."""
    assert isinstance(error, RequestValidationError)
    content = {"detail": jsonable_encoder([_shown(each) for each in error.errors()])}
    return JSONResponse(content, 422, headers={"cache-control": "no-store"})


async def _invalid_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = jsonable_encoder([{key: each[key] for key in ("type", "loc", "msg")} for each in error.errors()])
    return problem(request, 422, "The request does not match what its route declares.", errors=errors)


def _shown(error: Mapping[str, Any]) -> dict[str, Any]:
    """A validation error in FastAPI's form, without the value if that may be a credential: error bodies end up in
    logs."""
    place, *names = error["loc"]
    secret = place in ("header", "cookie") or (place == "query" and any(is_credential(str(name)) for name in names))
    return {key: value for key, value in error.items() if not (secret and key in ("input", "ctx"))}


async def _unexpected(request: Request, error: Exception) -> Response:
    return problem(request, 500, "Internal error; see the gateway log for this request ID.")


Handler = Callable[[Request, Any], Any]
GATEWAYS_OWN: dict[int | type[Exception], Handler] = {
    UpstreamError: _upstream,
    RequestRefused: _refused,
    NotAdmitted: _not_admitted,
    ClientLeft: _left,
    RaisedAnswer: _answered,
}
"""For the gateway's own exceptions."""
EXCEPTION_HANDLERS: dict[int | type[Exception], Handler] = {
    **GATEWAYS_OWN,
    HTTPException: _http,
    RequestValidationError: _invalid,
    Exception: _unexpected,
}


def exception_handlers(
    *, validation_errors: Literal["fastapi", "problem"], http_errors: Literal["fastapi", "problem"]
) -> dict[int | type[Exception], Handler]:
    """The app's exception handlers, by the settings of these names."""
    handlers = dict(EXCEPTION_HANDLERS)
    if validation_errors == "problem":
        handlers[RequestValidationError] = _invalid_problem
    if http_errors == "fastapi":
        handlers[HTTPException] = http_exception_handler
    return handlers
