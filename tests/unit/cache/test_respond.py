"""Responses to clients: whole, a part, or a 304, with the gateway's own fields."""

from __future__ import annotations

import httpx
import pytest

from gateway.cache.respond import passed
from gateway.http.response_parser import Fields, HeadForms, read_head
from gateway.testing import StubUpstream, TurnedClock, running
from gateway.upstreams.response import Fetched, WholeBody
from tests.support.gateways import THIRTY, gateway, json_answer, status_of


async def test_a_client_that_has_it_already_gets_304(clock: TurnedClock) -> None:
    async with running(gateway(StubUpstream(json_answer(etag='W/"a"')), THIRTY, clock=clock)) as client:
        first = await client.get("/items/7")
        for condition in ('W/"a"', '"x", "a"', "*"):
            response = await client.get("/items/7", headers={"if-none-match": condition})
            assert (response.status_code, response.content) == (304, b"")
            assert response.headers["etag"] == first.headers["etag"]
        assert (await client.get("/items/7", headers={"if-none-match": '"b"'})).status_code == 200


async def test_an_answer_without_a_tag_gets_one_that_every_worker_makes_the_same(clock: TurnedClock) -> None:
    tags = set()
    for _ in range(2):
        async with running(gateway(StubUpstream(json_answer()), THIRTY, clock=clock)) as client:
            response = await client.get("/items/7")
            tags.add(response.headers["etag"])
            again = await client.get("/items/7", headers={"if-none-match": response.headers["etag"]})
            assert again.status_code == 304
    assert len(tags) == 1


async def test_the_gateways_own_tag_never_goes_upstream(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer(last_modified="Sun, 06 Nov 1994 08:49:37 GMT"))
    async with running(gateway(upstream, THIRTY, clock=clock)) as client:
        await client.get("/items/7")
        clock.turn(31)
        await client.get("/items/7")
    assert "if-none-match" not in upstream.requests[1].headers
    assert upstream.requests[1].headers["if-modified-since"] == "Sun, 06 Nov 1994 08:49:37 GMT"


async def test_a_range_of_a_stored_response_is_answered_from_it(clock: TurnedClock) -> None:
    upstream = StubUpstream(lambda request: httpx.Response(200, content=b"0123456789", headers={"etag": '"v1"'}))
    async with running(gateway(upstream, THIRTY, clock=clock)) as client:
        await client.get("/items/7")
        part = await client.get("/items/7", headers={"range": "bytes=2-4"})
        assert (part.status_code, part.content) == (206, b"234")
        assert part.headers["content-range"] == "bytes 2-4/10"
        beyond = await client.get("/items/7", headers={"range": "bytes=20-"})
        assert (beyond.status_code, beyond.headers["content-range"]) == (416, "bytes */10")
        other = await client.get("/items/7", headers={"range": "bytes=2-4", "if-range": '"v2"'})
        assert (other.status_code, other.content) == (200, b"0123456789")
    assert upstream.asked == 1


async def test_a_stored_part_answers_ranges_within_it(clock: TurnedClock) -> None:
    def ranged(request: httpx.Request) -> httpx.Response:
        headers = {"content-range": "bytes 2-5/10", "cache-control": "max-age=60"}
        return httpx.Response(206, content=b"2345", headers=headers)

    upstream = StubUpstream(ranged)
    async with running(gateway(upstream, clock=clock)) as client:
        await client.get("/film", headers={"range": "bytes=2-5"})
        inside = await client.get("/film", headers={"range": "bytes=3-4"})
        assert (inside.content, inside.headers["content-range"]) == (b"34", "bytes 3-4/10")
        assert upstream.asked == 1
        await client.get("/film", headers={"range": "bytes=5-7"})
    assert upstream.asked == 2


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param({"gateway-cache-control": "max-age=60"}, id="stored"),
        pytest.param({"gateway-cache-control": "no-store"}, id="not stored"),
        pytest.param({"gateway-cache-control": "max-age=60", "vary": "*"}, id="for its client alone"),
        pytest.param({"gateway-cache-control": "max-age=60", "status": "500"}, id="a failure"),
    ],
)
async def test_the_gateways_own_field_goes_no_further(answer: dict[str, str], clock: TurnedClock) -> None:
    fields = {"cache-control": "max-age=5", **answer}
    status = int(fields.pop("status", "200"))
    upstream = StubUpstream(lambda request: httpx.Response(status, text="x", headers=fields))
    async with running(gateway(upstream, clock=clock)) as client:
        responses = [await client.get("/x"), await client.get("/x"), await client.post("/x"), await client.head("/y")]
    assert not [response for response in responses if "gateway-cache-control" in response.headers]
    assert {response.headers["cache-control"] for response in responses} == {"max-age=5"}


async def test_the_gateways_own_field_decides_before_the_others(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer(gateway_cache_control="max-age=60", cache_control="no-store"))
    async with running(gateway(upstream, clock=clock)) as client:
        await client.get("/x")
        clock.turn(59)
        await client.get("/x")
        assert upstream.asked == 1
        clock.turn(2)
        await client.get("/x")
    assert upstream.asked == 2


async def test_cache_status_is_appended_to_an_upstreams_own(clock: TurnedClock) -> None:
    upstream = StubUpstream(json_answer(cache_status="origin-cache; hit", cache_control="max-age=60"))
    async with running(gateway(upstream, clock=clock)) as client:
        first, second = await client.get("/x"), await client.get("/x")
    assert first.headers.get_list("cache-status") == ["origin-cache; hit", status_of(first).rpartition(", ")[2]]
    assert second.headers.get_list("cache-status") == ["origin-cache; hit", "gateway; hit; ttl=60"]


def known_fields(value: bytes) -> Fields:
    """The fields of a head whose form is known, with a length of 4."""
    forms = HeadForms()
    for each in (b"a", b"b", value):
        data = b"HTTP/1.1 200 OK\r\nDate: %b\r\nContent-Length: 4\r\nKeep-Alive: timeout=5\r\n\r\n" % each
        head = read_head(data, bodiless=False)
        forms.note(data, head)
    return head.fields


def test_responses_with_one_form_are_passed_on_with_one_form() -> None:
    received = known_fields(b"x")
    answer = passed(Fetched(200, received, WholeBody(b"body")))
    assert (answer.status, answer.headers) == (200, [(b"date", b"x"), (b"content-length", b"4")])
    assert answer.form is not None
    again = passed(Fetched(200, received, WholeBody(b"more")))
    assert again.form is answer.form
    assert again.headers is not answer.headers


def test_a_response_of_another_length_than_its_head_says_has_no_form() -> None:
    for content in (b"", b"bod", b"body!"):
        answer = passed(Fetched(200, known_fields(b"x"), WholeBody(content)))
        assert (answer.headers, answer.form) == ([(b"date", b"x"), (b"content-length", b"4")], None)


def test_fields_that_were_read_by_no_form_are_passed_on_one_by_one() -> None:
    plain = [(b"date", b"x"), (b"content-length", b"4"), (b"keep-alive", b"timeout=5")]
    answer = passed(Fetched(200, plain, WholeBody(b"body")))
    assert (answer.headers, answer.form) == (plain[:2], None)
