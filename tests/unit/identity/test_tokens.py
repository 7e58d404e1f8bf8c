"""Tokens: each way of RFC 8725 in which one is wrong is refused, before its signature where that is possible."""

from __future__ import annotations

import base64
import hmac
import json
import string
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from joserfc import jws

from gateway.config.identity import ASYMMETRIC
from gateway.identity import tokens
from gateway.identity.key_set import KeySet, parse_key_set, secret_key
from gateway.identity.principal import Principal
from gateway.identity.tokens import (
    LONGEST_TOKEN,
    Issuer,
    TokenRefused,
    UnknownKey,
    read,
    verify,
)
from tests.support.tokens import ISSUER, NOW, TestIssuer, encoded, symmetric, unsigned

issuer = TestIssuer()
KEYS = parse_key_set(issuer.jwks)
_BASE64URL = string.ascii_letters + string.digits + "-_"


def accepted(**changes: Any) -> dict[str, Issuer]:
    setting = {"algorithms": frozenset(ASYMMETRIC), "audience": frozenset(["shop-api"]), **changes}
    return {ISSUER: Issuer("shop", ISSUER, **setting)}


def checked(token: bytes, *, keys: KeySet = KEYS, now: float = NOW, **changes: Any) -> Principal:
    _, found = read(token, accepted(**changes), now)
    return verify(found, keys.of(found.kid))


def refusal(token: bytes, **arguments: Any) -> str:
    with pytest.raises(TokenRefused) as refused:
        checked(token, **arguments)
    assert token.decode("latin-1") not in refused.value.detail
    return refused.value.reason


def refused_unverified(token: bytes, **changes: Any) -> str:
    """The reason for which a token is refused before any key is looked for."""
    with pytest.raises(TokenRefused) as refused:
        read(token, accepted(**changes), NOW)
    return refused.value.reason


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "Ed25519", "EdDSA"])
def test_a_valid_token_of_each_algorithm_says_who_asks(algorithm: str) -> None:
    signed = issuer.sign(algorithm, scope="home:read  cart", plan="gold")
    principal = checked(signed)
    assert (principal.provider, principal.issuer, principal.subject) == ("shop", ISSUER, "anna")
    assert principal.scopes == {"home:read", "cart"}
    assert principal.claim("plan") == "gold"
    assert (principal.issued_at, principal.expires_at) == (NOW - 10, NOW + 600)


@pytest.mark.parametrize("name", ["none", "None", "nOnE", "HS256", "RS257", "", None, 7, ["RS256"]])
def test_an_algorithm_that_is_not_listed_is_refused_before_any_key_is_used(name: Any) -> None:
    assert refused_unverified(unsigned({"alg": name, "kid": "rsa"}, issuer.claims())) == "algorithm"


def test_a_public_key_is_no_secret_of_an_hmac() -> None:
    """RFC 8725 §2.1: a token is signed by HMAC, with the issuer's public key as the secret."""
    public = issuer.keys["RS256"].as_pem(private=False)
    signed = unsigned({"alg": "HS256", "kid": "rsa"}, issuer.claims()).rpartition(b".")[0]
    forged = signed + b"." + encoded(hmac.digest(public, signed, "sha256"))
    assert refusal(forged) == "algorithm"
    # Nor where the operator has allowed both: the key's type must fit.
    assert refusal(forged, algorithms=frozenset(("HS256", "RS256"))) == "key"


def test_a_token_of_a_shared_secret_is_accepted_where_the_setting_says_so() -> None:
    secret = b"0123456789abcdef0123456789abcdef"
    signed = jws.serialize_compact(
        {"alg": "HS256"}, json.dumps(issuer.claims()).encode(), symmetric(secret), algorithms=["HS256"]
    ).encode()
    keys = secret_key(secret, frozenset(["HS256"]))
    assert checked(signed, keys=keys, algorithms=frozenset(["HS256"])).subject == "anna"
    other = secret_key(b"another secret of thirty-two byte", frozenset(["HS256"]))
    assert refusal(signed, keys=other, algorithms=frozenset(["HS256"])) == "signature"


@pytest.mark.parametrize("name", ["jwk", "jku", "x5u", "x5c", "crit", "b64", "zip"])
def test_a_header_that_brings_a_key_or_an_extension_is_refused(name: str) -> None:
    value: Any = {"jwk": issuer.keys["RS256"].as_dict(private=False), "crit": ["exp"]}.get(name, "https://evil")
    assert refused_unverified(unsigned({"alg": "RS256", name: value}, issuer.claims())) == "header"


