"""The order of routes, and what has none."""

from __future__ import annotations

import httpx

from gateway.testing import StubUpstream, running
from tests.support.gateways import THIRTY, gateway, json_answer


async def test_the_more_specific_path_wins_whatever_the_order() -> None:
    routes = {
        name: {"path": path, "upstream": "api", "upstream_path": f"/{name}"}
        for name, path in [
            ("rest", "/{p:path}"),
            ("one", "/a/{x}"),
            ("two", "/a/b"),
            ("three", "/a/{x}/c"),
            ("four", "/a/b-{x}"),
        ]
    }
    for order in (list(routes), list(reversed(routes))):
        upstream = StubUpstream(lambda request: httpx.Response(200, text=request.url.path))
        async with running(gateway(upstream, {name: routes[name] for name in order})) as client:
            paths = ["/a/b", "/a/z", "/a/b-9", "/a/b/c", "/q/r"]
            assert [(await client.get(path)).text for path in paths] == ["/two", "/one", "/four", "/three", "/rest"]


async def test_an_unknown_path_is_a_problem_too() -> None:
    async with running(gateway(StubUpstream(json_answer()), THIRTY)) as client:
        response = await client.get("/nowhere")
    assert (response.status_code, response.json()["type"]) == (404, "/problems/not-found")
