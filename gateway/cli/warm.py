"""`gateway warm`: requests a list of targets from a running gateway, so that they are in its cache before clients need
them.

The requests go through the gateway like any other: its key function, its collapsing, its limits. Targets with the same
stored response are requested once.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from gateway.config.route import READABLE
from gateway.errors import GatewayError, RequestRefused
from gateway.http.target import normalise, select_query
from gateway.upstreams.httpx_api import httpx


class WarmError(GatewayError):
    """The list is unusable; the message says which line, or what to write."""


class _LogLine(msgspec.Struct):
    method: str = ""
    path: str = ""
    query: list[str] | None = None
    status: int = 0


@dataclass(frozen=True)
class Wanted:
    """The targets to request, the most requested first; a read with content is its line. `skipped` lines of a log had
    queries, whose values it lacks."""

    targets: list[str]
    skipped: int = 0


@dataclass
class Warmed:
    """The result: responses by `Cache-Status`, and the first few failures."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    """Why, by target."""

    def add(self, target: str, outcome: str, why: str = "") -> None:
        self.outcomes[outcome] += 1
        if outcome == "failed" and len(self.failed) < 5:
            self.failed.append(target)
            self.reasons[target] = why


def wanted(path: Path, *, top: int | None, drop_query: tuple[str, ...] = ()) -> Wanted:
    """The targets that a file names: a line is a URL or path, or a read with content (`QUERY /search {"q": "shoes"}`),
    or one of an access log in JSON lines. Raises WarmError."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise WarmError(f"{path} can't be read: {error.strerror}") from None
    counts: Counter[str] = Counter()
    skipped = 0
    for number, line in enumerate(_whole_lines(text), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("{"):
            target = _of_log(line, path, number)
        elif _READ.match(line):
            target = _of_read(line, path, number, drop_query)
        else:
            target = _of_url(line, path, number, drop_query)
        skipped += target is None
        if target:
            counts[target] += 1
    return Wanted([target for target, _ in counts.most_common(top)], skipped)


def _whole_lines(text: str) -> list[str]:
    """The lines of a file; without the last line of a log that is still being written."""
    lines = text.splitlines()
    unfinished = lines and text[-1] not in "\r\n" and lines[-1].startswith("{") and not lines[-1].endswith("}")
    return lines[:-1] if unfinished else lines


def _of_url(text: str, path: Path, number: int, drop_query: tuple[str, ...]) -> str:
    parts = urlsplit(text)
    if "://" in text and parts.scheme not in ("http", "https"):
        raise WarmError(f"{path} line {number}: {text} isn't an http:// or https:// URL or a path")
    if "://" not in text and not text.startswith("/"):
        raise WarmError(f"{path} line {number}: {text} is neither a path, which begins with /, nor a URL")
    try:
        target = normalise((parts.path or "/").encode(), parts.query.encode())
    except RequestRefused as refused:
        raise WarmError(f"{path} line {number}: {text} isn't a URL of the gateway: {refused.detail}") from None
    pairs = select_query(target.query, None, drop_query)
    return f"{target.path}?{'&'.join(pairs)}" if pairs else target.path


_READ = re.compile(r"([A-Z]+)[ \t]+(\S+)(?:[ \t]+(.*))?")
"""A line of a read with content: its method, its URL, its body."""


def _of_read(text: str, path: Path, number: int, drop_query: tuple[str, ...]) -> str:
    found = _READ.fullmatch(text)
    assert found is not None
    method, url, body = found.groups()
    if method not in (*READABLE, "GET"):
        raise WarmError(f"{path} line {number}: {method} is no read; expected GET, {', '.join(READABLE)}")
    target = _of_url(url, path, number, drop_query)
    return target if method == "GET" else f"{method} {target} {body or ''}"


def _of_log(text: str, path: Path, number: int) -> str | None:
    """The target of a line; empty if it is irrelevant, None if it had a query."""
    try:
        line = msgspec.json.decode(text, type=_LogLine)
    except msgspec.DecodeError as error:
        raise WarmError(f"{path} line {number} isn't a line of the access log: {error}") from None
    if line.method != "GET" or line.status != 200 or not line.path:
        return ""
    return None if line.query else line.path


async def warm(
    base: str,
    targets: Iterable[str],
    *,
    rate: float | None,
    concurrency: int,
    told: Callable[[], object] = lambda: None,
    transport: httpx.AsyncBaseTransport | None = None,
    headers: dict[str, str] | None = None,
) -> Warmed:
    """Request `targets` from the gateway at `base`, at most `concurrency` at once and `rate` per second; `told` is
    called after each."""
    base = base_url(base)
    warmed = Warmed()
    places = asyncio.Semaphore(concurrency)
    loop = asyncio.get_running_loop()
    limits = httpx.Limits(max_connections=concurrency)
    async with (
        httpx.AsyncClient(
            base_url=base, trust_env=False, timeout=30, limits=limits, transport=transport, headers=headers
        ) as client,
        asyncio.TaskGroup() as group,
    ):

        async def ask(target: str) -> None:
            try:
                warmed.add(target, *await _ask(client, target))
            finally:
                places.release()
                told()

        began = loop.time()
        for number, target in enumerate(targets):
            if rate is not None:
                await asyncio.sleep(max(0.0, began + number / rate - loop.time()))
            await places.acquire()
            group.create_task(ask(target))
    return warmed


def base_url(text: str) -> str:
    """The gateway's address, as an http or https URL. Raises WarmError."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        given = text.partition("://")[2] or text
        raise WarmError(
            f"--url {text} isn't a URL of a gateway; expected http://{given.strip('/') or '127.0.0.1:8000'}"
        )
    return text


async def _ask(client: httpx.AsyncClient, target: str) -> tuple[str, str]:
    """The result by `Cache-Status`, in a word; for a failure, with the reason."""
    method, content = "GET", None
    if not target.startswith("/"):
        method, target, content = target.split(" ", 2)
    typed = {"content-type": "application/json"} if content is not None and "content-type" not in client.headers else {}
    try:
        async with client.stream(method, target, content=content, headers=typed) as response:
            async for _ in response.aiter_raw():
                pass
    except httpx.TransportError as error:
        return "failed", str(error) or type(error).__name__
    if response.status_code >= 400:
        return "failed", f"{response.status_code} {response.reason_phrase}".strip()
    status = response.headers.get("cache-status", "")
    if "; hit" in status:
        return "fresh already", ""
    return ("stored" if "stored" in status else "not storable"), ""
