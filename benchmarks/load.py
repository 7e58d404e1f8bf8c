"""Closed-loop load by wrk, and the checks without which no figure is given."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import ssl
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import BenchmarkError, cpu_seconds
from benchmarks.traffic import AGGREGATES, PHONE, SIZES, body, content_fields, request

_SCRIPT = Path(__file__).with_name("wrk.lua")
_WARMERS = 32  # connections
_CHUNK = 4096


class TlsPort(int):
    """A port on which TLS is spoken."""

    @property
    def context(self) -> ssl.SSLContext:
        """Of a client that trusts the certificate of a benchmark, whoever signed it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context


@dataclass(frozen=True, slots=True)
class Pattern:
    """What is asked for: `kind` is one of wrk.lua's patterns over `count` numbers below `path`, `step` apart; by POST
    if it has `content`. Each request has the next one of `turns`, field lines that follow `headers`."""

    kind: str
    path: str
    count: int = 1
    step: int = 1
    headers: tuple[str, ...] = ()
    status: int = 200
    content: str = ""
    turns: tuple[str, ...] = ()

    @property
    def misses(self) -> float:
        """The share of its requests that no cache can have the response to."""
        return {"unique": 1.0, "mixed": 0.1}.get(self.kind, 0.0)

    def paths(self, at_most: int) -> list[str]:
        """Some of the paths that it asks for, spread over all of them."""
        if self.kind in ("hot", "unique"):
            return [self.path + ("0" if self.kind == "unique" else "")]
        every = max(1, self.count // at_most)
        return [f"{self.path}{number * self.step}" for number in range(0, self.count, every)]


@dataclass(frozen=True, slots=True)
class Answer:
    """`length` is in bytes on the wire, the head included."""

    status: int
    headers: dict[str, str]
    body: bytes
    length: int


@dataclass(frozen=True, slots=True)
class Figure:
    """`rate` is in requests a second, the latencies in microseconds from when wrk sent (its loop is closed).

    `server` and `load` are the processor seconds that the server and wrk used for each second of it, so shares of their
    cores: the server's falls below 1 where wrk's reaches it, or where other work has the machine too.
    """

    rate: float
    p50: float
    p99: float
    requests: int
    server: float = 1.0
    load: float = 0.0
    missed: str = ""
    """The number in a path that was a miss, and has been answered; empty where the pattern has none."""

    @property
    def per_cpu_second(self) -> float:
        """Requests for each second of processor time that the server used."""
        return self.rate / self.server if self.server else 0.0


def ask(port: int, path: str, headers: Sequence[str] = (), content: str = "") -> Answer:
    """One request on a connection of its own."""
    [answer] = ask_all(port, [path], headers=headers, content=content)
    return answer


def ask_all(
    port: int, paths: Iterable[str], *, headers: Sequence[str] = (), content: str = "", connections: int = 1
) -> list[Answer]:
    """All `paths`, each once, on so many connections. Raises BenchmarkError where an answer does not come whole."""
    try:
        return asyncio.run(_ask_all(port, list(paths), headers, content, connections))
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise BenchmarkError(f"no whole answer on {port}: {error!r}") from error


async def _ask_all(port: int, paths: list[str], headers: Sequence[str], content: str, connections: int) -> list[Answer]:
    shares = [paths[start::connections] for start in range(connections)]
    answers = await asyncio.gather(*(_ask_in_turn(port, share, headers, content) for share in shares if share))
    return [answer for share in answers for answer in share]


async def _ask_in_turn(port: int, paths: list[str], headers: Sequence[str], content: str) -> list[Answer]:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, limit=2**20, ssl=port.context if isinstance(port, TlsPort) else None
    )
    try:
        answers: list[Answer] = []
        for path in paths:
            writer.write(request(path, len(answers), *headers, content=content))
            answers.append(await _read_answer(reader))
        return answers
    finally:
        writer.close()


