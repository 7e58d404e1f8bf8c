"""What is forwarded to an upstream: by a fetch that may be stored, and by a request that bypasses the cache."""

from __future__ import annotations

import httpx

from gateway.testing import StubUpstream, running
from tests.support.gateways import THIRTY, gateway, json_answer, seen


async def test_a_route_with_a_ttl_forwards_only_what_is_in_its_key() -> None:
    upstream = StubUpstream(json_answer())
    async with running(gateway(upstream, THIRTY)) as client:
        await client.get(
            "/items/7",
            headers={
                "accept-language": "de",
                "x-forwarded-host": "evil.test",
                "x-custom": "1",
                "user-agent": "phone",
                "if-none-match": '"x"',
            },
        )
    assert set(seen(upstream)) == {
        "host",
        "accept",
        "accept-language",
        "accept-encoding",
        "via",
        "user-agent",
        "x-request-id",
    }
    assert seen(upstream)["user-agent"].startswith("cached-gateway/")
    assert seen(upstream)["accept-encoding"] == "identity"
    assert seen(upstream)["host"] == "api.test"


DANGEROUS = [
    "x-forwarded-host", "x-forwarded-for", "x-forwarded-proto", "forwarded", "x-original-url", "x-rewrite-url",
    "x-http-method-override", "x-method-override", "x-host", "x_user", "x-real-ip", "connection-named",
]  # fmt: skip


async def test_a_route_that_follows_the_origin_forwards_all_but_the_dangerous_headers() -> None:
    upstream = StubUpstream(json_answer())
    dangerous = dict.fromkeys(DANGEROUS, "evil")
    async with running(gateway(upstream)) as client:
        headers = {
            **dangerous,
            "connection": "connection-named",
            "te": "trailers",
            "x-custom": "1",
            "authorization": "Basic x",
        }
        await client.get("/items/7", headers=headers)
    assert not set(seen(upstream)) & set(DANGEROUS)
    assert not set(seen(upstream)) & {"connection", "te", "transfer-encoding"}
    assert (seen(upstream)["x-custom"], seen(upstream)["authorization"]) == ("1", "Basic x")


async def test_a_fetch_that_may_be_stored_tells_the_upstream_of_the_public_url_and_of_no_client() -> None:
    upstream = StubUpstream(json_answer())
    async with running(gateway(upstream, THIRTY, public_url="https://api.example.com")) as client:
        await client.get("/items/7")
    assert (seen(upstream)["x-forwarded-host"], seen(upstream)["x-forwarded-proto"]) == ("api.example.com", "https")
    assert "x-forwarded-for" not in seen(upstream)


async def test_a_request_that_passes_by_tells_the_upstream_of_the_client_believing_only_trusted_proxies() -> None:
    for trusted, chain in (([], "127.0.0.1"), (["127.0.0.0/8"], "198.51.100.7, 127.0.0.1")):
        upstream = StubUpstream(json_answer())
        async with running(gateway(upstream, trusted_proxies=trusted)) as client:
            await client.post("/orders", headers={"x-forwarded-for": "198.51.100.7"}, content=b"{}")
        assert seen(upstream)["x-forwarded-for"] == chain
        assert seen(upstream)["x-forwarded-host"] == "gateway.test"
        assert seen(upstream)["forwarded"].endswith('for=127.0.0.1;proto=http;host="gateway.test"')


async def test_with_a_public_url_no_host_of_a_clients_reaches_the_upstream() -> None:
    upstream = StubUpstream(json_answer())
    async with running(gateway(upstream, THIRTY, public_url="https://api.example.com")) as client:
        for method, header in (("POST", {}), ("GET", {"cookie": "session=1"})):
            await client.request(method, "/items/7", headers={"host": "evil.test", **header})
            told = seen(upstream)
            assert (told["x-forwarded-host"], told["x-forwarded-proto"]) == ("api.example.com", "https")
            assert told["forwarded"] == 'for=127.0.0.1;proto=https;host="api.example.com"'


async def test_an_upstreams_constant_headers_replace_the_clients() -> None:
    upstream = StubUpstream(json_answer())
    settings = {"upstreams": {"api": {"url": "http://api.test", "headers": {"X-Api-Key": "ours"}}}}
    async with running(gateway(upstream, **settings)) as client:
        await client.get("/items/7", headers={"x-api-key": "theirs"})
    assert seen(upstream).get_list("x-api-key") == ["ours"]


async def test_a_body_and_its_length_stream_to_the_upstream_and_back() -> None:
    upstream = StubUpstream(
        lambda request: httpx.Response(
            201, content=request.content, headers={"x-len": request.headers["content-length"]}
        )
    )
    async with running(gateway(upstream)) as client:
        response = await client.post("/orders", content=b"x" * 100_000)
    assert (response.status_code, response.content, response.headers["x-len"]) == (201, b"x" * 100_000, "100000")
