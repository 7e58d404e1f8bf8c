"""Digests in the place of what a request says of itself: keys stand in Redis, and no credential may.

Pure. A key must differ where the value of a request field differs, and no more. So it holds a digest of the value,
BLAKE2b of 128 bits under a secret key (RFC 7693 §2.9): who reads Redis can't even test a guess without that key. Fields
by which content is negotiated stand as they are: they name nobody, and keep keys readable.

Which secret it is stands in `fleet_key`.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

KEY_BYTES = 32
NEGOTIATED = frozenset(("accept", "accept-charset", "accept-encoding", "accept-language", "origin", ":host", ":scheme"))
"""Fields whose values stand in keys as they are sent."""


class IdentityKey:
    """The secret that all digests are made with; all workers of a fleet have the same one. It may be replaced while the
    gateway runs: whatever was made with the one before is then to be forgotten."""

    __slots__ = ("secret",)

    def __init__(self, secret: bytes) -> None:
        self.secret = secret

    def __repr__(self) -> str:
        return "<IdentityKey>"

    def of_field(self, name: str, value: str) -> str:
        """What stands in a key for the value of a request field, whose name is in lower case."""
        return value if name in NEGOTIATED else self.digest(name, value)

    def digest(self, what: str, value: str) -> str:
        """32 hexadecimal digits; equal values of another `what` have other ones."""
        text = f"{what}\n{value}".encode("latin-1", "backslashreplace")
        return blake2b(text, digest_size=16, key=self.secret).hexdigest()


class ShownKey(IdentityKey):
    """Makes keys for people to read: a value is shown as it is, unless `hides` says that its field is an identity."""

    __slots__ = ("_hides",)

    def __init__(self, hides: Callable[[str], bool]) -> None:
        super().__init__(b"")
        self._hides = hides

    def of_field(self, name: str, value: str) -> str:
        return "***" if self._hides(name) else value

    def digest(self, what: str, value: str) -> str:
        return "***"


UNKEYED = IdentityKey(b"")
"""Makes digests that anybody could make: where nothing is stored outside of the process, as in tests."""


def derived(secret: bytes) -> bytes:
    """The key that a `redis_secret` stands for."""
    return blake2b(b"gateway: identities in keys", digest_size=KEY_BYTES, key=blake2b(secret).digest()).digest()
