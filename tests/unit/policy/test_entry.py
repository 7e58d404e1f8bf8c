"""record: what is stored comes back as it was, or not at all; and takes the bytes it is counted with."""

from __future__ import annotations

import math
import pickle
import tracemalloc

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_digest

from gateway.http.request_parser import BAD_IN_VALUE
from gateway.policy.entry import (
    MAGIC,
    VERSION,
    Entry,
    Life,
    beginning_of,
    decode_index,
    decode_stored,
    encode,
    is_sealed,
    tail_of,
)
from gateway.policy.vary import VaryIndex
from tests.support.entries import SAMPLE

PREFIX = MAGIC + bytes((VERSION,))
INDEX = VaryIndex(primary="api\n/t", names=(("accept",), ("accept", "x-a"), ()))


def changed(**fields: object) -> Entry:
    return msgspec.structs.replace(SAMPLE, **fields)


# --- the format --------------------------------------------------------------------------------------------


def test_a_stored_response_comes_back_as_it_was() -> None:
    assert decode_stored(encode(SAMPLE), SAMPLE.key) == SAMPLE


def test_an_index_comes_back_as_it_was() -> None:
    assert decode_index(encode(INDEX), INDEX.primary) == INDEX


def test_a_record_begins_with_its_magic_and_version() -> None:
    assert encode(SAMPLE)[:3] == b"GW\x03"


def test_the_format_of_version_1_has_not_changed() -> None:
    plain = Entry(key="k", primary="p", born=2.0, started=1.0, initial_age=0.0, status=200, headers=((b"a", b"b"),),
                   body=b"c", life=Life())  # fmt: skip
    fields = msgspec.msgpack.decode(encode(plain)[11:])
    assert fields[:8] == ["k", "p", 2.0, 1.0, 0.0, 200, [[b"a", b"b"]], b"c"]
    assert fields[8][:7] == [None, 0.0, None, None, False, False, False]  # what came later stands at the end
    assert fields[9:14] == [0.0, [], [], "", ""]


@pytest.mark.parametrize("decode", [decode_stored, decode_index])
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"GW", id="half a prefix"),
        pytest.param(PREFIX, id="a prefix alone"),
        pytest.param(PREFIX + b"\xc1", id="a byte that MessagePack does not use"),
        pytest.param(PREFIX + b"\xc0", id="nil"),
        pytest.param(PREFIX + b"\x90", id="an empty array"),
        pytest.param(PREFIX + b"\x80", id="an empty map"),
        pytest.param(PREFIX + b"\xdd\xff\xff\xff\xff", id="an array of 4 billion"),
        pytest.param(PREFIX + b"\xc6\xff\xff\xff\xff", id="bytes of 4 GiB"),
        pytest.param(PREFIX + b"\x91" * 100_000, id="a deep array"),
        pytest.param(pickle.dumps(SAMPLE.key), id="pickled"),
        pytest.param(PREFIX + pickle.dumps(SAMPLE.key), id="pickled, with our prefix"),
        pytest.param(b'{"key": "k"}', id="JSON"),
    ],
)
def test_what_is_no_record_is_none(decode: object, data: bytes) -> None:
    assert callable(decode)
    assert decode(data, "k") is None


@pytest.mark.parametrize("version", [0, 2, 255])
def test_a_record_of_another_version_is_none(version: int) -> None:
    data = MAGIC + bytes((version,)) + encode(SAMPLE)[3:]
    assert decode_stored(data, SAMPLE.key) is None
    assert decode_index(MAGIC + bytes((version,)) + encode(INDEX)[3:], INDEX.primary) is None


def test_a_record_stored_under_another_key_is_none() -> None:
    assert decode_stored(encode(SAMPLE), SAMPLE.key + "x") is None
    assert decode_index(encode(INDEX), INDEX.primary + "x") is None


def test_a_record_of_the_other_kind_is_none() -> None:
    assert decode_stored(encode(INDEX), INDEX.primary) is None
    assert decode_index(encode(SAMPLE), SAMPLE.key) is None


@pytest.mark.parametrize("cut", range(len(encode(SAMPLE))))
def test_a_record_that_is_cut_is_none(cut: int) -> None:
    assert decode_stored(encode(SAMPLE)[:cut], SAMPLE.key) is None


def test_an_index_that_is_cut_is_none() -> None:
    data = encode(INDEX)
    assert {decode_index(data[:cut], INDEX.primary) for cut in range(len(data))} == {None}


