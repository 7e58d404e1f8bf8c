"""The client's trace: which `traceparent` is taken, and that it replaces any other."""

from __future__ import annotations

import pytest

from gateway.observability.trace_context import traced, traceparent_of

GOOD = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_one_of_version_00_is_taken_as_it_is() -> None:
    assert traceparent_of([(b"accept", b"a/b"), (b"traceparent", GOOD)]) == GOOD


@pytest.mark.parametrize(
    "given",
    [
        [],
        [GOOD, GOOD],
        [GOOD.upper()],
        [b"01" + GOOD[2:]],
        [GOOD + b"-more"],
        [GOOD[:-1]],
        [GOOD.replace(b"0af7651916cd43dd8448eb211c80319c", b"0" * 32)],
        [GOOD.replace(b"b7ad6b7169203331", b"0" * 16)],
        [GOOD + b"\n"],
        [b""],
    ],
    ids=["none", "two", "capitals", "a later version", "longer", "shorter", "no trace", "no span", "a line", "empty"],
)
def test_any_other_is_no_trace(given: list[bytes]) -> None:
    assert traceparent_of([(b"traceparent", value) for value in given]) == b""


def test_ids_of_which_not_all_digits_are_zero_are_taken() -> None:
    sparse = b"00-" + b"0" * 31 + b"1-" + b"0" * 15 + b"1-00"
    assert traceparent_of([(b"traceparent", sparse)]) == sparse


def test_a_request_of_a_trace_has_its_traceparent_once_and_one_of_none_keeps_its_fields() -> None:
    fields = [(b"traceparent", b"another"), (b"accept", b"a/b")]
    assert traced(fields, GOOD) == [(b"accept", b"a/b"), (b"traceparent", GOOD)]
    assert traced(fields, b"") is fields
