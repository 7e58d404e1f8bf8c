"""A refresh behind a `@cached` handler's answer: the request is replayed through the app, so that dependencies made for
it live while the handler runs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.types import Message, Scope

from gateway.context import SCOPE_KEY, RequestContext
from gateway.errors import UpstreamUnreachable
from gateway.http.headers import Headers
from gateway.policy.keys import Plan
from gateway.routing.handler_settings import Cached, Runtime
from gateway.upstreams.response import Fetched

_REPLAY = "gateway.replay"


class Replay:
    """The result of a replayed request."""

    def __init__(self) -> None:
        self.result: asyncio.Future[tuple[Plan, Fetched]] = asyncio.get_running_loop().create_future()

    def fulfil(self, plan: Plan, fetched: Fetched) -> None:
        if not self.result.done():
            self.result.set_result((plan, fetched))


def replay_of(scope: Scope) -> Replay | None:
    """The replay of a request; None if a client sent it."""
    found = scope.get(_REPLAY)
    return found if isinstance(found, Replay) else None


@dataclass(frozen=True)
class ReplayOrigin:
    """The answers of a request that is replayed."""

    runtime: Runtime
    exchange: RequestContext
    settings: Cached
    plan: Plan

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def deadline(self) -> float:
        return self.settings.deadline

    def refusal(self) -> None:
        """None: a handler is never full."""

    async def fetch(self, method: str, headers: Headers) -> Fetched:
        """Raises UpstreamUnreachable if the request no longer reaches the handler: a dependency refused it."""
        replay = Replay()
        running = asyncio.ensure_future(self.runtime.inner(self._scope(replay), _no_body, _ignore))
        try:
            await asyncio.wait((running, replay.result), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            running.cancel()
            await asyncio.wait((running,))
            raise
        if not replay.result.done():
            await running
            raise UpstreamUnreachable(self.name, "the replayed request did not reach its handler")
        # What follows the answer (background tasks, the end of dependencies) is not waited for.
        self.runtime.engine.following.spawn(running)
        plan, fetched = replay.result.result()
        if plan.base != self.plan.base:
            await fetched.body.aclose()
            raise UpstreamUnreachable(self.name, "the replayed request now has a different key")
        return fetched

    def _scope(self, replay: Replay) -> Scope:
        first = self.exchange
        copy = RequestContext(
            first.request_id,
            first.began,
            "GET",
            first.client,
            first.scheme,
            first.host,
            first.target,
            first.headers,
            scope=first.scope,
        )
        state = {**first.scope.get("state", {})}
        return {**first.scope, "method": "GET", SCOPE_KEY: copy, _REPLAY: replay, "state": state}


async def _no_body() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _ignore(message: Message) -> None:
    return None