@pytest.mark.parametrize(
    "kid", ["../../dev/null", "/etc/passwd", "a/../b", "a\x00", "' or 1=1", "", "k" * 257, 7, ["a"]]
)
def test_a_kid_that_is_no_name_is_refused_without_a_look_up(kid: Any) -> None:
    assert refused_unverified(unsigned({"alg": "RS256", "kid": kid}, issuer.claims())) == "header"


@pytest.mark.parametrize(
    "kid", ["a/b+c==", "NjVBRjY5MDlCMUIwNzU4RTA2QzZFMDQ4QzQ2MDAyQjVDNjk1RTM2Qg", "k:1@idp", "_a-b.c"]
)
def test_the_kids_of_common_issuers_are_names(kid: str) -> None:
    _, found = read(unsigned({"alg": "RS256", "kid": kid}, issuer.claims()), accepted(), NOW)
    with pytest.raises(UnknownKey) as unknown:
        verify(found, KEYS.of(found.kid))
    assert unknown.value.kid == kid


@pytest.mark.parametrize("typ", ["logout+jwt", "secevent+jwt", "dpop+jwt", "id+jwt", "", 7])
def test_a_token_of_another_use_is_refused(typ: Any) -> None:
    assert refused_unverified(unsigned({"alg": "RS256", "typ": typ}, issuer.claims())) == "type"


@pytest.mark.parametrize("typ", ["JWT", "at+jwt", "AT+JWT", "application/at+jwt", None])
def test_an_access_token_is_accepted_with_each_name_of_its_type(typ: Any) -> None:
    assert checked(issuer.sign(header={"typ": typ})).subject == "anna"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iss": "https://id.example.com/"}, "issuer"),
        ({"iss": None}, "issuer"),
        ({"iss": ["https://id.example.com"]}, "issuer"),
        ({"aud": None}, "audience"),
        ({"aud": "shop"}, "audience"),
        ({"aud": []}, "audience"),
        ({"aud": {"shop-api": 1}}, "audience"),
        ({"exp": None}, "expiry"),
        ({"exp": "1900000000"}, "claims"),
        ({"exp": True}, "claims"),
        ({"exp": -1}, "claims"),
        ({"exp": 1e300}, "claims"),
        ({"exp": NOW - 30}, "expired"),
        ({"nbf": NOW + 31}, "early"),
        ({"iat": NOW + 31}, "early"),
        ({"nbf": "soon"}, "claims"),
        ({"sub": ["anna"]}, "claims"),
        ({"sub": 1.5}, "claims"),
        ({"sub": True}, "claims"),
        ({"iat": None}, "age"),
    ],
)
def test_claims_that_do_not_hold_are_refused_before_the_signature(changes: dict[str, Any], reason: str) -> None:
    assert refused_unverified(unsigned({"alg": "RS256"}, issuer.claims(**changes))) == reason
    assert refusal(issuer.sign(**changes)) == reason


def test_the_leeway_is_granted_at_both_ends() -> None:
    assert checked(issuer.sign(exp=NOW - 29.5, nbf=NOW + 30, iat=NOW + 30)).subject == "anna"
    assert refusal(issuer.sign(exp=NOW - 0.5), leeway=0.0) == "expired"


def test_one_of_several_audiences_is_enough() -> None:
    assert checked(issuer.sign(aud=["other", "shop-api"])).subject == "anna"


@pytest.mark.parametrize(
    "text",
    [
        f'{{"iss": "{ISSUER}", "aud": "shop-api", "exp": 1900000000, "sub": "a", "sub": "b"}}',
        f'{{"iss":"{ISSUER}","aud":"shop-api","exp":1900000000,"sub":"a","sub":"b"}}',
        f'{{"iss":"{ISSUER}","aud":"shop-api","exp":1900000000,"sub":"a","sub" :"a"}}',
        f'{{"iss":"{ISSUER}","aud":"shop-api","exp":1900000000,"sub":"a","s\\u0075b":"b"}}',
        f'{{"iss":"{ISSUER}","aud":"shop-api","exp":1900000000,"address":{{"a":[{{"b":1,"b":1}}]}}}}',
        f'{{"iss": "{ISSUER}", "aud": "shop-api", "exp": NaN}}',
        '["iss"]',
        "null",
        "",
        "[" * 3000,
        f'{{"iss": "{ISSUER}", "exp": {"9" * 4400}}}',
    ],
)
def test_claims_that_are_no_one_object_are_refused(text: str) -> None:
    assert refused_unverified(issuer.sign(claims=text)) == "form"


@pytest.mark.parametrize(
    "token",
    [b"", b"a", b"a.b", b"a.b.c.d", b"..", b"a b.c.d", b"\xff.b.c", b"e30=.e30=.eA==", b"e31.e30.eA", b"e30.e30."],
)
def test_what_is_no_compact_token_is_refused(token: bytes) -> None:
    assert refused_unverified(token) == "form"


