"""The settings of who may do what at the admin listener."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from gateway.config.admin import tokens_of
from gateway.config.models import Config

TOKEN = "a-token-0123456789"
ISSUER = {"issuer": "https://id.example.com", "audience": ["ops"]}


def test_a_named_token_only_reads_by_default_and_is_masked() -> None:
    config = Config.model_validate({"admin_tokens": {"ci": {"token": TOKEN}}})
    assert config.admin_tokens["ci"].roles == ["read"]
    assert TOKEN not in repr(config)


def test_the_tokens_of_a_role_are_the_one_for_all_and_those_that_have_it() -> None:
    tokens = {"ci": {"token": TOKEN, "roles": ["purge"]}, "support": {"token": f"{TOKEN}-2"}}
    named = Config.model_validate({"admin_tokens": tokens}).admin_tokens
    assert tokens_of("read", named, "all") == (b"all", f"{TOKEN}-2".encode())
    assert tokens_of("purge", named, None) == (TOKEN.encode(),)
    assert tokens_of("revoke", named, "") == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"admin_tokens": {"ci": {"token": "short"}}}, "must have at least 16 characters"),
        ({"admin_tokens": {"ci": {"token": "with spaces 0123456789"}}}, "without spaces"),
        ({"admin_tokens": {"ci": {"token": TOKEN, "roles": []}}}, "at least 1 item"),
        ({"admin_tokens": {"ci": {"token": TOKEN, "roles": ["write"]}}}, "'read', 'ttl', 'purge' or 'revoke'"),
        ({"admin_tokens": {"C I": {"token": TOKEN}}}, "C I"),
        ({"admin_identity": {"issuer": "staff", "roles": {"sre": ["read"]}}}, "there is no identity 'staff'"),
        (
            {
                "admin_identity": {"issuer": "keys", "roles": {"sre": ["read"]}},
                "identity": {"keys": {"keys": "file:keys.yaml", "header": "x-api-key"}},
            },
            "keys doesn't verify signed tokens",
        ),
        ({"admin_identity": {"issuer": "shop"}, "identity": {"shop": ISSUER}}, "Field required"),
    ],
)
def test_what_can_not_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Config.model_validate(settings)
    assert message in str(refused.value)
