"""Content codings: the choice, the entity tags of coded forms, and decoding within a limit."""

from __future__ import annotations

import gzip
import zlib

import brotli
import pytest

from gateway.http.codings import (
    CODINGS,
    MOST_CODINGS,
    MOST_MEMBERS,
    Undecodable,
    decoded,
    plain_tag,
    tag_of,
    wanted,
    zstd,
    zstd_compressed,
)

PLAIN = b"a body that is worth compressing, " * 20
LIMIT = len(PLAIN)


def deflated(body: bytes, *, bits: int) -> bytes:
    deflate = zlib.compressobj(wbits=bits)
    return deflate.compress(body) + deflate.flush()


ENCODED = {
    "gzip": gzip.compress(PLAIN, mtime=0),
    "x-gzip": gzip.compress(PLAIN, mtime=0),
    "deflate": deflated(PLAIN, bits=15),
    "br": brotli.compress(PLAIN),
    "zstd": zstd.compress(PLAIN),
}


def decoded_by(coding: str, body: bytes, limit: int = LIMIT) -> bytes:
    return decoded([(b"content-encoding", coding.encode())], body, limit)


# --- the choice --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, None),
        (b"", None),
        (b"gzip", "gzip"),
        (b"x-gzip", "gzip"),
        (b"gzip, br", "br"),
        (b"GZIP;Q=1.0", "gzip"),
        (b"gzip;q=0.5, br;q=0.4", "gzip"),
        (b"gzip;q=0", None),
        (b"*", "zstd"),
        (b"*;q=0", None),
        (b"identity, gzip;q=0.5", None),
        (b"identity;q=0.5, gzip;q=0.5", "gzip"),
        (b"gzip;q=nonsense", None),
        (b"gzip;", "gzip"),
        (b"compress", None),
    ],
)
def test_the_coding_of_most_weight_is_chosen_in_the_offers_order(accept: bytes | None, chosen: str | None) -> None:
    assert wanted([(b"accept-encoding", accept)] if accept is not None else [], CODINGS) == chosen


# --- entity tags -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("tag", [b'"v1"', b'W/"v1"', b'""'])
def test_the_tag_of_a_coded_form_leads_back_to_the_plain_one(tag: bytes, coding: str) -> None:
    coded = tag_of(tag, coding)
    assert coded != tag
    assert coded.endswith(b'"')
    assert plain_tag(coded) == tag


@pytest.mark.parametrize("tag", [b'"v1"', b'"v1-gzip"', b'"v1-gzip.00000000"'])
def test_an_upstreams_own_tag_is_left_as_it_is(tag: bytes) -> None:
    assert plain_tag(tag) == tag


def test_a_tag_without_quotes_gets_no_suffix() -> None:
    assert tag_of(b"v1", "gzip") == b"v1"


# --- decoding ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ENCODED)
def test_a_body_is_decoded_up_to_the_limit_and_not_beyond(coding: str) -> None:
    assert decoded_by(coding, ENCODED[coding]) == PLAIN
    with pytest.raises(Undecodable, match=f"larger than {LIMIT - 1} bytes"):
        decoded_by(coding, ENCODED[coding], LIMIT - 1)


@pytest.mark.parametrize("coding", ENCODED)
def test_a_truncated_body_is_refused(coding: str) -> None:
    with pytest.raises(Undecodable, match="is cut"):
        decoded_by(coding, ENCODED[coding][:-4])


@pytest.mark.parametrize("coding", ENCODED)
def test_what_is_not_in_its_coding_is_refused(coding: str) -> None:
    with pytest.raises(Undecodable, match=f"not valid {coding}"):
        decoded_by(coding, b"\xff" * 40)


def test_a_body_without_codings_and_an_empty_one_stay() -> None:
    assert decoded([], PLAIN, 1) == PLAIN
    assert decoded_by("gzip", b"") == b""
    assert decoded_by("identity", PLAIN, 1) == PLAIN


def test_deflate_is_decoded_without_its_header_too() -> None:
    assert decoded_by("deflate", deflated(PLAIN, bits=-15)) == PLAIN


def test_several_codings_are_undone_from_the_last_to_the_first() -> None:
    assert decoded_by("gzip, br", brotli.compress(ENCODED["gzip"])) == PLAIN
    assert decoded_by("gzip, br", brotli.compress(b"")) == b""


def test_too_many_codings_and_unknown_ones_are_refused() -> None:
    with pytest.raises(Undecodable, match="more than 4"):
        decoded_by(", ".join(["gzip"] * (MOST_CODINGS + 1)), PLAIN)
    with pytest.raises(Undecodable, match="not supported"):
        decoded_by("compress", PLAIN)


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_members_are_joined_up_to_their_greatest_number(coding: str) -> None:
    one = gzip.compress(b"a", mtime=0) if coding == "gzip" else zstd.compress(b"a")
    assert decoded_by(coding, one * MOST_MEMBERS) == b"a" * MOST_MEMBERS
    with pytest.raises(Undecodable, match=f"more than {MOST_MEMBERS} members"):
        decoded_by(coding, one * (MOST_MEMBERS + 1))


def test_zeros_behind_a_gzip_member_are_padding() -> None:
    assert decoded_by("gzip", ENCODED["gzip"] + b"\0" * 8) == PLAIN


def test_a_body_is_compressed_to_one_frame_that_its_own_decoder_reads() -> None:
    frame = zstd_compressed(PLAIN, 3)
    assert len(frame) < len(PLAIN) // 2
    assert decoded_by("zstd", frame) == PLAIN