def test_a_record_with_bytes_after_its_end_is_none() -> None:
    assert decode_stored(encode(SAMPLE) + b"\x00", SAMPLE.key) is None


def deeper(record: Entry | VaryIndex) -> bytes:
    """A record with one field more than are known, which is a deep array."""
    known = msgspec.to_builtins(record, builtin_types=(bytes,))
    fields = b"".join(map(msgspec.msgpack.encode, known))
    payload = b"\xdc" + (len(known) + 1).to_bytes(2) + fields + b"\x91" * 100_000
    return PREFIX + xxh3_64_digest(payload) + payload


def test_a_deep_array_after_the_known_fields_is_none() -> None:
    assert decode_stored(deeper(SAMPLE), SAMPLE.key) is None
    assert decode_index(deeper(INDEX), INDEX.primary) is None


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"status": 99}, id="a status of 99"),
        pytest.param({"status": 600}, id="a status of 600"),
        pytest.param({"born": -1.0}, id="a birth before 1970"),
        pytest.param({"born": math.nan}, id="a birth that is no number"),
        pytest.param({"initial_age": -1.0}, id="a negative age"),
        pytest.param({"jitter": 1.0}, id="a jitter of the whole"),
        pytest.param({"jitter": -0.1}, id="a negative jitter"),
        pytest.param({"headers": ((b"a", b"b\r\nc: d"),)}, id="a line break in a header"),
        pytest.param({"headers": ((b"a", b"b\nc"),)}, id="a line feed in a header"),
        pytest.param({"headers": ((b"a", b"b\0"),)}, id="NUL in a header"),
        pytest.param({"headers": ((b"a", b"b\x1b"),)}, id="ESC in a header"),
        pytest.param({"headers": ((b"a", b"b\x7f"),)}, id="DEL in a header"),
    ],
)
def test_a_record_that_cannot_be_ours_is_none(fields: dict[str, object]) -> None:
    assert decode_stored(encode(changed(**fields)), SAMPLE.key) is None


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"headers": ((b"a: b\r\nc", b"d"),)}, id="a line break in a header's name"),
        pytest.param({"headers": ((b"a\nb", b"c"),)}, id="a line feed in a header's name"),
        pytest.param({"headers": ((b"a", b"b"), (b"", b"c"))}, id="an empty header name"),
        pytest.param({"headers": ((b"a", b"b"), (b"a\n", b"c"))}, id="a line feed that ends a header's name"),
        pytest.param({"born": math.inf}, id="an infinite birth"),
        pytest.param({"initial_age": math.inf}, id="an infinite age"),
        pytest.param({"started": math.nan}, id="a start that is no number"),
        pytest.param({"life": Life(lifetime=math.nan)}, id="a lifetime that is no number"),
        pytest.param({"life": Life(stale_if_error=math.nan)}, id="a stale window that is no number"),
    ],
)
def test_a_planted_record_that_would_break_an_answer_is_none(fields: dict[str, object]) -> None:
    assert decode_stored(encode(changed(**fields)), SAMPLE.key) is None


def test_a_record_with_one_wrong_byte_is_none() -> None:
    data = encode(SAMPLE)
    wrong = [bytes((*data[:at], data[at] ^ 1, *data[at + 1 :])) for at in range(len(data))]
    assert {decode_stored(each, SAMPLE.key) for each in wrong} == {None}


# --- properties --------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SECONDS = st.floats(0, 2**37)
LIVES = st.builds(
    Life,
    lifetime=st.none() | SECONDS,
    heuristic=SECONDS,
    stale_while_revalidate=st.none() | SECONDS,
    stale_if_error=st.none() | SECONDS,
    strict=st.booleans(),
    no_cache=st.booleans(),
    shared=st.booleans(),
)
VALUES = st.binary(max_size=20).filter(lambda value: not BAD_IN_VALUE.search(value))
NAMES = st.text("abc-z0_!", min_size=1, max_size=8).map(str.encode)
VARYING = st.from_regex(
    r"[!#$%&'*+\-.^_`|~0-9a-z]+|:(host|scheme|root)|cookie:[\x21-\x3a\x3c\x3e-\x7e]+", fullmatch=True
)
STORED = st.builds(
    Entry,
    key=TEXT,
    primary=TEXT,
    born=SECONDS,
    started=SECONDS,
    initial_age=SECONDS,
    status=st.integers(200, 599).filter(lambda status: status not in (204, 205, 206, 304, 429)),
    headers=st.lists(st.tuples(NAMES, VALUES), max_size=5).map(tuple),
    body=st.binary(max_size=100),
    life=LIVES,
    jitter=st.floats(0, 1, exclude_max=True),
    tags=st.lists(TEXT, max_size=3).map(tuple),
    vary=st.lists(VARYING, max_size=3).map(tuple),
    route=TEXT,
    stamp=TEXT,
)
INDICES = st.builds(
    VaryIndex,
    primary=TEXT,
    names=st.lists(st.lists(VARYING, max_size=3).map(tuple), max_size=4).map(tuple),
)


