"""Opaque tokens: when the endpoint is asked, what its answers mean, and what becomes of a request without one."""

from __future__ import annotations

import asyncio
import base64
import logging
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest

from gateway.config.identity import IssuerConfig
from gateway.config.upstream import UpstreamConfig
from gateway.identity.admission import Epoch, NotAdmitted
from gateway.identity.introspection import Introspector
from gateway.identity.records import Codec, CredentialRecords, Revocation, no_records
from gateway.testing import StubUpstream, TurnedClock
from gateway.upstreams.client import Upstream

SECRET = "s3cret:& ä"
TOKEN = b"opaque-token_1"


class Endpoint:
    """An endpoint whose answer a test sets, and the provider that asks it."""

    def __init__(self, clock: TurnedClock, records: CredentialRecords | None = None, **settings: Any) -> None:
        self.said: Any = {"active": True, "sub": "anna", "scope": "home:read x", "exp": clock.now() + 600}
        self.status = 200
        self.stub = StubUpstream(self._answer)
        asked = {"upstream": "idp", "client_id": "gate way", "client_secret": SECRET, **settings.pop("introspect", {})}
        self.upstream = Upstream("idp", UpstreamConfig(url="http://idp.test"), self.stub)
        config = IssuerConfig(introspect=asked, **settings)
        self.records = records if records is not None else no_records()
        self.provider = Introspector("opaque", config, self.upstream, self.records, clock, Epoch())

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if isinstance(self.said, bytes):
            return httpx.Response(self.status, content=self.said)
        return httpx.Response(self.status, json=self.said)

    async def refusal(self, token: bytes = TOKEN) -> tuple[int, str]:
        with pytest.raises(NotAdmitted) as refused:
            await self.provider.verified(token)
        assert token.decode("latin-1") not in str(refused.value)
        assert self.provider.known(token) is None
        return refused.value.status, refused.value.reason


@pytest.fixture
def endpoint(clock: TurnedClock) -> Endpoint:
    return Endpoint(clock)


async def test_a_token_is_asked_for_as_rfc_7662_has_it(endpoint: Endpoint) -> None:
    principal = await endpoint.provider.verified(TOKEN)
    assert (principal.subject, principal.scopes) == ("anna", {"home:read", "x"})
    assert "active" not in principal.claims
    (request,) = endpoint.stub.requests
    assert (request.method, request.url.path) == ("POST", "/introspect")
    assert parse_qs(request.content.decode()) == {"token": [TOKEN.decode()], "token_type_hint": ["access_token"]}
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    scheme, _, pair = request.headers["authorization"].partition(" ")
    assert (scheme, base64.b64decode(pair)) == ("Basic", b"gate+way:s3cret%3A%26+%C3%A4")


async def test_an_answer_is_remembered_for_its_time_and_never_beyond_the_tokens(
    endpoint: Endpoint, clock: TurnedClock
) -> None:
    endpoint.said["exp"] = clock.now() + 90
    for seconds, asked in ((0, 1), (59, 1), (1, 2), (29, 2)):
        clock.turn(seconds)
        principal = await endpoint.provider.verified(TOKEN)
        assert endpoint.stub.asked == asked
    assert endpoint.provider.holds_until(principal) == clock.now() + 1
    clock.turn(1)
    assert endpoint.provider.known(TOKEN) is None
    endpoint.said = {"active": False}
    assert await endpoint.refusal() == (401, "inactive")


async def test_a_no_is_remembered_for_a_shorter_time(endpoint: Endpoint, clock: TurnedClock) -> None:
    endpoint.said = {"active": False, "sub": "anna"}
    for seconds, asked in ((0, 1), (9, 1), (1, 2)):
        clock.turn(seconds)
        assert await endpoint.refusal() == (401, "inactive")
        assert endpoint.stub.asked == asked
    endpoint.said = {"active": True, "sub": "anna"}
    clock.turn(10)
    assert (await endpoint.provider.verified(TOKEN)).subject == "anna"


