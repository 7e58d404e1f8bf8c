"""Coverage-guided fuzzing of what parses foreign bytes: heads, headers, targets, bodies, and all that Redis says.

    python -m tests.faults.fuzz KIND [-max_total_time=3600]

KIND is one of KINDS. Each runs until it is stopped.

It wants PyPI's atheris, which has wheels for CPython 3.11 to 3.13 on Linux; it is no dependency. What it finds becomes
a case of a test.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Callable
from typing import Any

import atheris
import hiredis
import httptools

with atheris.instrument_imports(include=["gateway"]):
    from gateway.cache.leases import Leases
    from gateway.cache.redis.connection import Reply
    from gateway.cache.redis.leases import RedisLeases
    from gateway.cache.redis.overrides import _event_of, _readable
    from gateway.cache.redis.purge_log import PurgeStream
    from gateway.cache.redis.reader import Pipe
    from gateway.cache.redis.record_log import Fleet, _beat
    from gateway.cache.redis.record_stream import _texts
    from gateway.cache.shared_store import NoShared
    from gateway.config.loader import Loaded
    from gateway.config.models import Config
    from gateway.config.overrides import applied, in_force
    from gateway.errors import RequestRefused
    from gateway.http.headers import CacheControl, combined, end_to_end, split_list
    from gateway.http.request_parser import ChunkedBody, Limits, read_fields, read_framing, read_line
    from gateway.http.target import check_host, normalise, split_raw_target
    from gateway.policy import storability
    from gateway.policy.entry import decode_index, decode_stored, encode
    from gateway.policy.epochs import EVERYTHING, Epochs
    from gateway.policy.rules import CachePolicy, directives_of
    from gateway.policy.storability import ReceivedResponse


def record(data: bytes) -> None:
    """Whatever the bytes, they are a record or None; and a record encodes to one that is read the same."""
    for secret in (b"", b"0123456789abcdef"):
        sealed = data if len(data) % 2 else _sealed(data, secret)
        stored = decode_stored(sealed, "k", secret)
        if stored is not None:
            assert decode_stored(encode(stored, secret), "k", secret) == stored
        decode_index(sealed, "k", secret)


def _sealed(payload: bytes, secret: bytes) -> bytes:
    """As if whoever wrote it knew the secret: the decoder behind the seal is what is tried."""
    from gateway.policy.entry import _prefix, _seal

    return _prefix(secret) + _seal(payload, secret) + payload


def headers(data: bytes) -> None:
    """A response's fields, whatever they are, give a verdict."""
    lines = [line.partition(b":") for line in data.split(b"\n")]
    fields = [(name.lower(), value) for name, _, value in lines]
    text = combined(fields, b"cache-control") or ""
    split_list(text)
    CacheControl.parse([text])
    end_to_end(fields)
    facts = directives_of("GET", fields, CachePolicy())
    for rules in (CachePolicy(), CachePolicy(ttl=5.0)):
        storability.admit(ReceivedResponse(200, fields, 1e9, 1e9 + 1, ""), facts, rules)


def target(data: bytes) -> None:
    """A target is refused, or its normal form is its own normal form and stays below the root."""
    path, _, query = data.partition(b"?")
    try:
        found = normalise(path, query)
    except RequestRefused:
        return
    again = normalise(found.path.encode(), found.query_string.encode())
    assert (again.path, again.query) == (found.path, found.query)
    assert str(found).startswith("/")
    assert str(found).isprintable()
    assert not {".", ".."} & set(found.path.split("/"))


def head(data: bytes) -> None:
    """The forms of a request line's target and Host."""
    raw, _, host = data.partition(b"\n")
    try:
        split_raw_target(raw, check_host([host], "1.1"), scheme="http")
    except RequestRefused:
        return


class Heard:
    """What llhttp takes a request for."""

    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.complete = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value.strip(b" \t")))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete += 1


def request(data: bytes) -> None:
    """A head that the door lets through is one request to llhttp as well, with the same fields."""
    limits, end = Limits(), data.find(b"\r\n\r\n")
    first = data.find(b"\r\n")
    if end < 0:
        return
    try:
        line = read_line(data[:first], limits)
        fields = read_fields(data[first + 2 : end + 2], limits)
        framing = read_framing(line, fields, limits)
    except RequestRefused:
        return
    if framing.upgrade or line.method == b"CONNECT":
        return  # the door takes `Upgrade` out before llhttp sees it
    heard = Heard()
    parser = httptools.HttpRequestParser(heard)
    try:
        parser.feed_data(data[: end + 4])
    except httptools.HttpParserError:
        return  # refused, a line later
    assert heard.fields == fields, (heard.fields, fields)
    assert parser.get_method() == line.method
    assert bool(heard.complete) == (framing.length == 0), (heard.complete, framing)


def chunked(data: bytes) -> None:
    """A chunked body ends where llhttp has it end, however it comes in pieces."""
    whole = ended_at(data, len(data) + 1)
    assert whole == ended_at(data, 1) == ended_at(data, 3)
    if whole is None:
        return
    heard = Heard()
    parser = httptools.HttpRequestParser(heard)
    parser.feed_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    try:
        parser.feed_data(data[:whole])
    except httptools.HttpParserError:
        return  # refused, a line later
    assert heard.complete == 1, data


