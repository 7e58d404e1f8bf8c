"""Digests of request fields in cache keys: keys are stored in Redis, which must not contain credentials. Pure.

A key must differ if and only if the value of a field differs. So it contains a digest of the value, BLAKE2b of 128 bits
with a secret key (RFC 7693 §2.9); without that key, read access to Redis is not enough to test a guess. Fields of
content negotiation are in clear text: they identify no client, and keys stay readable.

`fleet_key` chooses the secret.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

KEY_BYTES = 32
NEGOTIATED = frozenset(("accept", "accept-charset", "accept-encoding", "accept-language", "origin", ":host", ":scheme"))
"""Fields whose values are part of keys in clear text."""


class IdentityKey:
    """The secret that all digests are made with; all workers of a fleet have the same one. It may be replaced while the
    gateway runs: whatever was made with the one before is then to be forgotten."""

    __slots__ = ("secret",)

    def __init__(self, secret: bytes) -> None:
        self.secret = secret

    def __repr__(self) -> str:
        return "<IdentityKey>"

    def of_field(self, name: str, value: str) -> str:
        """What a key contains for the value of a request field, whose name is in lower case."""
        return value if name in NEGOTIATED else self.digest(name, value)

    def digest(self, what: str, value: str) -> str:
        """32 hexadecimal digits; equal values of another `what` have other ones."""
        return self.digest_bytes(what, value.encode("latin-1", "backslashreplace"))

    def digest_bytes(self, what: str, value: bytes) -> str:
        """`digest` of a value that is no text."""
        text = what.encode("latin-1", "backslashreplace") + b"\n" + value
        return blake2b(text, digest_size=16, key=self.secret).hexdigest()


class ShownKey(IdentityKey):
    """Makes readable keys: a value is shown in clear text, unless `hides` says that its field is an identity."""

    __slots__ = ("_hides",)

    def __init__(self, hides: Callable[[str], bool]) -> None:
        super().__init__(b"")
        self._hides = hides

    def of_field(self, name: str, value: str) -> str:
        return "***" if self._hides(name) else value

    def digest(self, what: str, value: str) -> str:
        return "***"

    def digest_bytes(self, what: str, value: bytes) -> str:
        return "***"


UNKEYED = IdentityKey(b"")
"""Makes digests without a secret: if nothing is stored outside of the process, as in tests."""


def derived(secret: bytes) -> bytes:
    """The key derived from a `redis_secret`."""
    return blake2b(b"gateway: identities in keys", digest_size=KEY_BYTES, key=blake2b(secret).digest()).digest()
