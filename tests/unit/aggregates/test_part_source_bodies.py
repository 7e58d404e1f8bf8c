"""What an upstream may send as a part's body: compressed, marked, empty, with numbers of any size."""

from __future__ import annotations

import gzip
import zlib
from typing import Any

import brotli
import httpx
import pytest
from fastapi import APIRouter
from pydantic import BaseModel

from gateway.aggregates.typed import aggregate
from gateway.aggregates.typed import part as typed_part
from gateway.http.codings import zstd
from gateway.testing import TurnedClock, running
from tests.support.shop import Shop, home, part, said

# Each is written in another way by who reads it into a float or an int of 64 bits.
EXACT = b'{"id":18446744073709551617,"one":1.0,"big":1e400,"zero":-0,"pi":3.14159265358979323846,"e":1E5,"f":"\\ud800"}'
JSON = {"content-type": "application/json", "cache-control": "max-age=60"}


def shop_of(*, body: bytes = EXACT, status: int = 200, **headers: str) -> Shop:
    shop = Shop()
    shop.set(
        "/a", httpx.Response(status, content=body, headers=JSON | {k.replace("_", "-"): v for k, v in headers.items()})
    )
    return shop


async def whole(shop: Shop, parts: dict[str, Any], clock: TurnedClock, **settings: Any) -> httpx.Response:
    async with running(home(shop, parts, clock, **settings)) as client:
        return await client.get("/home/1?n=18446744073709551617")


# --- numbers -------------------------------------------------------------------------------------------------

SHAPES: list[tuple[dict[str, Any], bytes]] = [
    ({}, b'{"a":' + EXACT + b"}"),
    ({"deny": ["x"]}, b'{"a":' + EXACT + b"}"),
    ({"select": "{i: id, e: e, z: zero}"}, b'{"a":{"i":18446744073709551617,"e":1E5,"z":-0}}'),
    ({"allow": ["one", "pi"], "rename": {"pi": "tau"}}, b'{"a":{"one":1.0,"tau":3.14159265358979323846}}'),
    ({"group": None, "deny": ["f"]}, EXACT.replace(b',"f":"\\ud800"', b"")),
]


@pytest.mark.parametrize("envelope", [False, True])
@pytest.mark.parametrize(("settings", "expected"), SHAPES)
async def test_numbers_keep_their_digits_however_a_part_is_shaped(
    settings: dict[str, Any], expected: bytes, envelope: bool, clock: TurnedClock
) -> None:
    response = await whole(shop_of(), {"a": part("/a", **settings)}, clock, envelope=envelope)
    assert response.content.startswith(expected[:-1])


async def test_numbers_keep_their_digits_where_parts_are_merged(clock: TurnedClock) -> None:
    shop = shop_of(body=b'{"o":{"a":1.0,"l":[1e400]}}')
    shop.set("/b", b'{"o":{"b":18446744073709551617,"l":[-0]}}')
    parts = {"a": part("/a", group=None), "b": part("/b", group=None)}
    response = await whole(shop, parts, clock, merge="concat")
    assert response.content == b'{"o":{"a":1.0,"l":[1e400,-0],"b":18446744073709551617}}'


async def test_numbers_reach_other_parts_as_they_are_spelled(clock: TurnedClock) -> None:
    shop = shop_of(body=b'{"ids":[18446744073709551617,1.50,1E5,-0,18446744073709551617],"one":0.10}')
    each = part("/item/{item}", for_each="a.ids", optional=True)
    parts = {"a": part("/a"), "each": each, "b": part("/b?x={a.one}", headers={"x-one": "{a.ids[0]}"}, optional=True)}
    await whole(shop, parts, clock)
    items = ["/item/-0", "/item/1.50", "/item/18446744073709551617", "/item/1E5"]
    assert sorted(shop.asked) == ["/a", "/b?x=0.10", *items]
    assert [each.headers["x-one"] for each in shop.requests if each.url.path == "/b"] == ["18446744073709551617"]


@pytest.mark.parametrize(
    ("when", "holds"),
    [
        ("a.id > `18446744073709551616`", True),
        ("a.id == `18446744073709551616`", False),
        ("a.id == to_number(query.n)", True),
        ("a.big > `1e399`", True),
        ("a.one == `1`", True),
        ("a.pi == `3.14159265358979323847`", False),
        ("query.n > `1`", False),
    ],
)
async def test_conditions_compare_numbers_exactly(when: str, holds: bool, clock: TurnedClock) -> None:
    shop = shop_of()
    shop.set("/b", b"1")
    response = await whole(shop, {"a": part("/a", select="id"), "b": part("/b", when=when)}, clock)
    assert (said(response)["b"] == "miss") is holds


async def test_constants_and_defaults_may_have_numbers_of_any_size(clock: TurnedClock) -> None:
    big = 2**70
    parts = {"a": part("/a", default=[big], decode="json"), "b": {"static": {"b": big}}}
    response = await whole(shop_of(status=500), parts, clock)
    assert response.json() == {"a": [big], "b": {"b": big}}


