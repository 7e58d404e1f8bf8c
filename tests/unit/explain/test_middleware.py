"""`Gateway-Explain`: one live request explained to who has the admin token, and to nobody else."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import httpx

from gateway.app.gateway import Gateway, create_app
from gateway.config.loader import load
from gateway.explain.middleware import MOST_BYTES, encoded
from gateway.explain.trace import Trace
from gateway.observability.access_log import JsonAccessLog
from gateway.testing import StubUpstream, TurnedClock, running
from tests.support.edge_lines import GET, Counted, Line, asked
from tests.support.gateways import status_of

CONFIG: dict[str, Any] = {
    "redis_url": "none",
    "upstreams": {"api": {"url": "http://api.test"}},
    "routes": {"rest": {"path": "/{path:path}", "upstream": "api", "ttl": "10s"}},
}
TOKEN = {"gateway-explain": "secret"}


class Seeing(StubUpstream):
    """An upstream that remembers the headers it was sent."""

    def __init__(self) -> None:
        super().__init__(lambda request: httpx.Response(200, text="body", headers={"cache-control": "max-age=60"}))
        self.headers: list[httpx.Headers] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.headers.append(request.headers)
        return await super().handle_async_request(request)


def gateway_with(tmp_path: Path, upstream: StubUpstream, *, token: str | None = "secret", **given: Any) -> Gateway:
    path = tmp_path / "gateway.yaml"
    path.write_text(json.dumps(CONFIG))
    loaded = load(path, environ={"GATEWAY_ADMIN_TOKEN": token} if token else {}, dotenv=None)
    return create_app(loaded, transport=upstream, clock=TurnedClock(), **given)


def told(response: httpx.Response) -> dict[str, Any]:
    text = response.headers["gateway-explained"]
    assert text[0] == text[-1] == ":"
    trace: dict[str, Any] = json.loads(base64.b64decode(text[1:-1]))
    return trace


async def test_a_request_with_the_token_tells_why_it_is_answered_so(tmp_path: Path) -> None:
    async with running(gateway_with(tmp_path, Seeing())) as client:
        first = await client.get("/a?b=2&a=1", headers=TOKEN)
        second = await client.get("/a?b=2&a=1", headers=TOKEN)
    assert (told(first)["request"], told(first)["route"]) == ("GET /a?b=2&a=1", "rest")
    assert "entry" not in told(first)
    assert told(second)["entry"]["tier"] == "memory"
    assert told(second)["ttl"]["value"] == "10s"
    assert [first.text, second.text] == ["body", "body"]
    assert status_of(second).startswith("gateway; hit")
    assert second.headers.get_list("cache-control") == ["no-store"]


async def test_the_header_reaches_no_upstream_no_key_and_no_log(tmp_path: Path) -> None:
    upstream, file = Seeing(), io.BytesIO()
    async with running(gateway_with(tmp_path, upstream, log=JsonAccessLog(file))) as client:
        for method in ("GET", "POST"):
            for headers in (TOKEN, {"gateway-explain": "wrong-guess"}, {}):
                await client.request(method, "/a", headers=headers)
    assert upstream.asked == 1 + 3
    assert all("gateway-explain" not in headers for headers in upstream.headers)
    assert b"secret" not in file.getvalue()
    assert b"wrong-guess" not in file.getvalue()
    assert b"gateway-explain" not in file.getvalue().lower()


async def test_without_the_right_token_nothing_is_told(tmp_path: Path) -> None:
    async with running(gateway_with(tmp_path, Seeing())) as client:
        for given in ("", "secre", "secret2", "Bearer secret"):
            response = await client.get("/a", headers={"gateway-explain": given})
            assert response.status_code == 200
            assert "gateway-explained" not in response.headers
            assert response.headers["cache-control"] != "no-store"
        twice = await client.get("/a", headers=[("gateway-explain", "secret"), ("gateway-explain", "secret")])
    assert "gateway-explained" not in twice.headers


async def test_without_a_token_of_the_gateways_nothing_is_told(tmp_path: Path) -> None:
    async with running(gateway_with(tmp_path, Seeing(), token=None)) as client:
        for given in ("", "secret", "None"):
            response = await client.get("/a", headers={"gateway-explain": given})
            assert "gateway-explained" not in response.headers


async def test_a_named_token_with_the_role_of_reading_is_one_of_them() -> None:
    tokens = {
        "support": {"token": "s" * 16, "roles": ["read"]},
        "ci": {"token": "c" * 16, "roles": ["purge", "revoke"]},
    }
    app = create_app({**CONFIG, "admin_tokens": tokens}, transport=Seeing(), clock=TurnedClock())
    async with running(app) as client:
        answers = [await client.get("/a", headers={"gateway-explain": each["token"]}) for each in tokens.values()]
    assert told(answers[0])["route"] == "rest"
    assert "gateway-explained" not in answers[1].headers


async def test_whoever_guesses_is_told_nothing_for_a_minute(tmp_path: Path) -> None:
    async with running(gateway_with(tmp_path, Seeing())) as client:
        for number in range(10):
            await client.get("/a", headers={"gateway-explain": f"guess {number}"})
        response = await client.get("/a", headers=TOKEN)
    assert response.status_code == 200
    assert "gateway-explained" not in response.headers


async def test_the_edge_leaves_such_a_request_to_the_app(tmp_path: Path) -> None:
    app = Counted(gateway_with(tmp_path, Seeing()))
    line = Line(app)
    for _ in range(3):
        await asked(line, GET % b"")
    assert app.asked == 1
    answer = await asked(line, GET % b"Gateway-Explain: secret\r\n")
    assert b"gateway-explained: :" in bytes(answer)
    assert app.asked == 2
    await asked(line, GET % b"")
    assert app.asked == 2


def test_a_trace_that_is_too_long_keeps_its_decision() -> None:
    trace = Trace(request="GET /" + "a" * 10_000, decision="hit", why="fresh", dropped=("x" * 10_000,))
    text = base64.b64decode(encoded(trace)[1:-1])
    assert len(text) <= MOST_BYTES
    assert json.loads(text)["decision"] == "hit"
