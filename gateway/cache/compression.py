"""Compressed forms of stored responses, kept next to them in memory.

The first request that a stored response answers, and that accepts a coding, gets the uncompressed form, and the body is
compressed in the background, off the event loop: the compressors release the GIL. The request that fetches a response
does not begin that: it takes a quarter of a miss's processor time, and of many keys few are asked for again. The result
is a memory entry like any other, counted and evicted by itself. Measured on 6 KiB of JSON: zstd 25 µs, brotli 60 µs,
gzip 40 µs, once per stored response.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import brotli
import msgspec
from msgspec import structs
from xxhash import xxh3_128_hexdigest

from gateway.cache.memory import Memory
from gateway.http.codings import tag_of, wanted, zstd_compressed
from gateway.http.headers import DIGESTS, Headers, has, vary_names, without
from gateway.policy.entry import Entry, Life


class Coded(msgspec.Struct, frozen=True):
    """The selected form of a stored response: `coding` None is the uncompressed one.

    `pending`: a better one is being made. `key` is the key of the body in memory.
    """

    coding: str | None
    body: bytes
    pending: bool = False
    key: str = ""

    def told(self, headers: list[tuple[bytes, bytes]], coding: str | None) -> list[tuple[bytes, bytes]]:
        """A response's headers as they are in a coding."""
        names = vary_names(headers)
        told = headers
        if names is not None and "accept-encoding" not in names:
            others = without(headers, b"vary") if has(headers, b"vary") else headers
            told = [*others, (b"vary", ", ".join([*names, "accept-encoding"]).encode("latin-1"))]
        if coding is None:
            return told
        # An invalid entity tag can't be changed for the form: two forms would share it (RFC 9110 §8.8.3.3).
        told = [pair for pair in without(told, *DIGESTS) if pair[0] != b"etag" or pair[1].endswith(b'"')]
        told = [(name, tag_of(value, coding) if name == b"etag" else value) for name, value in told]
        return [*told, (b"content-encoding", coding.encode("ascii"))]


ZSTD_LEVEL, BROTLI_QUALITY, GZIP_LEVEL = 9, 5, 6
WORTH = 0.9
"""A coding that saves less than a tenth is not used."""
UNDER_WAY = 64
"""How many may be made at once; others must wait for another request."""
_SHARE = 16  # of the memory, that one body may have and still be given codings


class Compressor:
    """Finds and makes the coded forms of stored responses. `offered` names the codings in order of preference; `spawn`
    starts background tasks."""

    def __init__(self, memory: Memory, offered: Sequence[str], spawn: Callable[[Awaitable[None]], None]) -> None:
        self._memory = memory
        self._offered = tuple(offered)
        self._spawn = spawn
        self._under_way: set[str] = set()
        self._pool: ThreadPoolExecutor | None = None
        self.made = 0

    def __repr__(self) -> str:
        return f"<Prepared {', '.join(self._offered) or 'nothing'}, {self.made} made>"

    def choose(self, request: Headers, stored: Entry, *, begin: bool = True) -> Coded | None:
        """The form of a compressible stored response for a request; None if there is only one. `begin`: a form that is
        not made yet is, in the background."""
        if not self._offered:
            return None
        coding = wanted(request, self._offered)
        if coding is None:
            return Coded(None, stored.body)
        key = f"{stored.key}\ncoding {coding}"
        made = self._kept(key, stored)
        if made is None:
            return Coded(None, stored.body, pending=begin and self._begin(key, coding, stored))
        return Coded(coding, made.body, key=key) if made.body else Coded(None, stored.body)

    def _kept(self, key: str, stored: Entry) -> Entry | None:
        """The coded form of `stored`; also of a predecessor with the same body, which a 304 validated."""
        made = self._memory.get(key)
        if made is None or made.born == stored.born:
            return made
        if made.primary != xxh3_128_hexdigest(stored.body):
            return None
        made = structs.replace(made, born=stored.born)
        self._memory.put(made)
        return made

    def _begin(self, key: str, coding: str, stored: Entry) -> bool:
        """Have it made; whether it is under way."""
        if key in self._under_way:
            return True
        if len(self._under_way) >= UNDER_WAY or len(stored.body) > self._memory.capacity // _SHARE:
            return False
        self._under_way.add(key)
        self._spawn(self._make(key, coding, stored))
        return True

    async def _make(self, key: str, coding: str, stored: Entry) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="gateway-codings")
        try:
            body = await asyncio.get_running_loop().run_in_executor(self._pool, compressed, coding, stored.body)
        finally:
            self._under_way.discard(key)
        self.made += 1
        self._memory.put(
            Entry(
                key=key,
                primary=xxh3_128_hexdigest(stored.body),
                born=stored.born,
                started=stored.started,
                initial_age=0.0,
                status=stored.status,
                headers=(),
                body=body if len(body) <= len(stored.body) * WORTH else b"",
                life=Life(),
            )
        )

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def compressed(coding: str, body: bytes) -> bytes:
    """`body` in a coding; the same bytes in every worker."""
    match coding:
        case "zstd":
            return zstd_compressed(body, ZSTD_LEVEL)
        case "br":
            return bytes(brotli.compress(body, quality=BROTLI_QUALITY))
        case _:
            return gzip.compress(body, GZIP_LEVEL, mtime=0)
