"""Conditions on their way up: upstreams are sent the tags that they gave, and never one that only the gateway knows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, Header, Response

from gateway.http.codings import tag_of
from gateway.policy.preconditions import as_given, as_known, own_tags, settled, without_own
from gateway.policy.validation import own_tag
from gateway.routing.cached_decorator import cached
from gateway.testing import StubUpstream, running
from tests.support.gateways import gateway, served

TEXT = b'{"name":"value"},' * 400
GZIP, BR = tag_of(b'"v1"', "gzip").decode(), tag_of(b'"v1"', "br").decode()
OWN = own_tag(TEXT).decode()
OWN_GZIP = tag_of(OWN.encode(), "gzip").decode()
GONE = own_tag(b"before").decode()
LISTS = {
    GZIP: '"v1"',
    f"W/{GZIP}": 'W/"v1"',
    f'"a, b" ,{GZIP},W/{BR}': '"a, b" ,"v1",W/"v1"',
    "*": "*",
    '"v1-gzip"': '"v1-gzip"',
    f"{GZIP[:-2]}x\"": f"{GZIP[:-2]}x\"",
    "nonsense": "nonsense",
    "": "",
}  # fmt: skip


def fields(**given: str) -> list[tuple[bytes, bytes]]:
    return [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in given.items()]


def resource(**headers: str) -> StubUpstream:
    """TEXT under every path, with these headers; writes succeed. A 304 where `If-None-Match` names its tag."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method not in ("GET", "HEAD"):
            return httpx.Response(200, text="written")
        if request.headers.get("if-none-match", "").removeprefix("W/") == headers.get("etag", "-"):
            return httpx.Response(304, headers=headers)
        return httpx.Response(200, content=TEXT, headers={"content-type": "application/json", **headers})

    return StubUpstream(answer)


@asynccontextmanager
async def client_of(upstream: StubUpstream, *, on_the_wire: bool = False) -> AsyncIterator[httpx.AsyncClient]:
    app = gateway(upstream, {"rest": {"path": "/{path:path}", "upstream": "api", "ttl": "60s"}})
    if not on_the_wire:
        async with running(app) as client:
            yield client
        return
    async with served(app, http="gateway.edge:GatewayProtocol") as url, httpx.AsyncClient(base_url=url) as client:
        yield client


def sent(upstream: StubUpstream, name: str) -> list[str]:
    return upstream.requests[-1].headers.get_list(name)


# --- suffixes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["if-match", "if-none-match"])
@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "POST"])
async def test_a_write_reaches_the_upstream_with_the_tags_that_it_gave(method: str, name: str) -> None:
    upstream = resource(etag='"v1"')
    async with client_of(upstream) as client:
        for client_sends, upstream_gets in LISTS.items():
            lines = [(name, client_sends), (name, BR)]
            await client.request(method, "/doc", headers=lines)
            assert sent(upstream, name) == [upstream_gets, '"v1"']


@pytest.mark.parametrize("on_the_wire", [False, True])
@pytest.mark.parametrize("name", ["if-match", "if-none-match"])
async def test_a_read_that_passes_by_the_cache_has_them_too(name: str, on_the_wire: bool) -> None:
    upstream = resource(etag='"v1"')
    async with client_of(upstream, on_the_wire=on_the_wire) as client:
        for client_sends, upstream_gets in LISTS.items():
            await client.get("/doc", headers=[("authorization", "x"), (name, client_sends)])
            assert sent(upstream, name) == [upstream_gets]


@pytest.mark.parametrize("on_the_wire", [False, True])
@pytest.mark.parametrize(
    ("listed", "told"),
    [(GZIP, GZIP), (f"W/{GZIP}", f"W/{GZIP}"), ('"v1"', '"v1"'), (f'{GZIP}, "v1"', None)],
)
async def test_a_304_names_the_tag_that_the_client_has(listed: str, told: str | None, on_the_wire: bool) -> None:
    upstream = resource(etag='"v1"')
    async with client_of(upstream, on_the_wire=on_the_wire) as client:
        answer = await client.get("/doc", headers={"authorization": "x", "if-none-match": listed})
    if told is not None:
        assert (answer.status_code, answer.headers["etag"]) == (304, told)
    else:
        assert sent(upstream, "if-none-match") == ['"v1", "v1"']


