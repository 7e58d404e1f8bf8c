"""The forms of response heads: what is read by a form is what is read line by line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http.response_parser import Fields, Head, HeadForm, HeadForms, end_of_head, read_head


def head(*lines: bytes) -> bytes:
    return b"\r\n".join((b"HTTP/1.1 200 OK", *lines, b"", b""))


USUAL = [
    *(b"Server: a/1", b"Date: Mon, 30 Nov 2026 18:00:00 GMT", b"Content-Type: a/b; c=(1)", b'ETag: "1"'),
    *(b"Cache-Control:  max-age=60 ", b"Content-Length: 4", b"X-Empty:", b"X-Other: 1\t2"),
]


def known(*lines: bytes, times: int = 100, forms: HeadForms | None = None) -> HeadForms:
    """Forms after a head with these lines came so often."""
    forms = HeadForms() if forms is None else forms
    for _ in range(times):
        noted(forms, head(*lines))
    return forms


def noted(forms: HeadForms, data: bytes) -> Head:
    read = read_head(data, bodiless=False)
    forms.note(data, read)
    return read


def form_of(forms: HeadForms, *lines: bytes) -> HeadForm | None:
    return noted(forms, head(*lines)).fields.form


def test_a_head_that_has_a_form_is_read_as_any_other() -> None:
    forms = known(*USUAL)
    lines = [line.replace(b"1", b"2") if line[:4] in (b"Date", b"ETag", b"X-Ot", b"Serv") else line for line in USUAL]
    data = head(*(line.replace(b": 4", b": 0017") for line in lines))
    found = forms.match(data + b"body")
    assert found is not None
    assert found == (read_head(data, bodiless=False), len(data))
    again = forms.match(data)
    assert again is not None
    assert all(one is other for one, other in zip(found[0].fields, again[0].fields, strict=True))
    assert found[0].fields.form is form_of(forms, *USUAL)


CHANGED = st.sampled_from(
    [b"", b" ", b"\t", b"\r", b"\n", b"\r\n", b"\r\n ", b"\0", b":", b"\xff", b"5", b"X-A: b\r\n"]
)


@given(
    places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3), CHANGED), min_size=1, max_size=4),
    lines=st.permutations(USUAL),
)
def test_what_matches_a_form_is_read_as_any_other_whatever_its_bytes(
    places: list[tuple[float, int, bytes]], lines: list[bytes]
) -> None:
    forms = known(*lines)
    data = head(*lines)
    for share, removed, added in places:
        at = int(share * len(data))
        data = data[:at] + added + data[at + removed :]
    found = forms.match(data)
    if found is not None:
        assert found[1] == end_of_head(data, 0)
        assert found[0] == read_head(data[: found[1]], bodiless=False)


def test_heads_with_one_form_differ_in_what_is_copied_alone() -> None:
    forms = known(*USUAL, times=2)
    same = form_of(forms, *USUAL)
    assert same is not None
    assert form_of(forms, *(line.replace(b'"1"', b'"2"').replace(b": 4", b": 5") for line in USUAL)) is same
    for others in (
        [line.replace(b"max-age=60", b"max-age=61") for line in USUAL],
        [line.replace(b"a/b", b"a/c") for line in USUAL],
        [*USUAL, b"Connection: close"],
        [*USUAL[1:], b"X-More: 1"],
        [*USUAL[-1:], *USUAL[:-1]],
    ):
        known(*others, times=2, forms=forms)
        assert form_of(forms, *others) not in (None, same)
    assert len(forms) == 6


def test_a_form_is_known_from_the_second_time_on_and_no_field_may_be_there_twice() -> None:
    forms = HeadForms()
    assert form_of(forms, *USUAL) is None
    assert form_of(forms, *USUAL) is not None
    assert [form_of(forms, *USUAL, b"X-Other: 3") for _ in range(100)] == [None] * 100


def test_a_head_with_a_cookie_has_no_form_and_is_kept_nowhere() -> None:
    forms = HeadForms()
    assert [form_of(forms, *USUAL, b"Set-Cookie: secret=1") for _ in range(3)] == [None] * 3
    assert not forms._known
    assert not forms._came_once


def test_a_long_head_has_no_form() -> None:
    forms = HeadForms()
    assert [form_of(forms, *USUAL, b"X-Long: " + b"a" * 4096) for _ in range(3)] == [None] * 3
    assert [form_of(forms, *[b"Server: a"] * 63) for _ in range(3)] == [None] * 3


def test_a_long_head_that_a_pattern_reads_is_not_kept() -> None:
    forms = known(b"X-A: 1")
    short, long = head(b"X-A: 2"), head(b"X-A: " + b"a" * 4096)
    for data, kept in ((short, True), (long, False)):
        one, other = forms.match(data), forms.match(data)
        assert one is not None
        assert other is not None
        assert one[0] == other[0] == read_head(data, bodiless=False)
        assert (one[0].fields[0] is other[0].fields[0]) == kept


def test_a_value_that_decides_and_changes_each_time_takes_no_place_for_ever() -> None:
    forms = known(*USUAL, times=2)
    usual = form_of(forms, *USUAL)
    assert usual is not None
    for number in range(1000):
        assert form_of(forms, b"Cache-Control: max-age=%d" % number) is None
        assert form_of(forms, *USUAL) is usual
    assert [form_of(forms, b"X-A: 1") is None for _ in range(2)] == [True, False]


def test_forms_are_as_many_as_their_bound() -> None:
    forms = HeadForms()
    for number in range(1000):
        known(b"Cache-Control: max-age=%d" % number, times=2, forms=forms)
        assert 0 < len(forms) <= 256
    assert len(forms) > 200


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\nContent-Length: 4\n\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nA: 1\r\n 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\nA: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nA: \r\n\r\n",
        b"HTTP/1.1 200 OK\r\nServer: a\r\n b: 4\r\nContent-Length: 4\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 4\r\nServer: a\r\n\tb: 4\r\n\r\n",
        b"HTTP/1.1 200 OK\nServer: a\r\nContent-Length: 4\r\n\r\n",
    ],
)
def test_heads_that_deviate_from_http_are_read_line_by_line(data: bytes) -> None:
    forms = HeadForms()
    for _ in range(100):
        assert noted(forms, data).length == 4
    assert forms.match(data) is None
    assert isinstance(noted(forms, data).fields, Fields)
