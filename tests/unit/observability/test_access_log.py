"""The access log: one line of JSON for each request, which nothing can forge."""

from __future__ import annotations

import io
import json

from gateway.app.gateway import create_app
from gateway.config.models import Config
from gateway.observability.access_log import JsonAccessLog
from gateway.testing import StubUpstream, running
from tests.support.gateways import THIRTY, json_answer


async def test_every_request_is_a_line_of_json_that_nothing_can_forge() -> None:
    file = io.BytesIO()
    config = {"redis_url": "none", "upstreams": {"api": {"url": "http://api.test"}}, "routes": THIRTY}
    app = create_app(Config.model_validate(config), transport=StubUpstream(json_answer()), log=JsonAccessLog(file))
    async with running(app) as client:
        await client.get("/items/7?token=secret&x=%0a%22")
        await client.get("/items/7?token=secret&x=%0a%22")
    first, second = (json.loads(line) for line in file.getvalue().splitlines())
    assert (first["outcome"], first["stored"], second["outcome"], second["tier"]) == ("miss", True, "hit", "memory")
    assert first["query"] == ["token", "x"]
    assert b"secret" not in file.getvalue()


async def test_a_parameter_that_may_be_a_token_by_itself_is_not_logged() -> None:
    file = io.BytesIO()
    config = {"redis_url": "none", "upstreams": {"api": {"url": "http://api.test"}}}
    config["routes"] = {"rest": {"path": "/{path:path}", "upstream": "api"}}
    app = create_app(Config.model_validate(config), transport=StubUpstream(json_answer()), log=JsonAccessLog(file))
    async with running(app) as client:
        await client.get("/a?eyJhbGciOiJIUzI1NiJ9&short&a-name-that-is-long-enough=1")
    assert json.loads(file.getvalue())["query"] == ["a-name-that-is-long-enough", "…", "short"]


async def test_only_the_share_of_hits_that_is_wanted_is_logged_and_all_else() -> None:
    file = io.BytesIO()
    drawn = iter([0.9, 0.05, 0.3])
    log = JsonAccessLog(file, hits=0.1, draw=lambda: next(drawn))
    config = {"redis_url": "none", "upstreams": {"api": {"url": "http://api.test"}}, "routes": THIRTY}
    app = create_app(Config.model_validate(config), transport=StubUpstream(json_answer()), log=log)
    async with running(app) as client:
        for target in ("/items/7", "/items/7", "/items/7", "/items/8", "/items/7", "/nowhere"):
            await client.get(target)
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [line["path"] for line in lines] == ["/items/7", "/items/7", "/items/8", "/nowhere"]
    assert [line["outcome"] for line in lines] == ["miss", "hit", "miss", "local"]
    assert [line.get("share") for line in lines] == [None, 0.1, None, None]