def test_a_304_without_a_tag_or_with_another_stays_as_it_is() -> None:
    for answer in (fields(), fields(etag='"v2"'), fields(etag='"v1"')):
        assert as_known(fields(if_none_match='"v1"'), answer) == answer
    assert as_known(fields(if_none_match=GZIP), fields(etag='W/"v1"')) == fields(etag=GZIP)


@pytest.mark.parametrize(
    ("if_range", "reaches"),
    [
        (None, True),
        ('"v1"', True),
        ('"v1-gzip"', True),
        ("Sat, 29 Oct 1994 19:43:31 GMT", True),
        (GZIP, False),
        (f"W/{GZIP}", False),
        (OWN, False),
        (OWN_GZIP, False),
    ],
)
@pytest.mark.parametrize("why", [{"authorization": "x"}, {}])
async def test_a_range_of_a_form_that_the_upstream_does_not_have_is_not_asked_for(
    if_range: str | None, reaches: bool, why: dict[str, str]
) -> None:
    """Bytes of the plain form joined to those of a compressed one are neither."""
    # What it brings may not be stored, so that a moment later ranges are the upstream's affair.
    upstream = resource(etag='"v1"', **{"cache-control": "no-store"})
    async with client_of(upstream) as client:
        await client.get("/doc", headers=why)
        headers = {"range": "bytes=0-9", **why} | ({"if-range": if_range} if if_range else {})
        await client.get("/doc", headers=headers)
    assert sent(upstream, "range") == (["bytes=0-9"] if reaches else [])
    assert sent(upstream, "if-range") == ([if_range] if if_range and reaches else [])


async def test_a_handler_that_writes_is_given_the_tag_of_the_handler_that_reads() -> None:
    router, seen = APIRouter(), []

    @router.get("/doc")
    @cached(ttl="60s")
    async def read(response: Response) -> dict[str, str]:
        response.headers["etag"] = '"v1"'
        return {"text": TEXT.decode()}

    @router.put("/doc")
    async def write(if_match: str | None = Header(None)) -> None:
        seen.append(if_match)

    app = gateway(None, {}, include=[])
    app.include_router(router)
    async with running(app) as client:
        for _ in range(3):  # the third is compressed
            answer = await client.get("/doc", headers={"accept-encoding": "gzip"})
            await app.engine.settle()
        await client.put("/doc", headers={"if-match": answer.headers["etag"]})
    assert (answer.headers["etag"], seen) == (GZIP, ['"v1"'])


# --- the gateway's own tags --------------------------------------------------------------------------------


async def write(upstream: StubUpstream, name: str, listed: str, **headers: str) -> tuple[int, list[list[str]]]:
    """The status of a PUT on this condition, and what of the condition the requests had that reached the upstream."""
    async with client_of(upstream) as client:
        answer = await client.put("/doc", headers={name: listed, **headers}, content=b"{}")
    return answer.status_code, [
        request.headers.get_list(name) for request in upstream.requests if request.method == "PUT"
    ]


@pytest.mark.parametrize(
    ("listed", "status", "reaches"),
    [
        (OWN, 200, [[]]),
        (OWN_GZIP, 200, [[]]),
        (f'"x", {OWN}', 200, [[]]),
        (f'{GONE}, "x"', 200, [['"x"']]),
        (GONE, 412, []),
        (tag_of(GONE.encode(), "br").decode(), 412, []),
        ('"gw-mine"', 200, [['"gw-mine"']]),
    ],
)
async def test_if_match_on_a_tag_of_ours_is_judged_by_what_the_upstream_has_now(
    listed: str, status: int, reaches: list[list[str]]
) -> None:
    assert await write(resource(), "if-match", listed) == (status, reaches)