async def test_requests_at_once_are_one_request_and_one_that_leaves_ends_it_for_no_other(endpoint: Endpoint) -> None:
    endpoint.stub.gate.clear()
    waiting = [asyncio.ensure_future(endpoint.provider.verified(TOKEN)) for _ in range(50)]
    await endpoint.stub.came.acquire()
    waiting[0].cancel()
    endpoint.stub.gate.set()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert {each.subject for each in found[1:] if not isinstance(each, BaseException)} == {"anna"}
    assert endpoint.stub.asked == 1


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ({"active": True}, 500),
        ({"active": True}, 401),
        ({"active": True}, 204),
        (b"<html>", 200),
        (b"\xff", 200),
        ([], 200),
        ({}, 200),
        ({"active": "true"}, 200),
        ({"active": 1}, 200),
        ({"active": True, "exp": "soon"}, 200),
        ({"active": True, "exp": True}, 200),
        ({"active": True, "iat": -1}, 200),
        ({"active": True, "sub": ["anna"]}, 200),
        (b'{"active": true, "x": "' + b"x" * 70_000 + b'"}', 200),
    ],
)
async def test_without_an_answer_that_can_be_used_nobody_is_let_in_and_no_token_is_called_invalid(
    endpoint: Endpoint, said: Any, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    good, endpoint.said, endpoint.status = endpoint.said, said, status
    for _ in range(2):
        assert await endpoint.refusal() == (503, "introspection")
    assert endpoint.stub.asked == 2
    assert not endpoint.provider.ready
    assert endpoint.provider.answers["failed"] == 2
    assert caplog.text.count("gives no answer") == 1
    assert SECRET not in caplog.text + repr(endpoint.provider)
    assert TOKEN.decode() not in caplog.text
    endpoint.said, endpoint.status = good, 200
    assert (await endpoint.provider.verified(TOKEN)).subject == "anna"
    assert endpoint.provider.ready
    assert "answers again" in caplog.text


async def test_an_endpoint_that_is_down_is_a_503_with_retry_after_and_known_tokens_go_on(
    endpoint: Endpoint,
) -> None:
    await endpoint.provider.verified(TOKEN)

    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    endpoint.stub.answer = refuse
    with pytest.raises(NotAdmitted) as refused:
        await endpoint.provider.verified(b"another")
    assert (refused.value.status, refused.value.retry_after) == (503, 5)
    assert (await endpoint.provider.verified(TOKEN)).subject == "anna"


@pytest.mark.parametrize(
    ("settings", "said", "valid"),
    [
        ({"audience": ["shop"]}, {"aud": "shop"}, True),
        ({"audience": ["shop"]}, {"aud": ["other", "shop"]}, True),
        ({"audience": ["shop"]}, {"aud": "other"}, False),
        ({"audience": ["shop"]}, {}, False),
        ({}, {"aud": "other"}, True),
        ({}, {"exp": -29}, True),
        ({}, {"exp": -30}, False),
        ({}, {"nbf": 30}, True),
        ({}, {"nbf": 31}, False),
        ({}, {"iat": -30 * 86_400}, True),
        ({}, {"iat": -30 * 86_400 - 30}, False),
        ({}, {"exp": None, "iat": None}, True),
    ],
)
async def test_an_answer_is_checked_as_a_tokens_claims_are(
    clock: TurnedClock, settings: dict[str, Any], said: dict[str, Any], valid: bool
) -> None:
    endpoint = Endpoint(clock, **settings)
    dates = {name: value and clock.now() + value for name, value in said.items() if name != "aud"}
    endpoint.said = {"active": True, "sub": "anna", **said, **dates}
    if valid:
        assert (await endpoint.provider.verified(TOKEN)).subject == "anna"
    else:
        assert await endpoint.refusal() == (401, "inactive")


@pytest.mark.parametrize("token", [b"a" * 8193, b"a b", b"\xff", b"a\n"])
async def test_what_is_no_token_is_refused_without_asking(endpoint: Endpoint, token: bytes) -> None:
    assert await endpoint.refusal(token) == (401, "form")
    assert endpoint.stub.asked == 0


async def test_a_revoked_token_is_refused_at_once_although_its_answer_is_remembered(
    endpoint: Endpoint, clock: TurnedClock
) -> None:
    await endpoint.provider.verified(TOKEN)
    records = endpoint.records
    salt = records.salt()
    digest, now = records.digest("sub", "anna", salt), clock.now()
    records.apply((1, 0), Revocation(kind="sub", digest=digest, salt=salt, before=now, until=now + 1e6, at=now))
    assert await endpoint.refusal() == (401, "revoked")


async def test_before_revocations_are_known_nobody_is_let_in(clock: TurnedClock) -> None:
    endpoint = Endpoint(clock, CredentialRecords(Codec(None)))
    assert await endpoint.refusal() == (503, "records")
    assert endpoint.stub.asked == 0


async def test_what_is_remembered_is_bounded_and_invalid_tokens_drive_out_no_valid_ones(
    clock: TurnedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.identity.introspection.MOST_INVALID", 5)
    endpoint = Endpoint(clock, tokens=3)
    for number in range(10):
        await endpoint.provider.verified(b"good%d" % number)
    endpoint.said = {"active": False}
    for number in range(10):
        await endpoint.refusal(b"bad%d" % number)
    assert (len(endpoint.provider._valid), len(endpoint.provider._invalid)) == (3, 5)
    assert endpoint.provider.known(b"good9") is not None
    assert endpoint.provider.known(b"good0") is None


async def test_with_no_time_to_remember_each_request_is_asked_for(clock: TurnedClock) -> None:
    endpoint = Endpoint(clock, introspect={"cache": "0s", "negative": "0s"})
    for asked in (1, 2):
        await endpoint.provider.verified(TOKEN)
        assert endpoint.stub.asked == asked


def test_a_signed_token_is_not_taken_for_an_opaque_one(endpoint: Endpoint) -> None:
    assert not endpoint.provider.recognises(b"eyJ.e30.sig")
    assert endpoint.provider.recognises(TOKEN)


async def test_its_end_ends_what_is_being_asked(endpoint: Endpoint) -> None:
    endpoint.stub.gate.clear()
    waiting = asyncio.ensure_future(endpoint.provider.verified(TOKEN))
    await endpoint.stub.came.acquire()
    await endpoint.provider.aclose()
    with pytest.raises(asyncio.CancelledError):
        await waiting