NEVER_STORED = ("content-length", "transfer-encoding", "connection", "upgrade", "trailer", "set-cookie", "age")


@given(STORED, st.sampled_from(NEVER_STORED))
def test_a_record_with_a_field_that_frames_an_answer_or_names_a_client_is_refused(stored: Entry, name: str) -> None:
    planted = msgspec.structs.replace(stored, headers=(*stored.headers, (name.encode(), b"5")))
    assert decode_stored(encode(planted), stored.key) is None


VARY_ON_NOTHING = (
    "",
    "Upper",
    "a b",
    "a\n",
    "\u20ac",
    "a\u0131",
    ":",
    ":Host",
    "cookie:",
    "cookie:a=b",
    "cookie:a;b",
    "x\0",
)


@pytest.mark.parametrize(
    "spoiled",
    [
        *({"status": status} for status in (0, 103, 199, 206, 304, 429, 600, 10**6)),
        *({"status": status, "body": b"HTTP/1.1 200 OK\r\n\r\n"} for status in (204, 205)),
        *({name: number} for name in ("born", "started", "initial_age") for number in (9e12, -1.0, math.nan, math.inf)),
        *({"jitter": number} for number in (-0.1, 1.0, math.nan)),
        *({"life": Life(lifetime=number)} for number in (-1.0, math.nan, math.inf, 1e300)),
        *({"vary": (name,)} for name in VARY_ON_NOTHING),
        {"headers": ((b"x", b"a\r\nb"),)},
        {"headers": ((b"X-Upper", b"a"),)},
        {"stamp": "1" * 101},
        {"names": ("k:" + "x" * 40,)},
        {"softened": 1.0},
        {"distrusted": True},
    ],
    ids=lambda spoiled: repr(spoiled)[:80],
)
@settings(max_examples=5)
@given(STORED)
def test_a_record_that_no_gateway_makes_is_refused(spoiled: dict[str, object], stored: Entry) -> None:
    assert decode_stored(encode(msgspec.structs.replace(stored, **spoiled)), stored.key) is None


@given(STORED)
def test_any_stored_response_comes_back_as_it_was(stored: Entry) -> None:
    assert decode_stored(encode(stored), stored.key) == stored


@given(INDICES)
def test_any_index_comes_back_as_it_was(index: VaryIndex) -> None:
    assert decode_index(encode(index), index.primary) == index


@pytest.mark.parametrize(
    "large",
    [
        {"tags": ("x" * 2**20,)},
        {"vary": tuple(f"x-{number}" for number in range(257))},
        {"headers": ((b"x", b"y"),) * 10_001},
    ],
    ids=["tags", "vary", "fields"],
)
def test_a_record_larger_than_any_of_ours_is_refused(large: dict[str, object]) -> None:
    assert decode_stored(encode(changed(**large)), SAMPLE.key) is None


@pytest.mark.parametrize("names", [*(((name,),) for name in VARY_ON_NOTHING), ((),) * 9], ids=repr)
def test_an_index_of_what_is_no_name_is_none(names: tuple[tuple[str, ...], ...]) -> None:
    assert decode_index(encode(VaryIndex(primary="p", names=names)), "p") is None


@settings(max_examples=500)
@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_are_none(data: bytes, prefixed: bool) -> None:
    data = PREFIX + data if prefixed else data
    assert decode_stored(data, "") is None
    assume(not data.startswith(PREFIX + b"\x91\xa0"))  # the smallest index there is
    assert decode_index(data, "a key that random bytes do not hold") is None


