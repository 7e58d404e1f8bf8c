"""What is asked of Redis to read values, and what a reply may hold: both bounded.

Whoever can write to Redis can put 512 MB under a key. So a value is asked for by `GETRANGE`, and no more of it comes
than the largest record that is believed, and one byte, by which a larger one is known. What other commands bring (the
stream of purges, overrides, reports) is bounded by its connection: one on which a reply grows beyond `MOST_REPLY` ends.

A `GETRANGE` for each of two names costs 0.5 µs more than one `MGET` of both, here and at Redis each (32 reads in one
round trip; unix socket, uvloop).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import hiredis
from redis._parsers import _AsyncHiredisParser
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

Reply = list[bytes | None] | None
"""The values, or None where Redis did not answer in time, or not with values."""
LARGEST = 16 * 1024 * 1024
"""Bytes of a record, unless the configuration's `max_body` makes larger ones (`Config.largest_record`)."""
MOST_REPLY = 64 * 1024 * 1024
"""Bytes of one reply on redis-py's connections: twice what a thousand purges, or two thousand deliveries, may take."""
_BAD_TYPE = "WRONGTYPE"


def reading(names: Sequence[str], largest: int, mark: bytes) -> bytes:
    """The commands that read the values of `names`, `largest` bytes and one more of each, and then tell `mark`.

    What `mark` is for: values are told apart by their order alone, and by it a reply too many or too few is found out.
    """
    end = b"%d" % largest
    tail = b"$1\r\n0\r\n$%d\r\n%b\r\n" % (len(end), end)
    raw = [name.encode() for name in names]
    commands = [b"*4\r\n$8\r\nGETRANGE\r\n$%d\r\n%b\r\n%b" % (len(name), name, tail) for name in raw]
    return b"%b*2\r\n$4\r\nPING\r\n$%d\r\n%b\r\n" % (b"".join(commands), len(mark), mark)


def values_of(replies: object, number: int) -> Reply:
    """The values that replies to so many `GETRANGE` hold, None for each that is empty, as one that does not exist is,
    or no string; None in all where one is an error, or no value, or their number is another."""
    if not isinstance(replies, list) or len(replies) != number:
        return None
    values: list[bytes | None] = []
    for reply in replies:
        if isinstance(reply, bytes):
            values.append(reply or None)
        elif isinstance(reply, hiredis.ReplyError | ResponseError) and _BAD_TYPE in str(reply):
            values.append(None)
        else:
            return None
    return values


class BoundedParser(_AsyncHiredisParser):
    """redis-py's, which ends a connection on which one reply grows beyond `MOST_REPLY` bytes."""

    most = MOST_REPLY
    _pending = 0

    async def read_from_socket(self) -> bool:
        assert self._stream is not None
        assert self._reader is not None
        data = await self._stream.read(self._read_size)
        if not data:
            raise RedisConnectionError("Redis has closed the connection")
        self._pending += len(data)
        if self._pending > self.most:
            raise RedisConnectionError(f"a reply of more than {self.most} bytes")
        self._reader.feed(data)
        return True

    async def read_response(self, disable_decoding: bool = False, push_request: bool = False) -> Any:
        self._pending = 0
        return await super().read_response(disable_decoding, push_request)