async def test_elements_of_a_batch_keep_their_digits_and_are_known_by_them(clock: TurnedClock) -> None:
    shop = shop_of(body=b"[18446744073709551617,18446744073709551618,3]")
    shop.set("/items?ids=18446744073709551617%2C18446744073709551618%2C3", gzip.compress(
        b'[{"id":18446744073709551618,"p":2.0},{"id":"3","p":1e400},{"id":18446744073709551617,"p":1.0},7]'
    ), content_encoding="gzip")  # fmt: skip
    parts = {"a": part("/a"), "b": part("/items/{item}", for_each="a[*]", batch="/items?ids={ids}", select="p")}
    assert (await whole(shop, parts, clock)).content.endswith(b'"b":[1.0,2.0,1e400]}')


# --- codings -------------------------------------------------------------------------------------------------

CODED = {
    "gzip": gzip.compress(EXACT),
    "deflate": zlib.compress(EXACT),
    "br": brotli.compress(EXACT),
    "zstd": zstd.compress(EXACT),
    "gzip, br": brotli.compress(gzip.compress(EXACT)),
}


@pytest.mark.parametrize("coding", CODED)
@pytest.mark.parametrize("settings", [{}, {"deny": ["x"]}])
async def test_a_compressed_part_is_decoded(coding: str, settings: dict[str, Any], clock: TurnedClock) -> None:
    shop = shop_of(body=CODED[coding], content_encoding=coding)
    async with running(home(shop, {"a": part("/a", **settings)}, clock)) as client:
        first, second = await client.get("/home/1"), await client.get("/home/1")
    assert first.content == second.content == b'{"a":' + EXACT + b"}"
    assert said(second) == {"a": "hit"}


async def test_a_route_that_shares_a_compressed_part_gives_it_as_it_came(clock: TurnedClock) -> None:
    shop = shop_of()
    shop.set("/products/1", httpx.Response(200, content=CODED["gzip"], headers=JSON | {"content-encoding": "gzip"}))
    async with running(home(shop, {"a": part("/products/{user}")}, clock)) as client:
        assert (await client.get("/home/1")).content == b'{"a":' + EXACT + b"}"
        shared = await client.get("/products/1")
    assert (shared.headers["content-encoding"], shared.content) == ("gzip", EXACT)
    assert len(shop.asked) == 1


@pytest.mark.parametrize(
    ("body", "coding", "detail"),
    [
        (gzip.compress(b"[" + b" " * 200_000 + b"]"), "gzip", "larger than 100000 bytes, decompressed"),
        (CODED["gzip"][:-9], "gzip", "its compressed body is cut"),
        (EXACT, "gzip", "it is not valid gzip"),
        (EXACT, "compress", "not supported"),
    ],
)
async def test_a_part_that_can_not_be_decompressed_has_failed_with_the_reason(
    body: bytes, coding: str, detail: str, clock: TurnedClock
) -> None:
    shop = shop_of()
    # As a stream: httpx decodes what is handed to it as content.
    shop.set("/a", httpx.Response(200, stream=httpx.ByteStream(body), headers=JSON | {"content-encoding": coding}))
    parts = {"a": part("/a", optional=True), "b": {"static": 1}}
    response = await whole(shop, parts, clock, errors=True, max_body="100000B")
    assert said(response)["a"] == "wrong-type"
    assert detail in response.json()["_errors"]["a"]["detail"]
    shop.set("/a", httpx.Response(200, stream=httpx.ByteStream(body), headers=JSON | {"content-encoding": coding}))
    required = await whole(shop, {"a": part("/a"), "b": {"static": 1}}, clock, max_body="100000B")
    assert (required.status_code, detail in required.json()["detail"]) == (502, True)


# --- marks, and nothing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"deny": ["x"]}])
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"\xef\xbb\xbf" + EXACT, "application/json; charset=utf-8"),
        (b"\xef\xbb\xbf" + EXACT, "application/problem+json"),
        (EXACT.decode().encode("utf-16"), "application/json; charset=utf-16"),
        (EXACT.decode().encode("utf-32-le"), "application/json"),
    ],
)
async def test_a_byte_order_mark_does_not_void_a_part(
    body: bytes, kind: str, settings: dict[str, Any], clock: TurnedClock
) -> None:
    shop = shop_of(body=body, content_type=kind)
    assert (await whole(shop, {"a": part("/a", **settings)}, clock)).content == b'{"a":' + EXACT + b"}"


NOTHING = [(204, b""), (205, b""), (200, b"")]


