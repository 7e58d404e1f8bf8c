"""WebSockets (RFC 6455), as far as a proxy that passes frames on must know them: the handshake's fields, and frames.

Decides which frames may be passed on, and which end a connection. Content is neither unmasked nor decoded, except that
of a Close frame: a proxy passes it on as it came. Extensions are not negotiated, so that reserved bits are an error,
and the size of a message is that of its frames. Pure.
"""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha1
from typing import NamedTuple

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTINUATION, _BINARY, _CLOSE, _PONG = 0, 2, 8, 10
MOST_FRAGMENTS = 4096
"""Frames of one message: of 16 KiB each, 64 MiB."""
AT_ONCE = 512
"""Frames that are looked at in one go, some 0.6 ms: what comes in one read may be 100,000 of 2 bytes."""
MOST_REASON = 123
"""Bytes of a Close frame's reason (RFC 6455 §5.5: 125 with the code)."""

NORMAL, GOING_AWAY, PROTOCOL_ERROR, NO_CODE, LOST = 1000, 1001, 1002, 1005, 1006
INVALID, POLICY, TOO_BIG, INTERNAL = 1007, 1008, 1009, 1011


class Close(NamedTuple):
    """Why a connection ends: a code of RFC 6455 §7.4.1 and IANA's registry, and a reason."""

    code: int
    reason: str = ""


def accepted(key: bytes) -> bytes:
    """`Sec-WebSocket-Accept` for a `Sec-WebSocket-Key` (§4.2.2)."""
    return b64encode(sha1(key + _GUID, usedforsecurity=False).digest())


def is_code(code: int) -> bool:
    """Whether a Close frame may have this code (§7.4.2)."""
    return 3000 <= code <= 4999 or (1000 <= code <= 1014 and code not in (1004, NO_CODE, LOST))


def frame(opcode: int, payload: bytes, mask: bytes) -> bytes:
    """A control frame; `mask` is empty towards a client, 4 random bytes towards a server (§5.3)."""
    head = bytes((0x80 | opcode, len(payload) | (0x80 if mask else 0)))
    return head + mask + masked(payload, mask) if mask else head + payload


def masked(payload: bytes, mask: bytes) -> bytes:
    """A short payload masked, or unmasked (§5.3)."""
    return bytes(byte ^ mask[at & 3] for at, byte in enumerate(payload))


def close_frame(close: Close, mask: bytes = b"") -> bytes:
    reason = close.reason.encode()[:MOST_REASON].decode(errors="ignore").encode()
    return frame(_CLOSE, close.code.to_bytes(2, "big") + reason, mask)


def ping_frame(mask: bytes = b"") -> bytes:
    return frame(9, b"", mask)


class Frames:
    """The frames that one end sends. `from_client` is whether they must be masked (§5.1); `largest` is in bytes, of a
    message."""

    __slots__ = (
        *("_fragments", "_held", "_largest", "_mask", "_size"),
        *("bytes", "close", "controls", "left", "messages", "more", "violation"),
    )

    def __init__(self, *, from_client: bool, largest: int) -> None:
        self._mask = 0x80 if from_client else 0
        self._largest = largest
        self._held = b""
        """The beginning of a frame that is not passed on yet: at most a head, or a control frame."""
        self._fragments = self._size = 0
        """Of the message under way."""
        self.left = 0
        """Bytes that are missing of the data frame under way, whose beginning was passed on: no other frame may be
        written before they are."""
        self.messages = self.controls = self.bytes = 0
        self.more = False
        """Whether `take` has left frames for the next call."""
        self.close: Close | None = None
        """Set by a Close frame; what follows it is dropped."""
        self.violation: Close | None = None
        """Set by what must not be passed on; all that follows is dropped."""

    def take(self, data: bytes) -> bytes:
        """What may be passed on, of `data` and what was held before."""
        if self.close is not None or self.violation is not None:
            return b""
        data = self._held + data if self._held else data
        size, at = len(data), min(self.left, len(data))
        self.left -= at
        self.more, seen = False, 0
        while at < size and self.close is None:
            if seen == AT_ONCE:
                self.more = True
                break
            seen += 1
            end = self._frame(data, at, size)
            if end <= at:
                break
            at = end
        self._held = b"" if self.close is not None or self.violation is not None else data[at:]
        self.bytes += at
        return data if at == size else data[:at]

    def _frame(self, data: bytes, at: int, size: int) -> int:
        """Where the part of the frame at `at` ends that may be passed on: `at` itself if nothing of it may yet."""
        if size - at < 2:
            return at
        first, second = data[at], data[at + 1]
        opcode, length, start = first & 15, second & 127, at + 2
        if first & 0x70:
            return self._refuse(PROTOCOL_ERROR, "reserved bits without an extension", at)
        if second & 0x80 != self._mask:
            return self._refuse(PROTOCOL_ERROR, "an unmasked frame" if self._mask else "a masked frame", at)
        if opcode >= _CLOSE:
            return self._control(data, at, size, first, length)
        if length > 125:
            width = 2 if length == 126 else 8
            start += width
            if size < start:
                return at
            length = int.from_bytes(data[start - width : start], "big")
            if length < (126 if width == 2 else 65_536) or length >> 63:
                return self._refuse(PROTOCOL_ERROR, "a length that is not in its shortest form", at)
        if self._mask:
            start += 4
        if size < start:
            return at
        if not self._counts(first, opcode, length):
            return at
        end = min(size, start + length)
        self.left = start + length - end
        return end

    def _counts(self, first: int, opcode: int, length: int) -> bool:
        """Whether a data frame is in its place, and its message within the limits."""
        if opcode > _BINARY or (opcode == _CONTINUATION) is not (self._fragments > 0):
            return bool(self._refuse(PROTOCOL_ERROR, "a frame that is out of place", 0))
        self._fragments += 1
        self._size += length
        if self._size > self._largest:
            return bool(self._refuse(TOO_BIG, f"a message of more than {self._largest} bytes", 0))
        if self._fragments > MOST_FRAGMENTS:
            return bool(self._refuse(POLICY, f"a message of more than {MOST_FRAGMENTS} frames", 0))
        if first & 0x80:
            self.messages += 1
            self._fragments = self._size = 0
        return True

    def _control(self, data: bytes, at: int, size: int, first: int, length: int) -> int:
        if not first & 0x80 or length > 125 or first & 15 > _PONG:
            return self._refuse(PROTOCOL_ERROR, "an invalid control frame", at)
        start = at + 2 + (4 if self._mask else 0)
        if size < start + length:
            return at
        self.controls += 1
        if first & 15 == _CLOSE:
            payload = data[start : start + length]
            self._take_close(masked(payload, data[at + 2 : start]) if self._mask else payload)
            if self.violation is not None:
                return at
        return start + length

    def _take_close(self, payload: bytes) -> None:
        if not payload:
            self.close = Close(NO_CODE)
            return
        code = int.from_bytes(payload[:2], "big")
        if len(payload) < 2 or not is_code(code):
            self._refuse(PROTOCOL_ERROR, "a Close frame with an invalid code", 0)
            return
        try:
            self.close = Close(code, payload[2:].decode())
        except UnicodeDecodeError:
            self._refuse(INVALID, "a Close frame whose reason is not UTF-8", 0)

    def _refuse(self, code: int, reason: str, at: int) -> int:
        self.violation = Close(code, reason)
        return at
