"""Errors as answers: what FastAPI is told to make of each exception, all of it Problem Details (RFC 9457)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from .client import ClientLeft, RaisedAnswer
from .errors import PROBLEM_MEDIA_TYPE, RequestRefused, UpstreamError, problem_document
from .exchange import exchange_of
from .outcome import Outcome, Result

CLIENT_LEFT = 499
"""nginx's status for a client that hung up; nobody sees it but the log."""


def problem(request: Request, status: int, detail: Any, *, title: str | None = None, **more: Any) -> Response:
    """A problem as a response; `detail` is text, or what a handler gave its HTTPException."""
    exchange = exchange_of(request.scope)
    document = problem_document(status, detail, exchange.request_id if exchange is not None else "", title)
    body = json.dumps(document | more, ensure_ascii=False, separators=(",", ":")).encode()
    headers = {"cache-control": "no-store", "content-type": PROBLEM_MEDIA_TYPE.decode()}
    return Response(b"" if request.method == "HEAD" else body, status, headers=headers)


async def _upstream(request: Request, error: Exception) -> Response:
    """What a handler's client is told where an upstream that the handler asked has failed."""
    assert isinstance(error, UpstreamError)
    exchange = exchange_of(request.scope)
    if exchange is not None:
        exchange.outcome = Outcome(Result.ERROR, forward="miss", detail=error.kind)
    response = problem(request, error.status, f"{error.title} ({error.upstream}).", title=error.title)
    if error.status == 503:
        response.headers["retry-after"] = str(max(1, math.ceil(error.retry_after or 1)))
    return response


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestRefused)
    return problem(request, error.status, error.detail)


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
    assert isinstance(error, RequestValidationError)
    errors = jsonable_encoder([{key: each[key] for key in ("type", "loc", "msg")} for each in error.errors()])
    return problem(request, 422, "The request does not have the form that its route wants.", errors=errors)


async def _unexpected(request: Request, error: Exception) -> Response:
    return problem(request, 500, "The gateway made a mistake; it is logged under the request id.")


EXCEPTION_HANDLERS: dict[int | type[Exception], Callable[[Request, Any], Any]] = {
    UpstreamError: _upstream,
    RequestRefused: _refused,
    ClientLeft: _left,
    RaisedAnswer: _answered,
    HTTPException: _http,
    RequestValidationError: _invalid,
    Exception: _unexpected,
}
