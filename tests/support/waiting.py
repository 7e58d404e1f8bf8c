"""Many clients that wait for one response."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

N = 20


class Held(httpx.AsyncBaseTransport):
    """An upstream each of whose answers is held until the test gives it."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self._answers: list[asyncio.Future[httpx.Response]] = []
        self._came = asyncio.Condition()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = asyncio.get_running_loop().create_future()
        async with self._came:
            self.requests.append(request)
            self._answers.append(answer)
            self._came.notify_all()
        return await answer

    async def have(self, number: int) -> None:
        """Return once so many requests have come."""
        async with asyncio.timeout(5), self._came:
            await self._came.wait_for(lambda: len(self.requests) >= number)

    def answer(self, index: int, status: int = 200, body: Any = b"{}", **fields: str) -> None:
        headers = {"content-length": str(len(body))} if isinstance(body, bytes) else {"transfer-encoding": "chunked"}
        headers.update({name.replace("_", "-"): value for name, value in fields.items()})
        stream = {"content": body if isinstance(body, bytes) else body.pieces()}
        self._answers[index].set_result(httpx.Response(status, headers=headers, **stream))

    def answer_all(self, *args: Any, **fields: str) -> None:
        for index, answer in enumerate(self._answers):
            if not answer.done():
                self.answer(index, *args, **fields)


async def waiting(app: Any, number: int) -> None:
    """Return once so many requests wait for a flight of `app`."""
    async with asyncio.timeout(5):
        while sum(flight.waiting for flight in app.engine.flights.values()) < number:
            await asyncio.sleep(0)


def crowd(client: httpx.AsyncClient, number: int = N, **headers: Any) -> list[asyncio.Task[httpx.Response]]:
    """So many requests at once; a header that is a function gets each one's number."""

    def fields(one: int) -> dict[str, str]:
        return {name: value(one) if callable(value) else value for name, value in headers.items()}

    return [asyncio.ensure_future(client.get("/a", headers=fields(one))) for one in range(number)]
