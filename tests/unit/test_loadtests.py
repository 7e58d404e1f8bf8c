"""loadtests: what a session file means, and what Cache-Status tells of an answer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from loadtests.cache_status import Tally, kind
from loadtests.session import SessionError, parse, read

SESSION = Path(__file__).parents[2] / "loadtests" / "session.txt"


def test_low_numbers_are_asked_for_more_often() -> None:
    session = parse(["let product 5 14", "1 /products/{product}"])
    picked = Counter(session.pick()[1] for _ in range(2000))
    assert set(picked) <= {f"/products/{number}" for number in range(5, 15)}
    assert picked["/products/5"] > 2 * picked["/products/14"]


def test_paths_are_asked_for_in_their_shares() -> None:
    session = parse(["9 /offers  # the start page", "", "1 /news"])
    picked = Counter(session.pick()[0] for _ in range(2000))
    assert 1600 < picked["/offers"] < 2000
    assert picked["/news"] + picked["/offers"] == 2000


def test_the_session_that_is_shipped_can_be_read() -> None:
    assert "/products/{product}" in read(SESSION).paths


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (["10 offers"], "session line 1: '10 offers' is neither"),
        (["1 /a", "5 /products/{product}"], "session line 2: {product} is not known; write `let product 1 100`"),
        (["let product 9 1"], "session line 1: the last number, 1, is below the first, 9"),
        ([], "no path has a share"),
    ],
)
def test_a_session_that_cannot_be_read_says_which_line_and_what_to_do(lines: list[str], problem: str) -> None:
    with pytest.raises(SessionError) as caught:
        parse(lines)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("gateway; hit; ttl=27", "hit"),
        ("gateway; hit; ttl=-3", "stale"),
        ("gateway; fwd=miss; stored", "miss"),
        ("gateway; fwd=stale; collapsed", "collapsed"),
        ("gateway; fwd=bypass", "bypass"),
        ("origin-cache; hit, cdn; fwd=miss", "miss"),
        ('origin-cache; fwd=miss, "a cdn"; hit', "hit"),
        (None, "untold"),
    ],
)
def test_an_answer_is_what_the_cache_nearest_to_the_client_says(field: str | None, expected: str) -> None:
    assert kind(field) == expected


def test_a_table_shows_the_hit_ratio_beside_latency() -> None:
    tally = Tally()
    for milliseconds in (1.0, 2.0, 3.0):
        tally.add("/a", "hit", milliseconds)
    tally.add("/a", "miss", 100.0)
    tally.add("/b", "untold", 5.0)
    _, a, b, everything = tally.lines()
    assert a.split() == ["/a", "4", "75.0%", "3.00", "100.00", "2.00", "/", "100.00"]
    assert "untold" in b
    assert everything.split()[:3] == ["all", "5", "60.0%"]
