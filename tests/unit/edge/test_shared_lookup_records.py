"""Records that are known are read by comparing, and never differently from those that are decoded."""

from __future__ import annotations

import pytest
from msgspec import structs

from gateway.edge.shared_lookup import Records
from gateway.policy.entry import decode_stored, encode
from tests.support.entries import STORED

OTHERS = {
    "body": structs.replace(STORED, body=b"ydob"),
    "longer": structs.replace(STORED, body=b"body body"),
    "empty": structs.replace(STORED, body=b""),
    "headers": structs.replace(STORED, headers=((b"etag", b'"ydob"'),)),
    "behind": structs.replace(STORED, names=("ydob",)),
}


@pytest.mark.parametrize("secret", [b"", b"s"])
@pytest.mark.parametrize("name", OTHERS)
def test_another_response_under_the_key_is_read_as_it_is(secret: bytes, name: str) -> None:
    records = Records(secret, most=4)
    assert records.stored(encode(STORED, secret), "k") == STORED
    assert records.stored(encode(OTHERS[name], secret), "k") == OTHERS[name]
    assert records.stored(encode(STORED, secret), "k") == STORED


@pytest.mark.parametrize("secret", [b"", b"s"])
def test_the_same_response_has_the_same_headers_as_an_object(secret: bytes) -> None:
    records = Records(secret, most=4)
    first, second = (records.stored(encode(STORED, secret), "k") for _ in range(2))
    assert first is not None
    assert second is not None
    assert first == second == STORED
    assert first.headers is second.headers


@pytest.mark.parametrize("secret", [b"", b"s"])
def test_what_is_changed_or_cut_anywhere_is_none_though_it_was_known(secret: bytes) -> None:
    data = encode(STORED, secret)
    records = Records(secret, most=4)
    records.stored(data, "k")
    for at in range(len(data)):
        changed = data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]
        assert records.stored(changed, "k") is None is decode_stored(changed, "k", secret)
        assert records.stored(data[:at], "k") is None
    assert records.stored(data, "k") == STORED


def test_no_more_are_remembered_than_said() -> None:
    records = Records(b"", most=2)
    for key in "abc":
        stored = structs.replace(STORED, key=key, primary=key)
        assert records.stored(encode(stored), key) == stored
    assert len(records) == 2
