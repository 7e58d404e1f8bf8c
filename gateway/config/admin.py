"""The configuration of who may do what at the admin listener. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, SecretStr

from gateway.config.types import Model

Role = Literal["read", "ttl", "purge", "revoke"]
ROLES = frozenset(get_args(Role))
SHORTEST_TOKEN = 16


def _check_token(token: SecretStr) -> SecretStr:
    text = token.get_secret_value()
    if len(text) < SHORTEST_TOKEN or not text.isascii() or not text.isprintable() or " " in text:
        least = f"must have at least {SHORTEST_TOKEN} characters without spaces"
        raise ValueError(f"{least}, such as the output of `openssl rand -hex 32`")
    return token


Roles = Annotated[list[Role], Field(min_length=1)]


class AdminTokenConfig(Model):
    """A token for the admin listener, whose name stands in the audit list and in the log."""

    token: Annotated[SecretStr, AfterValidator(_check_token)]
    """The token, at least 16 characters. Set it by an environment variable."""
    roles: Roles = ["read"]
    """What it allows: `read` (figures, routes, settings, `gateway explain`), `ttl` (live overrides), `purge`,
    `revoke` (API keys and revocations)."""


def tokens_of(role: Role, named: Mapping[str, AdminTokenConfig], token: str | None) -> tuple[bytes, ...]:
    """The tokens that allow what `role` does: `token`, which allows all, and those of `named` that have the role."""
    found = [each.token.get_secret_value() for each in named.values() if role in each.roles]
    return tuple(each.encode() for each in (token, *found) if each)


class AdminIdentityConfig(Model):
    """Signed tokens (JWT) for the admin listener."""

    issuer: str
    """The name of the issuer in `identity`. Its tokens are verified as those of requests are."""
    claim: str = "roles"
    """The claim that has an operator's roles: a text, or a list of them."""
    roles: dict[str, Roles]
    """The values of the claim, and the roles that each gives: `{sre: [read, ttl, purge, revoke], support: [read]}`."""
