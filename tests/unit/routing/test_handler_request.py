"""The request that a `@cached` handler sees: its host and links, and none of what its key leaves out."""

from typing import Any

from fastapi import Request

from gateway.testing import running
from tests.support.handlers import app_of, asked, is_hit, of


async def test_a_field_that_connection_names_is_not_seen() -> None:
    async def handler(request: Request) -> str:
        return request.headers.get("x-tenant", "nobody")

    first, second = await asked(app_of(of(handler)), {"connection": "x-tenant", "x-tenant": "evil"}, {})
    assert (first.json(), second.json()) == ("nobody", "nobody")


# --- places ------------------------------------------------------------------------------------------------


async def place(request: Request) -> list[str]:
    return [str(request.url), str(request.base_url), str(request.url_for("place")), request.headers["host"]]


async def test_the_host_is_in_the_key_of_what_reads_it() -> None:
    evil, shop, again = await asked(
        app_of(of(place)), {"host": "evil.test"}, {"host": "shop.test"}, {"host": "shop.test"}
    )
    assert "evil" not in shop.text + again.text
    assert "shop" not in evil.text
    assert is_hit(again)


async def test_an_answer_that_rests_on_the_host_is_explained() -> None:
    app = app_of(of(place))
    await asked(app, {"host": "shop.test"})
    decisions = [
        (await app.explain("GET", "/it", [(b"host", host), (b"accept", b"*/*")])).decision
        for host in (b"shop.test", b"evil.test")
    ]
    assert decisions == ["hit", "miss"]


async def test_links_are_made_of_the_public_url() -> None:
    async def handler(request: Request) -> list[str]:
        forwarded = request.headers.get("x-forwarded-host", "none")
        return [str(request.url_for("handler")), str(request.base_url), forwarded]

    fields = {"host": "evil.test", "x-forwarded-host": "evil.test", "forwarded": "host=evil.test"}
    evil, shop = await asked(app_of(of(handler), public_url="https://shop.test"), fields, {"host": "shop.test"})
    assert evil.json() == shop.json() == ["https://shop.test/it", "https://shop.test/", "shop.test"]
    assert is_hit(shop)


# --- not in the key, not seen ------------------------------------------------------------------------------


async def seen(request: Request) -> list[Any]:
    names = ("authorization", "cookie")
    return [[request.headers.get(name) for name in names], dict(request.cookies), dict(request.query_params)]


async def test_what_is_not_in_the_key_is_not_seen() -> None:
    app = app_of(of(seen, authorization="ignore", cookies=["lang"], query=["q"]))
    async with running(app) as client:
        fields = {"authorization": "Bearer ann", "cookie": "sid=ann; lang=de"}
        first = await client.get("/it?q=1&utm_source=ann&z=2", headers=fields)
        second = await client.get("/it?q=1", headers={"cookie": "lang=de; sid=bob"})
    assert first.json() == second.json() == [[None, "lang=de"], {"lang": "de"}, {"q": "1"}]
    assert is_hit(second)


async def test_what_is_ignored_is_not_seen_by_the_cache_either() -> None:
    app = app_of(of(seen, authorization="ignore", cookies=["lang"]))
    fields = {"authorization": "Bearer ann", "cookie": "sid=ann; lang=de", "if-match": "*"}
    (past,) = await asked(app, fields)
    assert "detail=precondition" in past.headers["cache-status"]
    assert past.json() == [[None, "lang=de"], {"lang": "de"}, {}]


async def test_dropped_parameters_are_seen_by_nobody_but_who_declares_them() -> None:
    async def handler(request: Request, utm_source: str = "") -> list[str]:
        return [utm_source, request.query_params.get("utm_medium", "none")]

    async with running(app_of(of(handler), drop_query=["utm_*"])) as client:
        answers = [
            (await client.get(f"/it?utm_source={source}&utm_medium={medium}")).json()
            for source, medium in (("a", "evil"), ("b", "evil"), ("a", "x"))
        ]
    assert answers == [["a", "none"], ["b", "none"], ["a", "none"]]


# --- arguments ---------------------------------------------------------------------------------------------


async def test_a_cached_handler_reads_its_clients_host_though_links_have_the_public_one() -> None:
    async def orders(request: Request) -> dict[str, str | None]:
        return {"tenant": request.url.hostname, "host": request.headers["host"]}

    app = app_of(of(orders), public_url="https://shop.test")
    acme, umbrella = await asked(app, {"host": "acme.test"}, {"host": "umbrella.test"})
    assert acme.json() == {"tenant": "acme.test", "host": "acme.test"}
    assert umbrella.json() == {"tenant": "umbrella.test", "host": "umbrella.test"}
