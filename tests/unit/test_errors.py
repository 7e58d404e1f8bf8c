"""errors: what can go wrong, whose fault it is, and what the client is told."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from gateway.errors import (
    ConfigError,
    ConfigProblem,
    GatewayError,
    RequestRefused,
    UpstreamBusy,
    UpstreamError,
    UpstreamMalformed,
    UpstreamTimeout,
    UpstreamUnreachable,
    problem_body,
    problem_document,
    problem_type,
)
from gateway.upstreams.response import translated

# --- the tree ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (UpstreamError, 502, "error"),
        (UpstreamUnreachable, 502, "unreachable"),
        (UpstreamMalformed, 502, "malformed"),
        (UpstreamBusy, 503, "busy"),
        (UpstreamTimeout, 504, "timeout"),
    ],
)
def test_a_failed_upstream_has_a_status_and_a_kind(error: type[UpstreamError], status: int, kind: str) -> None:
    raised = error("catalog", "10.0.0.7 refused")
    assert (raised.status, raised.kind) == (status, kind)
    assert str(raised) == "catalog: 10.0.0.7 refused"
    assert "catalog" not in raised.title


def test_a_refused_request_is_the_clients_fault_unless_said_otherwise() -> None:
    assert RequestRefused("no").status == 400
    assert RequestRefused("no", 404).status == 404
    assert str(RequestRefused("no")) == RequestRefused("no").detail == "no"


@pytest.mark.parametrize("error", [ConfigError([]), RequestRefused(""), UpstreamError("", "")])
def test_every_error_is_the_gateways(error: Exception) -> None:
    assert isinstance(error, GatewayError)


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (ConfigProblem("gateway.yaml:3", "routes.a.ttl", "is wrong"), "gateway.yaml:3: routes.a.ttl: is wrong"),
        (ConfigProblem("", "routes.a.ttl", "is wrong"), "routes.a.ttl: is wrong"),
        (ConfigProblem("gateway.yaml", "", "is wrong"), "gateway.yaml: is wrong"),
        (ConfigProblem("", "", "is wrong"), "is wrong"),
    ],
    ids=["place and key", "key", "place", "neither"],
)
def test_a_problem_of_the_configuration_says_where_it_stands(problem: ConfigProblem, text: str) -> None:
    assert str(problem) == text


def test_a_configuration_error_lists_all_problems() -> None:
    problems = [ConfigProblem("", "a", "is wrong"), ConfigProblem("", "b", "is too")]
    assert ConfigError(problems).problems == problems
    assert str(ConfigError(problems)) == "a: is wrong\nb: is too"


# --- problem details ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "path"),
    [
        (400, "/problems/bad-request"),
        (404, "/problems/not-found"),
        (418, "/problems/im-a-teapot"),
        (502, "/problems/bad-gateway"),
        (503, "/problems/service-unavailable"),
        (504, "/problems/gateway-timeout"),
        (599, "/problems/status-599"),
    ],
)
def test_a_problem_has_a_stable_type(status: int, path: str) -> None:
    assert problem_type(status) == path


@pytest.mark.parametrize(
    ("status", "path"),
    [(413, "content-too-large"), (414, "uri-too-long"), (416, "range-not-satisfiable"), (422, "unprocessable-content")],
)
def test_a_problem_has_the_same_type_whatever_the_python(status: int, path: str) -> None:
    assert problem_type(status) == f"/problems/{path}"


def test_a_problem_document_has_the_members_of_rfc_9457() -> None:
    assert problem_document(404, "No such thing.", "r-1") == {
        "type": "/problems/not-found",
        "title": "Not Found",
        "status": 404,
        "detail": "No such thing.",
        "request_id": "r-1",
    }


def test_a_problem_has_the_title_it_is_given() -> None:
    assert problem_document(502, "", "r", "The upstream failed")["title"] == "The upstream failed"


def test_a_problem_of_no_request_has_no_request_id() -> None:
    assert "request_id" not in problem_document(400, "", "")


def test_a_problem_body_is_json_in_utf_8() -> None:
    body = problem_body(404, "caf\xe9", "r", "\u5546")
    assert json.loads(body) == problem_document(404, "caf\xe9", "r", "\u5546")
    assert "caf\xe9".encode() in body


# --- httpx's errors ----------------------------------------------------------------------------------------

COUNTERPARTS: dict[type[httpx.TransportError], type[UpstreamError]] = {
    httpx.TransportError: UpstreamUnreachable,
    httpx.TimeoutException: UpstreamTimeout,
    httpx.ConnectTimeout: UpstreamTimeout,
    httpx.ReadTimeout: UpstreamTimeout,
    httpx.WriteTimeout: UpstreamTimeout,
    httpx.PoolTimeout: UpstreamBusy,
    httpx.NetworkError: UpstreamUnreachable,
    httpx.ConnectError: UpstreamUnreachable,
    httpx.ReadError: UpstreamUnreachable,
    httpx.WriteError: UpstreamUnreachable,
    httpx.CloseError: UpstreamUnreachable,
    httpx.ProxyError: UpstreamUnreachable,
    httpx.UnsupportedProtocol: UpstreamMalformed,
    httpx.ProtocolError: UpstreamUnreachable,
    httpx.LocalProtocolError: UpstreamMalformed,
    httpx.RemoteProtocolError: UpstreamMalformed,
}


def httpx_errors(root: type[httpx.TransportError] = httpx.TransportError) -> Iterator[type[httpx.TransportError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__.partition(".")[0] == "httpx":
            yield from httpx_errors(child)


def test_every_error_of_httpxs_transports_has_a_counterpart() -> None:
    assert set(httpx_errors()) == set(COUNTERPARTS)


@pytest.mark.parametrize("error", COUNTERPARTS, ids=lambda error: error.__name__)
def test_an_error_of_httpx_becomes_its_counterpart(error: type[httpx.TransportError]) -> None:
    found = translated("catalog", error("connect to 10.0.0.7:80 failed"))
    assert type(found) is COUNTERPARTS[error]
    assert found.upstream == "catalog"


@pytest.mark.parametrize("error", COUNTERPARTS, ids=lambda error: error.__name__)
def test_no_address_of_the_inside_is_told(error: type[httpx.TransportError]) -> None:
    assert "10.0.0.7" not in str(translated("catalog", error("connect to 10.0.0.7:80 failed")))