@pytest.mark.parametrize(
    ("listed", "status", "reaches"),
    [(OWN, 412, []), (f'W/{OWN}, "x"', 412, []), (GONE, 200, [[]]), (f'{GONE}, "x"', 200, [['"x"']])],
)
async def test_if_none_match_on_a_tag_of_ours_is_too(listed: str, status: int, reaches: list[list[str]]) -> None:
    assert await write(resource(), "if-none-match", listed) == (status, reaches)


async def test_a_tag_that_looks_like_ours_and_is_the_upstreams_is_the_upstreams_to_judge() -> None:
    for name in ("if-match", "if-none-match"):
        assert await write(resource(etag=GONE), name, GONE) == (200, [[GONE]])


async def test_a_tag_of_ours_does_not_hold_once_the_upstream_gives_its_own() -> None:
    assert await write(resource(etag='"v1"'), "if-match", OWN) == (412, [])


async def test_the_question_is_asked_without_the_writers_credentials_and_conditions() -> None:
    """The tag is that of an answer which was stored for all."""
    upstream = resource()
    secret = {"authorization": "Bearer x", "cookie": "a=1", "if-unmodified-since": "Sat, 29 Oct 1994 19:43:31 GMT"}
    await write(upstream, "if-match", OWN, accept="application/json", **secret)
    asked, written = upstream.requests
    assert (asked.method, [name for name in secret if name in asked.headers]) == ("GET", [])
    assert ("if-match" in asked.headers, asked.headers["accept"]) == (False, "application/json")
    assert [name for name in secret if name in written.headers] == ["authorization", "cookie"]


@pytest.mark.parametrize(("status", "told"), [(404, 412), (503, 502)])
async def test_what_is_not_there_has_no_tag_and_a_failure_is_told_as_one(status: int, told: int) -> None:
    upstream = StubUpstream(lambda request: httpx.Response(status if request.method == "GET" else 200))
    assert await write(upstream, "if-match", OWN) == (told, [])


@pytest.mark.parametrize("on_the_wire", [False, True])
async def test_a_read_is_not_compared_by_the_upstream_with_a_tag_of_ours(on_the_wire: bool) -> None:
    upstream = resource()
    since = {"if-modified-since": "Sat, 29 Oct 1994 19:43:31 GMT"}
    async with client_of(upstream, on_the_wire=on_the_wire) as client:
        answer = await client.get("/doc", headers={"authorization": "x", "if-none-match": OWN, **since})
    assert (answer.status_code, sent(upstream, "if-none-match"), sent(upstream, "if-modified-since")) == (200, [], [])


@pytest.mark.parametrize(("listed", "voids"), [(OWN, True), (OWN_GZIP, True), (GONE, False), (f'"x", {GONE}', False)])
async def test_who_is_told_412_reads_what_is_there_now_and_nobody_else_makes_anything_void(
    listed: str, voids: bool
) -> None:
    upstream = resource()
    async with client_of(upstream) as client:
        await client.get("/doc")
        changed = TEXT.replace(b"value", b"other")
        upstream.answer = lambda request: httpx.Response(200 if request.method == "GET" else 412, content=changed)
        assert (await client.put("/doc", headers={"if-match": listed})).status_code == 412
        read = await client.get("/doc")
    assert read.headers["etag"] == (own_tag(changed).decode() if voids else OWN)


def test_a_list_is_read_as_entity_tags_whatever_stands_in_them() -> None:
    listed: Any = fields(if_match=f'W/"a,{OWN[1:-1]}", W/{OWN} "\\", {GONE}')
    assert own_tags(listed, b"if-match") == {OWN.encode(), GONE.encode()}
    assert without_own(listed, b"if-match") == fields(if_match=f'W/"a,{OWN[1:-1]}", "\\"')
    assert settled(listed, b"if-match", None, OWN.encode()) == []
    assert as_given(fields(accept="*/*")) == fields(accept="*/*")
