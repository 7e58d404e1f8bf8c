"""JWK Sets: which keys verify tokens, and which are left out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, OKPKey, RSAKey

from gateway.identity.key_set import MAX_KEYS, InvalidKeySet, KeySet, parse_key_set
from tests.support.tokens import TestIssuer

issuer = TestIssuer()
RSA: dict[str, Any] = dict(issuer.keys["RS256"].as_dict(private=False))
EC: dict[str, Any] = dict(issuer.keys["ES256"].as_dict(private=False))
ED: dict[str, Any] = dict(issuer.keys["Ed25519"].as_dict(private=False))


def short_rsa() -> dict[str, Any]:
    with pytest.warns(SecurityWarning):
        return dict(RSAKey.generate_key(1024).as_dict(private=False))


def keys_of(*members: Any) -> KeySet:
    return parse_key_set(json.dumps({"keys": members}).encode())


@pytest.mark.parametrize(
    ("member", "algorithms"),
    [
        (RSA, {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}),
        (RSA | {"alg": "RS256"}, {"RS256"}),
        (EC, {"ES256"}),
        (ED, {"Ed25519", "EdDSA"}),
        (ED | {"alg": "EdDSA"}, {"Ed25519", "EdDSA"}),
        (
            RSA | {"use": "sig", "key_ops": ["verify"], "x5t": "abc"},
            {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"},
        ),
    ],
)
def test_a_key_verifies_the_algorithms_of_its_type_and_no_others(member: Any, algorithms: set[str]) -> None:
    (key,) = keys_of(member).keys
    assert key.algorithms == algorithms


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        ({"kty": "oct", "k": "c2VjcmV0", "kid": "rsa"}, "of the type 'oct'"),
        (RSA | {"use": "enc"}, "not for signatures"),
        (RSA | {"key_ops": ["encrypt"]}, "not for signatures"),
        (RSA | {"alg": "ES256"}, "not supported"),
        (RSA | {"n": 7}, ""),
        (short_rsa(), "not supported"),
        (dict(ECKey.generate_key("secp256k1").as_dict(private=False)), "not supported"),
        (dict(OKPKey.generate_key("Ed448").as_dict(private=False)), "not supported"),
        (dict(OKPKey.generate_key("X25519").as_dict(private=False)), "not supported"),
        ({"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}, ""),
        ({"kty": ["RSA"]}, "of the type"),
        ("a key", "not an object"),
        (None, "not an object"),
    ],
)
def test_a_key_that_can_not_be_used_is_left_out_with_its_reason(member: Any, reason: str) -> None:
    found = keys_of(member, EC)
    assert [key.kid for key in found.keys] == ["ec"]
    assert found.ignored[0].startswith("key 0: ")
    assert reason in found.ignored[0]
    with pytest.raises(InvalidKeySet, match="no key verifies signatures"):
        keys_of(member)


@pytest.mark.parametrize("document", [b"", b"<html>", b"[]", b"{}", b'{"keys": {}}', b'{"keys": []}', b"\xff"])
def test_what_is_no_key_set_is_refused(document: bytes) -> None:
    with pytest.raises(InvalidKeySet):
        parse_key_set(document)


def test_a_private_key_in_a_set_is_used_as_its_public_part() -> None:
    (key,) = keys_of(dict(issuer.keys["RS256"].as_dict(private=True))).keys
    assert not key.material.is_private


def test_keys_are_found_by_name_and_all_of_them_without_one() -> None:
    found = keys_of(RSA, EC, EC | {"kid": 7})
    assert [key.kid for key in found.of("ec")] == ["ec"]
    assert [key.kid for key in found.of("other")] == []
    assert [key.kid for key in found.of(None)] == ["rsa", "ec", None]


def test_a_set_is_bounded() -> None:
    assert len(keys_of(*[EC] * (MAX_KEYS + 5)).keys) == MAX_KEYS