async def _read_answer(reader: asyncio.StreamReader) -> Answer:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").strip().split("\r\n")
    pairs = (line.partition(":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    status = int(first.split(" ")[1])
    content = await reader.readexactly(0 if status == 304 else int(headers.get("content-length", 0)))
    return Answer(status, headers, content, len(head) + len(content))


def check(answer: Answer, path: str, status: int = 200) -> None:
    """Raises BenchmarkError where an answer is not what the upstream said for `path`."""
    expected = b"" if status == 304 else _expected(path)
    if answer.status != status or (status != 304 and answer.body != expected):
        raise BenchmarkError(f"{path} got {answer.status} with {len(answer.body)} bytes: {answer.body[:80]!r}")


def _expected(path: str) -> bytes:
    _, kind, size, number = path.split("/")
    if kind in AGGREGATES:
        number = "7" if kind == "spliced" else number
        return b'{"p0":%s,"p1":%s}' % (body(SIZES[size], number), body(SIZES[size], number + "1"))
    return body(SIZES[size], number)


def warm(port: int, paths: list[str], headers: Sequence[str] = (), content: str = "") -> None:
    """Ask for each path. Raises BenchmarkError where an answer is wrong."""
    for start in range(0, len(paths), _CHUNK):
        asked = paths[start : start + _CHUNK]
        answers = ask_all(port, asked, headers=headers, content=content, connections=_WARMERS)
        for path, answer in zip(_in_order(asked), answers, strict=True):
            check(answer, path)


def _in_order(paths: list[str]) -> list[str]:
    return [path for start in range(_WARMERS) for path in paths[start::_WARMERS]]


def wrk(port: int, pattern: Pattern, *, pid: int, core: int, seconds: float, connections: int = 32) -> Figure:
    """`seconds` of closed-loop load on the server that is `pid` and its children. Raises BenchmarkError where an answer
    failed, or was of another length."""
    before = [_checked(port, pattern, path) for path in pattern.paths(20)]
    turns = Path(tempfile.gettempdir()) / f"wrk-turns-{os.getpid()}"
    turns.write_text("".join(f"{line}\n" for line in pattern.turns))
    shape = (pattern.kind, pattern.path, str(pattern.count), str(pattern.step), pattern.content, str(turns))
    asked = (*shape, *PHONE, *pattern.headers, *content_fields(pattern.content))
    options = ("-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", str(_SCRIPT))
    server, load = cpu_seconds(pid), _waited_for()
    ran = subprocess.run(
        ["wrk", *options, f"{'https' if isinstance(port, TlsPort) else 'http'}://127.0.0.1:{port}/", "--", *asked],
        capture_output=True,
        text=True,
        timeout=seconds + 30,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    server, load = cpu_seconds(pid) - server, _waited_for() - load
    turns.unlink()
    line = next((line for line in ran.stdout.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        raise BenchmarkError(f"wrk failed: {ran.stdout[-500:]} {ran.stderr[-500:]}")
    found = json.loads(line.removeprefix("RESULT "))
    if found["failed"] or not found["requests"]:
        raise BenchmarkError(f"{found['failed']} of {found['requests']} requests failed: {found['errors']}")
    _check_length(found["bytes"] / found["requests"], [answer.length for answer in before])
    for path in pattern.paths(20):
        _checked(port, pattern, path)
    lasted = found["seconds"]
    rate, used = found["requests"] / lasted, (server / lasted, load / lasted)
    return Figure(rate, found["p50"], found["p99"], found["requests"], *used, found["missed"])


def _waited_for() -> float:
    """The processor seconds of all children that have ended: before and after one of them, its own."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _checked(port: int, pattern: Pattern, path: str) -> Answer:
    answer = ask(port, path, (*pattern.headers, *pattern.turns[:1]), pattern.content)
    check(answer, path, pattern.status)
    return answer


def _check_length(mean: float, lengths: list[int]) -> None:
    """An answer that lacked its body, or was an error's, would show in the mean length; so would a missed 304."""
    if not 0.97 * min(lengths) - 40 <= mean <= 1.03 * max(lengths) + 60:
        raise BenchmarkError(
            f"answers had {mean:.0f} bytes on average, where {min(lengths)} to {max(lengths)} are right"
        )
