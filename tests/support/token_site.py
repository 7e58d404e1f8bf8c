"""A gateway that verifies tokens, whose edge a test watches."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import httpx

from gateway.edge.hits import Edge
from gateway.identity.key_source import Stored
from gateway.testing import StubUpstream, TurnedClock
from tests.support.edge_lines import Counted, Line, asked
from tests.support.gateways import gateway
from tests.support.tokens import TestIssuer

issuer = TestIssuer()
SHOP = {"issuer": issuer.url, "jwks": json.loads(issuer.jwks), "audience": ["shop-api"]}


class Site:
    """A gateway whose edge a test watches, with one upstream that answers for 10,000 s."""

    def __init__(
        self, clock: TurnedClock, more: Mapping[str, Any] = MappingProxyType({}), /, **routes: dict[str, Any]
    ) -> None:
        self.clock = clock
        self.upstream = StubUpstream(self._answer)
        common = {"upstream": "api", "ttl": "10000s", "identity": ["shop"]}
        named = {name: {**common, "path": f"/{name}", **route} for name, route in routes.items()}
        self.app = gateway(self.upstream, named, clock=clock, identity={"shop": SHOP}, **more)
        self.use_keys(issuer)
        self.counted = Counted(self.app)
        self.line = Line(self.counted)

    @staticmethod
    def _answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=request.headers.get("x-user", "all").encode())

    def use_keys(self, of: TestIssuer) -> None:
        source: Any = self.app.worker_state.providers["shop"].source
        source._use(Stored(self.clock.now(), of.jwks))

    @property
    def edge(self) -> Edge:
        assert self.app.edge is not None
        return self.app.edge

    def token(self, user: str = "anna", lives: float = 600, **claims: Any) -> bytes:
        now = self.clock.now()
        return issuer.sign("Ed25519", **{"sub": user, "iat": now, "exp": now + lives, **claims})

    async def ask(
        self, path: str, token: bytes | None, more: bytes = b"", line: Line | None = None
    ) -> tuple[int, bytes]:
        """The status and the body of a response."""
        field = b"" if token is None else b"Authorization: Bearer " + token + b"\r\n"
        request = b"GET /%b HTTP/1.1\r\nHost: gateway.test\r\n%b%b\r\n" % (path.encode(), field, more)
        head, _, body = (await asked(line or self.line, request)).partition(b"\r\n\r\n")
        return int(head.split(b" ")[1]), body

    async def at_edge(self, path: str, token: bytes | None, more: bytes = b"", line: Line | None = None) -> bool:
        """Whether a request is answered with 200, and before the app."""
        before = self.counted.asked
        status, _ = await self.ask(path, token, more, line)
        return status == 200 and self.counted.asked == before


OWN = {"per": ["sub"], "forward": {"x-user": "sub"}}
