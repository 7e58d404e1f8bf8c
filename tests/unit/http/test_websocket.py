"""WebSocket frames: what is passed on as it came, in whatever pieces, and what ends a connection."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http.websocket import (
    AT_ONCE,
    MOST_FRAGMENTS,
    Close,
    Frames,
    accepted,
    close_frame,
    frame,
    is_code,
    masked,
    ping_frame,
)
from tests.support.websockets import MASK, client_frame

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def from_client(largest: int = 1_000_000) -> Frames:
    return Frames(from_client=True, largest=largest)


def test_the_accepted_key_is_that_of_the_rfc() -> None:
    assert accepted(b"dGhlIHNhbXBsZSBub25jZQ==") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_masking_twice_is_nothing() -> None:
    assert masked(masked(b"abcdefg", MASK), MASK) == b"abcdefg"


def test_control_frames_are_masked_towards_a_server_alone() -> None:
    assert ping_frame() == b"\x89\x00"
    assert ping_frame(MASK) == b"\x89\x80" + MASK
    assert close_frame(Close(1001, "x")) == b"\x88\x03\x03\xe9x"
    assert close_frame(Close(1001, "x"), MASK) == b"\x88\x83" + MASK + masked(b"\x03\xe9x", MASK)
    assert frame(PONG, b"a", b"") == b"\x8a\x01a"


def test_a_long_reason_is_cut_between_characters() -> None:
    sent = close_frame(Close(1000, "é" * 100))
    assert len(sent) <= 127
    assert sent[4:].decode() == "é" * 61


SENT = [
    client_frame(TEXT, b""),
    client_frame(TEXT, b"a" * 125),
    client_frame(BINARY, b"b" * 126),
    client_frame(BINARY, b"c" * 65_536),
    client_frame(TEXT, b"d", fin=False) + client_frame(PING, b"x") + client_frame(0, b"e"),
    client_frame(PONG),
]


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(SENT), min_size=1, max_size=4),
    st.lists(st.floats(0, 1), max_size=12),
    st.booleans(),
)
def test_valid_frames_are_passed_on_byte_for_byte_in_whatever_pieces(
    sent: list[bytes], cuts: list[float], by_byte: bool
) -> None:
    whole, frames = b"".join(sent), from_client()
    places = sorted({0, len(whole), *(int(cut * len(whole)) for cut in cuts)})
    pieces = [whole[start:end] for start, end in pairwise(places)]
    if by_byte:
        pieces = [whole[at : at + 1] for at in range(min(len(whole), 300))] + [whole[300:]]
    assert b"".join(map(frames.take, pieces)) == whole
    assert (frames.violation, frames.close, frames.left) == (None, None, 0)
    assert frames.bytes == len(whole)


def test_messages_and_control_frames_are_counted() -> None:
    frames = from_client()
    frames.take(b"".join(SENT))
    assert (frames.messages, frames.controls) == (5, 2)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\x81\x05hello", 1002),  # not masked
        (b"\xc1\x80" + MASK, 1002),  # a reserved bit
        (client_frame(3), 1002),
        (client_frame(7), 1002),
        (client_frame(11), 1002),
        (client_frame(0, b"x"), 1002),  # of no message
        (client_frame(TEXT, fin=False) + client_frame(TEXT), 1002),
        (client_frame(PING, fin=False), 1002),
        (b"\x89\xfe\x00\x7e" + MASK, 1002),  # a control frame of 126 bytes
        (b"\x81\xfe\x00\x05" + MASK, 1002),  # lengths that are not in their shortest form
        (b"\x81\xff" + (65_535).to_bytes(8, "big") + MASK, 1002),
        (b"\x81\xff" + (1 << 63).to_bytes(8, "big") + MASK, 1002),
        (b"\x81\xff" + (1 << 62).to_bytes(8, "big") + MASK, 1009),
        (client_frame(CLOSE, b"\x03"), 1002),
        (client_frame(CLOSE, b"\x03\xee"), 1002),  # 1006
        (client_frame(CLOSE, b"\x03\xe8\xff"), 1007),
    ],
)
def test_what_breaks_the_protocol_is_not_passed_on(sent: bytes, code: int) -> None:
    frames = from_client()
    before = client_frame(TEXT, b"a") if sent[0] & 15 else b""
    passed = frames.take(before + sent)
    assert passed.startswith(before)
    assert sent[-6:] not in passed
    assert frames.violation is not None
    assert frames.violation.code == code
    assert frames.take(client_frame(TEXT)) == b""


def test_a_server_must_not_mask() -> None:
    frames = Frames(from_client=False, largest=100)
    assert frames.take(b"\x81\x01a") == b"\x81\x01a"
    assert frames.take(client_frame(TEXT)) == b""
    assert frames.violation == Close(1002, "a masked frame")


def test_a_message_that_is_too_large_is_found_by_its_heads() -> None:
    frames = from_client(largest=100)
    assert frames.take(client_frame(TEXT, b"a" * 100))
    assert frames.take(client_frame(TEXT, b"a" * 60, fin=False))
    assert frames.take(client_frame(0, b"a" * 41)[:6]) == b""
    assert frames.violation is not None
    assert frames.violation.code == 1009


def test_a_message_of_too_many_frames_is_refused() -> None:
    frames = from_client()
    sent = client_frame(TEXT, fin=False) + client_frame(0, fin=False) * MOST_FRAGMENTS
    frames.take(sent)
    while frames.more:
        frames.take(b"")
    assert frames.violation is not None
    assert frames.violation.code == 1008


def test_many_frames_are_taken_by_and_by() -> None:
    frames, whole = from_client(), client_frame(TEXT) * (2 * AT_ONCE + 1)
    got = [frames.take(whole)]
    while frames.more:
        got.append(frames.take(b""))
    assert b"".join(got) == whole
    assert len(got) == 3


def test_what_follows_a_close_frame_is_dropped() -> None:
    frames = from_client()
    close = client_frame(CLOSE, b"\x0f\xa1bye")
    assert frames.take(close + client_frame(TEXT, b"late")) == close
    assert frames.close == Close(4001, "bye")
    assert frames.take(client_frame(TEXT)) == b""


def test_a_close_frame_may_have_no_code() -> None:
    frames = Frames(from_client=False, largest=1)
    frames.take(b"\x88\x00")
    assert frames.close == Close(1005)


def test_codes_of_the_registry_and_of_applications_may_be_sent() -> None:
    valid = [code for code in range(6000) if is_code(code)]
    assert valid == [1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)]