@settings(max_examples=500)
@given(st.data())
def test_corrupt_bytes_never_raise_and_never_belong_to_another_key(data: st.DataObject) -> None:
    record = bytearray(encode(SAMPLE))
    for _ in range(data.draw(st.integers(1, 4))):
        record[data.draw(st.integers(0, len(record) - 1))] = data.draw(st.integers(0, 255))
    stored = decode_stored(bytes(record), SAMPLE.key)
    assert stored is None or stored.key == SAMPLE.key
    index = decode_index(bytes(record), INDEX.primary)
    assert index is None or index.primary == INDEX.primary


@pytest.mark.parametrize("secret", [b"", b"0123456789abcdef"], ids=["checksum", "HMAC"])
@pytest.mark.parametrize("entry", [SAMPLE, changed(body=b""), changed(tags=(), vary=(), names=("k:a",), stamp="")])
def test_a_record_ends_with_its_body_and_the_tail_of_its_fields(entry: Entry, secret: bytes) -> None:
    data = encode(entry, secret)
    assert data.endswith(entry.body + tail_of(entry))
    other = encode(msgspec.structs.replace(entry, body=b"another body"), secret)
    assert other.endswith(b"another body" + tail_of(entry)), "the tail depends on nothing before it"


# --- the seal ----------------------------------------------------------------------------------------------

SECRET = b"0123456789abcdef"


def test_a_sealed_record_comes_back_as_it_was() -> None:
    assert decode_stored(encode(SAMPLE, SECRET), SAMPLE.key, SECRET) == SAMPLE
    assert decode_index(encode(INDEX, SECRET), INDEX.primary, SECRET) == INDEX


@pytest.mark.parametrize("sealed", [b"", b"another secret, another"])
@pytest.mark.parametrize("read", [SECRET, b""])
def test_a_record_with_another_seal_or_none_is_not_believed(sealed: bytes, read: bytes) -> None:
    different = sealed != read
    assert (decode_stored(encode(SAMPLE, sealed), SAMPLE.key, read) is None) is different
    assert (decode_index(encode(INDEX, sealed), INDEX.primary, read) is None) is different


@pytest.mark.parametrize("secret", [b"", SECRET], ids=["checksum", "HMAC"])
def test_a_seal_is_checked_without_decoding_the_record(secret: bytes) -> None:
    data = encode(SAMPLE, secret)
    assert is_sealed(data, secret)
    assert not is_sealed(data, b"another secret")
    assert not is_sealed(data[:-1], secret)
    assert not is_sealed(data[:-1] + bytes((data[-1] ^ 1,)), secret)
    assert not is_sealed(b"", secret)


def test_what_follows_the_seal_cannot_be_planted_without_the_secret() -> None:
    planted = encode(changed(body=b"planted"), b"a guess that is wrong")
    honest = encode(SAMPLE, SECRET)
    assert decode_stored(honest[:35] + planted[35:], SAMPLE.key, SECRET) is None


@given(st.binary(max_size=80), st.sampled_from([b"", SECRET]))
def test_no_bytes_are_an_error_whatever_they_are(data: bytes, secret: bytes) -> None:
    assert decode_stored(data, SAMPLE.key, secret) is None
    assert decode_index(data, INDEX.primary, secret) is None


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"\xdd\xff\xff\xff\xff", id="an array of four thousand million"),
        pytest.param(b"\xdf\xff\xff\xff\xff", id="a map of as many"),
        pytest.param(b"\xc6\xff\xff\xff\xff", id="four gibibytes"),
        pytest.param(b"\x91" * 100_000, id="arrays within arrays"),
        pytest.param(b"\x9e\xa1k\xa1p\xdb\xff\xff\xff\xff", id="a text of four gibibytes"),
    ],
)
def test_a_length_is_not_believed_before_its_bytes_are_there(payload: bytes) -> None:
    data = PREFIX + xxh3_64_digest(payload) + payload
    tracemalloc.start()
    try:
        assert decode_stored(data, "k") is None
        assert decode_index(data, "k") is None
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_the_beginning_of_a_record_is_that_of_its_bytes_and_no_other_records() -> None:
    for secret in (b"", b"0123456789abcdef"):
        beginning = beginning_of(SAMPLE, secret)
        assert encode(SAMPLE, secret).startswith(beginning)
        assert len(beginning) < len(encode(SAMPLE, secret))
        assert beginning != beginning_of(changed(body=b"other"), secret)
