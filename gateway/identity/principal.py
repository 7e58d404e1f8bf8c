"""Who a request comes from, and the part of a cache key that this selects. Pure.

A principal is what a verified credential says. A route names in `per` the claims that its responses depend on; the
partition of their values is part of the key. It never contains the credential itself, so a refreshed token and a second
device of the same user have the same partition.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from gateway.policy.identity_key import IdentityKey

SUBJECTS = ("sub",)
"""The claims that name one user at an issuer (RFC 7519 §4.1.2)."""


_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


class MissingClaim(ValueError):
    """The principal has no claim of a name that the route depends on."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"the credential has no claim `{name}`")


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """What a verified credential says.

    `provider` is the name of the setting below `identity` that verified it, `issuer` what its claims are unique to: two
    issuers may use one `sub` for two users. `claims` are those of the token, or of the key's owner. `issued_at` and
    `expires_at` are in seconds since 1970; None if the credential doesn't say.
    """

    provider: str
    issuer: str
    claims: Mapping[str, Any]
    scopes: frozenset[str] = frozenset()
    issued_at: float | None = None
    expires_at: float | None = None

    @property
    def subject(self) -> str | None:
        """The user at the issuer; None for a credential of no user."""
        subject = self.claims.get("sub")
        return subject if isinstance(subject, str) else None

    def texts(self, names: Iterable[str]) -> dict[str, str]:
        """Claims as tags have them. Raises MissingClaim, and ValueError as `canonical` does."""
        return {name: claim_text(self.claim(name)) for name in names}

    def claim(self, name: str) -> Any:
        """The value of a claim. A dot goes into an object, unless a claim has the whole name: `address.country`, and
        `https://example.com/plan`. Raises MissingClaim, also for null."""
        value = self.claims.get(name)
        if value is None and "." in name:
            value = _nested(self.claims, name.split("."))
        if value is None:
            raise MissingClaim(name)
        return value


def is_subject(value: Any) -> bool:
    """Whether a `sub` names a user that a revocation can name: by a text, or by a whole number, as some issuers do."""
    return isinstance(value, str | int) and not isinstance(value, bool)


def _nested(value: Any, path: Iterable[str]) -> Any:
    for name in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def canonical(value: Any) -> bytes:
    """A claim's value as bytes that are equal if and only if the values are: JSON with sorted names. Numbers and texts
    differ (`1` and `"1"`), and so do the orders of arrays. Raises ValueError for a number with a fraction or an
    exponent, in which two values may look alike, and for a value nested too deeply."""
    try:
        _check(value)
        return _JSON.encode(value).encode("ascii")
    except RecursionError:
        raise ValueError("the claim is nested too deeply") from None


def claim_text(value: Any) -> str:
    """A claim's value in a tag: a text as it is, any other in JSON's form."""
    return value if isinstance(value, str) else canonical(value).decode("ascii")


def _check(value: Any) -> None:
    if isinstance(value, float):
        raise ValueError("the claim has a number with a fraction or an exponent")
    if isinstance(value, Mapping):
        value = [*value.values()]
    if isinstance(value, list):
        for each in value:
            _check(each)


def partition(principal: Principal, per: tuple[str, ...], identity_key: IdentityKey) -> str:
    """The line of a cache key for the values of the claims `per`: the issuer and a keyed digest. The empty text for
    none: one response for all who are let in.

    Each claim stands in it by its name and the length of its value, so no two lists of values look alike. Raises
    MissingClaim, and ValueError as `canonical` does.
    """
    if not per:
        return ""
    pieces = [_sized(principal.issuer.encode("utf-8", "surrogatepass"))]
    for name in sorted(per):
        pieces += (_sized(name.encode("utf-8")), _sized(canonical(principal.claim(name))))
    return identity_key.digest_bytes("principal", b"".join(pieces))


def _sized(value: bytes) -> bytes:
    return b"%d:%b," % (len(value), value)


def is_of_one_user(per: tuple[str, ...]) -> bool:
    """Whether the responses of a partition are of one user each, so that an upstream's `private` response may be stored
    in it (RFC 9111 §5.2.2.7)."""
    return any(name in SUBJECTS for name in per)
