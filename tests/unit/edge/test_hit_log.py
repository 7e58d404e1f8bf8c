"""Lines of the access log for hits."""

from __future__ import annotations

import asyncio
import io
import json
import re

import httpx

from gateway.app.gateway import create_app
from gateway.observability.access_log import JsonAccessLog
from gateway.testing import StubUpstream, TurnedClock
from tests.support.edge_lines import GET, Counted, Line, asked


async def test_the_edge_logs_only_the_share_of_hits_that_is_wanted() -> None:
    file = io.BytesIO()
    drawn = iter([0.9, 0.05, 0.2, 0.01])
    upstream = StubUpstream(lambda _: httpx.Response(200, content=b"body", headers={"cache-control": "max-age=60"}))
    config = {
        "redis_url": "none",
        "upstreams": {"api": {"url": "http://api.test"}},
        "routes": {"rest": {"path": "/{path:path}", "upstream": "api", "ttl": "10s"}},
    }
    log = JsonAccessLog(file, hits=0.1, draw=lambda: next(drawn))
    app = Counted(create_app(config, transport=upstream, clock=TurnedClock(), log=log))
    line = Line(app)
    for _ in range(5):
        await asked(line, GET % b"")
    await asyncio.sleep(0)
    assert app.asked == 1
    lines = [json.loads(each) for each in file.getvalue().splitlines()]
    assert [(each["outcome"], each.get("share")) for each in lines] == [("miss", None), ("hit", 0.1), ("hit", 0.1)]


async def test_the_access_log_has_the_same_lines() -> None:
    texts = []
    for edge in (True, False):
        file = io.BytesIO()
        clock = TurnedClock()
        upstream = StubUpstream(lambda _: httpx.Response(200, content=b"body", headers={"cache-control": "max-age=60"}))
        config = {
            "redis_url": "none",
            "upstreams": {"api": {"url": "http://api.test"}},
            "routes": {"rest": {"path": "/{path:path}", "upstream": "api", "ttl": "10s"}},
            "trusted_proxies": ["192.0.2.0/24"],
        }
        app = Counted(create_app(config, transport=upstream, clock=clock, log=JsonAccessLog(file)))
        if not edge:
            app.app.edge = None
        line = Line(app)
        for headers in (b"", b"", b"X-Forwarded-For: 203.0.113.9\r\n", b"X-Request-ID: abc\r\n", b"Host-Is: not\r\n"):
            for target in (b"/o/1", b"/o/1?b=2&a=1", b"/o/%c3%a4%22"):
                await asked(line, (GET % headers).replace(b"/o/1", target))
        await asyncio.sleep(0)
        texts.append(
            re.sub(
                r'("time":"|"request_id":"[0-9a-f]{32}|"seconds":|"upstream_seconds":)[0-9T:.+e-]*',
                "",
                file.getvalue().decode(),
            )
        )
        assert app.asked == (3 if edge else 15)
    assert texts[0] == texts[1]
    assert texts[0].count("\n") == 15
