"""Coverage-guided fuzzing of what parses foreign bytes: records, headers, targets, heads, bodies.

    python -m tests.faults.fuzz record|headers|target|head|request|chunked [-max_total_time=3600]

Each runs until it is stopped.

It wants PyPI's atheris, which has wheels for CPython 3.11 to 3.13 on Linux; it is no dependency. What it finds becomes
a case of a test.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import atheris
import httptools

with atheris.instrument_imports(include=["gateway"]):
    from gateway import policy
    from gateway.errors import RequestRefused
    from gateway.framing import ChunkedBody
    from gateway.headers import CacheControl, combined, end_to_end, split_list
    from gateway.heads import Limits, read_fields, read_framing, read_line
    from gateway.policy import Received, Rules, facts_of
    from gateway.record import decode_index, decode_stored, encode
    from gateway.targets import check_host, normalise, split_raw_target


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
    from gateway.record import _prefix, _seal

    return _prefix(secret) + _seal(payload, secret) + payload


def headers(data: bytes) -> None:
    """A response's fields, whatever they are, give a verdict."""
    lines = [line.partition(b":") for line in data.split(b"\n")]
    fields = [(name.lower(), value) for name, _, value in lines]
    text = combined(fields, b"cache-control") or ""
    split_list(text)
    CacheControl.parse([text])
    end_to_end(fields)
    facts = facts_of("GET", fields, Rules())
    for rules in (Rules(), Rules(ttl=5.0)):
        policy.admit(Received(200, fields, 1e9, 1e9 + 1, ""), facts, rules)


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


KINDS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each for each in (record, headers, target, head, request, chunked)
}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in KINDS:
        sys.exit(f"say what to fuzz: {', '.join(KINDS)}")
    atheris.Setup([sys.argv[0], *sys.argv[2:]], KINDS[sys.argv[1]])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
