"""Server-sent events: read in any pieces, written again without what is a hop's own, and kept up to a bound."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.streams.events import MOST_BYTES, MOST_EVENTS, Event, EventParser, EventTooLarge, Ring

TEXT = (
    b"\xef\xbb\xbf: hello\n\nid: 1\ndata: a\n\nevent: x\r\ndata:b\r\ndata: c\r\nid:2\r\n\r\nretry: 1500\r\r"
    b"data\r\rid\n\ndata: no id\nunknown: 1\n\nid: bad\0\ndata: z\n\nid: 3\n\ndata: cut off"
)
EVENTS = [
    Event(b"id: 1\ndata: a\n\n", b"1"),
    Event(b"event: x\ndata:b\ndata: c\nid:2\n\n", b"2"),
    Event(b"data\n\n"),
    Event(b"id\n\n", b""),
    Event(b"data: no id\n\n"),
    Event(b"data: z\n\n"),
    Event(b"id: 3\n\n", b"3"),
]


def test_events_are_kept_without_comments_retry_and_unknown_fields() -> None:
    parser = EventParser()
    assert list(parser.feed(TEXT)) == EVENTS
    assert parser.retry == 1500


@given(st.lists(st.integers(0, len(TEXT)), max_size=12))
def test_the_pieces_in_which_a_stream_comes_do_not_matter(cuts: list[int]) -> None:
    parser, places = EventParser(), [0, *sorted(cuts), len(TEXT)]
    pieces = [TEXT[start:end] for start, end in itertools.pairwise(places)]
    assert [event for piece in pieces for event in parser.feed(piece)] == EVENTS


@pytest.mark.parametrize("retry", [b"-1", b"1.5", b"", b"9" * 20, b"\xc2\xb2"])
def test_a_retry_that_is_no_number_of_milliseconds_is_ignored(retry: bytes) -> None:
    parser = EventParser()
    assert list(parser.feed(b"retry: " + retry + b"\n\n")) == []
    assert parser.retry is None


@pytest.mark.parametrize("piece", [b"data: " + b"x" * MOST_BYTES, b"data: x\n" * 10_000])
def test_an_event_without_end_is_refused(piece: bytes) -> None:
    with pytest.raises(EventTooLarge):
        list(EventParser().feed(piece))


def numbered(number: int, size: int = 0) -> Event:
    return Event(b"id: %d\ndata: %b\n\n" % (number, b"x" * size), b"%d" % number)


def test_a_ring_has_what_came_behind_an_id() -> None:
    ring = Ring()
    for number in range(5):
        ring.add(numbered(number))
        ring.add(Event(b"data: between\n\n"))
    assert ring.after(b"4") == [Event(b"data: between\n\n")]
    assert len(ring.after(b"2") or []) == 5
    assert ring.after(b"none") is None
    assert ring.last_id == b"4"


def test_a_ring_knows_the_id_behind_which_it_began() -> None:
    ring = Ring(b"7")
    assert ring.after(b"7") == []
    ring.add(numbered(8))
    assert ring.after(b"7") == [numbered(8)]
    assert ring.after(b"6") is None


@pytest.mark.parametrize("size", [0, 1000, 60_000])
def test_a_ring_is_bounded_in_events_and_bytes(size: int) -> None:
    ring = Ring()
    for number in range(1000):
        ring.add(numbered(number, size))
    kept = len(ring)
    assert kept <= MOST_EVENTS
    assert kept * (size + 10) <= MOST_BYTES
    assert len(ring.after(b"%d" % (999 - kept)) or []) == kept
    assert ring.after(b"%d" % (998 - kept)) is None