@pytest.mark.parametrize("last", _BASE64URL)
def test_each_piece_is_read_in_the_one_form_of_its_bytes(last: str) -> None:
    """RFC 7515 §2: bits that stand for nothing are zero, or one signature has several texts."""
    pieces = issuer.sign("RS256").split(b".")
    for length in range(1, 9):
        piece = (length - 1) * b"A" + last.encode()
        found = base64.urlsafe_b64decode(piece + b"==") if length % 4 != 1 else b""
        only_form = encoded(found) == piece
        token = b".".join((*pieces[:2], piece))
        if only_form:
            assert read(token, accepted(), NOW)[1].signature == found
        else:
            assert refused_unverified(token) == "form"
        assert refused_unverified(b".".join((piece, *pieces[1:]))) == "form"
        assert refused_unverified(b".".join((pieces[0], piece, pieces[2]))) == "form"


def test_a_header_that_was_read_is_judged_by_the_settings_of_each_issuer() -> None:
    signed = issuer.sign("RS256")
    assert checked(signed).subject == "anna"
    assert refused_unverified(signed, algorithms=frozenset(["ES256"])) == "algorithm"
    assert checked(issuer.sign("RS256", sub="ben")).subject == "ben"


def test_a_token_that_is_too_long_is_refused_unread() -> None:
    assert refused_unverified(issuer.sign(pad="x" * LONGEST_TOKEN)) == "size"


def test_a_token_of_another_key_is_refused() -> None:
    assert refusal(TestIssuer().sign()) == "signature"


def test_a_signature_does_not_fit_other_claims() -> None:
    header, _, signature = issuer.sign().split(b".")
    other = encoded(json.dumps(issuer.claims(sub="berta")).encode())
    assert refusal(b".".join((header, other, signature))) == "signature"


def test_the_key_must_be_of_the_algorithms_type() -> None:
    """RFC 8725 §3.1: an elliptic key named by a token that claims RSA."""
    assert refusal(unsigned({"alg": "RS256", "kid": "ec"}, issuer.claims())) == "key"


def test_a_token_without_kid_is_tried_with_the_few_keys_that_fit() -> None:
    assert checked(issuer.sign("ES256", header={"kid": None})).subject == "anna"
    many = KeySet(tuple(KEYS.of("rsa") * 5))
    assert refusal(issuer.sign(header={"kid": None}), keys=many) == "header"


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_a_refusal(token: bytes) -> None:
    with pytest.raises(TokenRefused):
        checked(token)


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5)


@given(header=st.dictionaries(st.text(max_size=5), JSON), claims=st.dictionaries(st.text(max_size=5), JSON))
def test_no_header_and_claims_raise_anything_but_a_refusal(header: Any, claims: Any) -> None:
    with pytest.raises(TokenRefused):
        checked(unsigned({"alg": "RS256", **header}, {**issuer.claims(), **claims}))


VALUES = st.recursive(
    JSON | st.sampled_from(("\ud800", "/", "\x7f", "\u2028")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(value=VALUES, compact=st.booleans(), ascii_only=st.booleans(), again=st.integers(0, 9))
@example(value={"a": 2**64, "b": -0.0, "c": 1e22, "d": 0.1}, compact=True, ascii_only=True, again=0)
def test_a_text_is_read_as_by_looking_at_each_name(value: Any, compact: bool, ascii_only: bool, again: int) -> None:
    """`again` says whether, and how, a name of the text stands twice."""
    separators = (",", ":") if compact else (", ", " : ")
    text = json.dumps(value, separators=separators, ensure_ascii=ascii_only)
    if again > 6 and isinstance(value, dict) and value:
        text = f"{text[:-1]},{text[1:]}" if again > 7 else f'{text[:-1]},"{next(iter(value))}":1}}'
    raw = text.encode("utf-8", "surrogatepass")
    try:
        found: Any = repr(tokens._JSON.decode(raw.decode("utf-8")))
    except ValueError:
        found = None
    as_written = tokens._as_written(raw)
    assert as_written is None or repr(as_written) == found


def test_scopes_are_read_from_both_common_claims() -> None:
    assert checked(issuer.sign(scope="a b", scp=["c", "d e", 7])).scopes == {"a", "b", "c", "d", "e"}


def test_a_text_that_is_nested_too_deeply_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_JSON", None)  # which reads what the first reader does not
    for claims in (b'{"a":' + b"[" * 5000 + b"]" * 20 + b"}", b'{"a":' * 1200):
        assert refused_unverified(b".".join((encoded(b'{"alg":"RS256"}'), encoded(claims), b"AAAA"))) == "form"