@pytest.mark.parametrize(("status", "body"), NOTHING)
@pytest.mark.parametrize(
    "settings",
    [{}, {"optional": True}, {"default": 1}, {"select": "length(@)"}, {"decode": "xml"}, {"decode": "text"}],
)
async def test_nothing_is_null_and_the_answer_complete(
    status: int, body: bytes, settings: dict[str, Any], clock: TurnedClock
) -> None:
    parts = {"a": part("/a", **settings), "b": {"static": 1}}
    response = await whole(shop_of(status=status, body=body), parts, clock)
    assert (response.content, response.headers["gateway-complete"]) == (b'{"a":null,"b":1}', "?1")
    assert said(response) == {"a": "miss"}


async def test_nothing_adds_nothing_to_the_root_and_other_parts_find_no_value_in_it(clock: TurnedClock) -> None:
    parts = {"a": part("/a", group=None), "b": {"static": 1}, "c": part("/c/{a.id}")}
    response = await whole(shop_of(status=204, body=b""), parts, clock)
    assert response.json() == {"b": 1, "c": None}
    assert said(response)["c"] == 'skipped;missing="a.id"'


class Thing(BaseModel):
    id: int


@pytest.mark.parametrize(
    ("model", "settings", "status", "text"),
    [
        (Thing, {"optional": True}, 200, "miss"),
        (Thing | None, {}, 200, "miss"),
        (Thing, {"default": {"id": 0}}, 200, "wrong-type;default"),
        (Thing, {}, 502, ""),
    ],
)
async def test_nothing_is_of_a_typed_parts_type_where_null_is(
    model: Any, settings: dict[str, Any], status: int, text: str, clock: TurnedClock
) -> None:
    app = home(shop_of(status=204, body=b""), {"user": part("/users/{user}")}, clock)
    router = APIRouter()
    aggregate(router, "/typed", parts={"a": typed_part(model, **part("/a", **settings))}, name="typed")
    app.include_router(router)
    async with running(app) as client:
        response = await client.get("/typed")
    assert response.status_code == status
    assert status != 200 or said(response)["a"] == text


class Exact(BaseModel):
    id: int
    one: float
    f: str


async def test_a_typed_part_is_shown_as_it_came(clock: TurnedClock) -> None:
    app = home(shop_of(body=b"\xef\xbb\xbf" + EXACT), {"user": part("/users/{user}")}, clock)
    router = APIRouter()
    aggregate(router, "/typed", parts={"a": typed_part(Exact, **part("/a"))}, name="typed")
    app.include_router(router)
    async with running(app) as client:
        assert (await client.get("/typed")).content == b'{"a":' + EXACT + b"}"


async def test_what_can_not_be_read_is_found_out_once_for_each_content(clock: TurnedClock) -> None:
    shop = shop_of(body=b'{"a":', cache_control="max-age=60")
    app = home(shop, {"a": part("/a", optional=True), "b": {"static": 1}}, clock, errors=True)
    async with running(app) as client:
        for _ in range(3):
            response = await client.get("/home/1")
            assert said(response) == {"a": "wrong-type"}
            assert "not valid JSON" in response.json()["_errors"]["a"]["detail"]
    assert (len(shop.asked), app.aggregates[0].kit.body_cache.parsed) == (1, 1)


async def test_values_of_a_constant_part_reach_others(clock: TurnedClock) -> None:
    shop = Shop()
    shop.set("/p/1", b"1.0")
    shop.set("/p/2", b"2.0")
    parts = {"all": {"static": [1, 2]}, "p": part("/p/{item}", for_each="all[*]"), "one": part("/p/{all[1]}")}
    assert (await whole(shop, parts, clock)).content == b'{"all":[1,2],"p":[1.0,2.0],"one":2.0}'


@pytest.mark.parametrize("levels", [200, 300, 700, 900, 1000, 1023, 1100, 5000])
@pytest.mark.parametrize("leaf", [b"1", b"1.0", b'"\\ud800"'])
async def test_a_deep_part_is_shown_or_refused_whatever_is_in_it(levels: int, leaf: bytes, clock: TurnedClock) -> None:
    body = b'{"a":' * levels + leaf + b"}" * levels
    kinds: dict[str, dict[str, Any]] = {"spliced": {}, "shaped": {"deny": ["x"]}, "rooted": {"group": None}}
    app = home(shop_of(body=body), {name: part("/a", optional=True, **each) for name, each in kinds.items()}, clock)
    router = APIRouter()
    aggregate(router, "/typed", parts={"a": typed_part(dict[str, Any], **part("/a", optional=True))}, name="typed")
    app.include_router(router)
    async with running(app) as client:
        response, typed = await client.get("/home/1"), await client.get("/typed")
    seen = said(response)
    assert (response.status_code, typed.status_code) == (200, 200)
    assert (seen["spliced"], seen["shaped"] == "wrong-type", seen["rooted"] == "wrong-type") in (
        ("miss", False, False),
        ("miss", True, True),
        ("wrong-type", True, True),
    )
    assert (seen["spliced"] == "miss") == (body in response.content)