def ended_at(data: bytes, piece: int) -> int | None:
    """Where a chunked body that comes in pieces of this size ends; None where it is refused, or not whole."""
    body, at = ChunkedBody(Limits()), 0
    try:
        while at < len(data) and not body.done:
            at = at + body.take(data[at : at + piece], 0)
    except RequestRefused:
        return None
    return at if body.done else None


class Unheard(asyncio.Transport):
    """A connection to nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = False

    def write(self, data: object) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        self.ended = True


def pipe(data: bytes) -> None:
    """Whatever Redis says, each read is told once: so many values, or None; and what casts a doubt ends the pipe."""
    LOOP.run_until_complete(_pipe(data))


async def _pipe(data: bytes) -> None:
    told: list[tuple[int, Reply]] = []
    reads, transport = Pipe(60.0, lambda *_: None, lambda turns: None), Unheard()
    reads._connection, reads._transport = type("Connection", (), {})(), transport
    for number in (1, 2, 3):
        reads.read(["key"] * number, 10, lambda reply, number=number: told.append((number, reply)))
    step = data[0] % 7 + 1 if data else 1
    for at in range(1, len(data), step):
        if reads.open:
            reads.data_received(data[at : at + step])
    reads.close()
    assert transport.ended
    assert sorted(number for number, _ in told) == [1, 2, 3], told
    for number, reply in told:
        assert reply is None or (len(reply) == number and all(each is None or each for each in reply)), told


class Saying(NoShared):
    """A shared tier whose Redis says one thing, whatever it is asked."""

    available = True

    def __init__(self, reply: object) -> None:
        self._leases = RedisLeases(self, "", self._run, self._spawn)
        self._reply = reply
        self.given_up = 0

    async def _run(self, *commands: object) -> object:
        return self._reply

    def _spawn(self, work: Any) -> None:
        work.close()
        self.given_up += 1

    async def take(self, name: str, token: bytes, life: float) -> bytes | None:
        return await self._leases.take(name, token, life)

    async def renew(self, held: object, life: float) -> None:
        pass

    async def peek(self, name: str) -> tuple[bool, bytes | None]:
        return True, self._reply if isinstance(self._reply, bytes) else None


def lease(data: bytes) -> None:
    """Whatever a lease's command is told, it is a standing; one whose reply is no text is given up."""
    reader = hiredis.Reader()
    try:
        reader.feed(data)
        reply = reader.gets()
    except hiredis.HiredisError:
        return
    if reply is not False:
        LOOP.run_until_complete(_lease(reply))


async def _lease(reply: object) -> None:
    said = Saying(reply)
    leases = Leases(said)
    taken = await leases.take("key", 1.0)
    assert bool(said.given_up) == (not (isinstance(reply, bytes) and reply))
    await leases.look(taken)
    await leases.give_back(taken)
    leases.close()


def purge(data: bytes) -> None:
    """Whatever stands in the stream of purges is one, of everything where it can't be read; and a worker's sign of life
    is none, or one that ends."""
    stream = PurgeStream(None, "gw:")
    _, found = stream._record(b"7-1", [b"i", b"id", b"r", data])
    epochs = Epochs("generation")
    stamp = epochs.stamp
    epochs.apply((7, 1), found, 1e9)
    epochs.judge(stamp, 1.0, (EVERYTHING, *found.names))
    pieces = data.split(b"\n")
    stream._record(b"7-2", pieces if len(pieces) % 2 == 0 else pieces[1:])
    texts = _texts([data, data])
    beat = _beat(texts[1])
    assert beat is None or 0 <= beat.silent < math.inf, beat
    fleet = Fleet("own")
    fleet.note("generation", {texts[0]: texts[1]}, 1.0)
    assert fleet.silent(1e9), texts


LOADED = Loaded(
    Config.model_validate(
        {
            "upstreams": {"api": {"url": "http://api.test"}},
            "routes": {
                "item": {"path": "/items/{id}", "upstream": "api", "ttl": "30s"},
                "home": {"path": "/home", "parts": {"one": {"upstream": "api", "path": "/one"}}},
            },
        }
    ),
    {},
    (),
)


def override(data: bytes) -> None:
    """Whatever stands among the overrides and in the audit list is passed over, or holds as a file's value would."""
    found = list(_readable([data]))
    for each in found:
        assert math.isfinite(each.at), each
        assert math.isfinite(each.until), each
    applied(LOADED, in_force(found, 0.0), {})
    _event_of(data)


LOOP = asyncio.new_event_loop()
KINDS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each for each in (record, headers, target, head, request, chunked, pipe, lease, purge, override)
}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in KINDS:
        sys.exit(f"say what to fuzz: {', '.join(KINDS)}")
    atheris.Setup([sys.argv[0], *sys.argv[2:]], KINDS[sys.argv[1]])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
