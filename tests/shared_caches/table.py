"""docs/keys.md, made by asking a gateway: what of a request is in the key, and what is said downstream.

    python -m tests.shared_caches.table     writes the page (`make docs`)

Nothing is read from the code that decides: each row is asked for with one input at a time, by two users, and the cell
says what became of that. A test holds that the page is what this would write.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from gateway.app.gateway import Gateway, create_app
from gateway.observability.access_log import silent
from gateway.policy.epochs import EVERYTHING
from gateway.testing import running
from tests.shared_caches.handlers import router
from tests.shared_caches.origin import echo
from tests.shared_caches.rows import INPUTS, Input, Row, rows

PAGE = Path(__file__).parents[2] / "docs" / "keys.md"

_HEAD = """<!-- Made by `make docs` from tests/shared_caches; edit that. -->

# Cache keys, and fields for downstream caches

The party that decides a response's lifetime must know its inputs. So everything that a route, a part or a `@cached`
handler can see of a request is in the cache key, or the response is not shared; and a response whose key holds a
request field has it in `Vary` for downstream caches, and `private` if the field identifies the client.

Each cell is the result of a test: two users send the same request, with this one input different.

| cell | handling of the input |
|---|---|
| key | forwarded, and part of the key: each value has its own response |
| – | neither forwarded nor part of the key: all share one response |
| passes | a request with it bypasses the cache |
| unshared | the response is not stored |

The upstream of routes with their own `ttl` sends `Cache-Control: max-age=60` and no `Vary`; that of `ttl: origin` has
in `Vary` all fields that it reads. Handlers send `Cache-Control: max-age=60`. The last two columns are the response
fields for a request with the keyed inputs. A row *undeclared* reads all of these inputs from the `Request` without
declaring any.
"""


@dataclass(frozen=True)
class Cells:
    row: Row
    cells: tuple[str, ...]
    vary: str
    cache_control: str


LEAK = "another's answer"
"""The cell of an input that is seen and in no key. No row may have one."""


def settings() -> dict[str, Any]:
    """The configuration of a gateway that has all rows."""
    routes: dict[str, Any] = {}
    for row in rows():
        routes |= row.routes
    return {
        "redis_url": "none",
        "access_log": False,
        "upstreams": {name: {"url": f"http://{name}.test", "breaker_failures": 0} for name in ("plain", "honest")},
        "routes": routes,
    }


class _Upstreams(httpx.AsyncBaseTransport):
    def __init__(self) -> None:
        self._by_host = {
            f"{name}.test": httpx.ASGITransport(echo(honest=name == "honest")) for name in ("plain", "honest")
        }

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._by_host[request.url.host].handle_async_request(request)


async def measured() -> list[Cells]:
    app = create_app(settings(), transport=_Upstreams(), log=silent)
    app.include_router(router)
    async with running(app) as client:
        return [await _measure(app, client, row) for row in rows()]


async def _measure(app: Gateway, client: httpx.AsyncClient, row: Row) -> Cells:
    cells, downstream = [], []
    for each in INPUTS:
        # What one input left behind must not stand in for another's answers.
        await app.state.gateway.engine.tiers.purges.purge([EVERYTHING], by="the table")
        cell, response = await _cell(client, row, each)
        cells.append(cell)
        if cell in ("key", "unshared", "passes"):
            downstream.append(response)
    if not downstream:
        downstream.append(await client.get(row.path))
    vary = _joined(value for response in downstream for value in response.headers.get_list("vary", split_commas=True))
    control = [response.headers.get("cache-control", "") for response in downstream]
    return Cells(row, tuple(cells), vary, _directives(control))


async def _cell(client: httpx.AsyncClient, row: Row, given: Input) -> tuple[str, httpx.Response]:
    """What becomes of an input, and the second answer to the first user."""

    async def ask(user: str) -> httpx.Response:
        url = f"{row.path}?{given.query.format(user=user)}" if given.query else row.path
        response = await client.get(url, headers=given.headers(user))
        assert response.status_code == row.status, f"{row.id}, {given.name}: {response.status_code} {response.text}"
        return response

    await ask("ann")
    again = await ask("ann")
    other = await ask("bob")
    if "ann" in other.text:
        return LEAK, other
    status = again.headers.get("cache-status", "")
    if "fwd=bypass" in status:
        return "passes", again
    if "; hit" not in status:
        return "unshared", again
    return ("key" if "ann" in again.text else "–"), again


def _joined(names: Iterable[str]) -> str:
    return ", ".join(sorted({name.strip().title() for name in names if name.strip()}))


def _directives(values: Iterable[str]) -> str:
    """Each of them once, without the seconds of what is jittered."""
    return " or ".join(sorted({re.sub(r"max-age=\d+", "max-age", value) or "none" for value in values}))


def page(found: Iterable[Cells]) -> str:
    lines = [_HEAD]
    kind = ""
    for each in found:
        if each.row.kind != kind:
            kind = each.row.kind
            names = [given.name for given in INPUTS]
            lines += ["", f"## {kind.capitalize()}", "", "| | " + " | ".join(names) + " | `Vary` | `Cache-Control` |"]
            lines.append("|---" * (len(names) + 3) + "|")
        cells = " | ".join(each.cells)
        lines.append(f"| {each.row.name} | {cells} | {each.vary or '–'} | {each.cache_control} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(asyncio.run(measured())))
