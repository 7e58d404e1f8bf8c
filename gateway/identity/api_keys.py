"""API keys: their form, where they come from, and who sent a request that has one.

A key is `gwk_`, 30 random characters (178 bits) and 6 of a checksum (CRC-32, as GitHub's tokens have it), all in
base62. So scanners for leaked secrets know one by its form, and a mistyped one is refused without a look-up. What is
stored is its SHA-256 alone: of so much randomness a digest says nothing, and needs no salt.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import string
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol
from zlib import crc32

from gateway.cache.background import end
from gateway.clock import Clock
from gateway.config.yaml_document import Document, read_document
from gateway.errors import ConfigError, ConfigProblem
from gateway.identity.admission import Epoch, NotAdmitted
from gateway.identity.principal import Principal
from gateway.identity.records import LONGEST_TEXT, MOST_SCOPES, ApiKey, CredentialRecords, key_id
from gateway.observability.log import state

logger = logging.getLogger("gateway")
PREFIX = "gwk_"
RETRY_AFTER = 5
"""Seconds, in a 503."""
MOST_IN_FILE = 2000
"""Keys of a file, which takes about a second to read."""
MOST_PRINCIPALS = 10_000
"""Principals that a provider keeps; beyond that, the oldest is made again when its key is next verified."""
LOOK_EVERY = 0.5
"""Seconds between two looks at a file of keys."""
_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_RANDOM, _CHECK = 30, 6
_FORM = re.compile(rb"gwk_[0-9A-Za-z]{36}")
_SHA256 = re.compile("[0-9a-fA-F]{64}")


def new_key() -> str:
    text = PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM))
    return text + _checksum(text.encode())


def is_well_formed(key: bytes) -> bool:
    """Whether it has the form of a key, and its checksum is right."""
    return _FORM.fullmatch(key) is not None and _checksum(key[:-_CHECK]).encode() == key[-_CHECK:]


def digest_of(key: bytes) -> str:
    """What is stored of a key."""
    return sha256(key).hexdigest()


def _checksum(text: bytes) -> str:
    number, found = crc32(text), ""
    for _ in range(_CHECK):
        number, rest = divmod(number, len(_ALPHABET))
        found = _ALPHABET[rest] + found
    return found


def parse_instant(text: str) -> float:
    """An instant as ISO 8601 has it, such as `2027-01-31` or `2027-01-31T12:00:00Z` (in UTC, if it doesn't say), in
    seconds since 1970. Raises ValueError."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} isn't a date, such as 2027-01-31 or 2027-01-31T12:00:00Z") from None
    return found.replace(tzinfo=found.tzinfo or UTC).timestamp()


class Keys(Protocol):
    """The keys of one provider. `ready`: they are known; until then no key can be refused."""

    @property
    def ready(self) -> bool: ...

    def find(self, sha256: str) -> ApiKey | None: ...


class RedisKeys:
    """Those of `provider` among the records that every worker knows."""

    def __init__(self, provider: str, records: CredentialRecords) -> None:
        self._provider = provider
        self._records = records

    @property
    def ready(self) -> bool:
        return self._records.known

    def find(self, sha256: str) -> ApiKey | None:
        found = self._records.keys.get(key_id(sha256))
        return found if found is not None and (found.sha256, found.provider) == (sha256, self._provider) else None


class FileKeys:
    """Those of a file, which is read again when it has changed; a file that is refused changes nothing."""

    def __init__(self, provider: str, path: Path, epoch: Epoch) -> None:
        self._provider = provider
        self._path = path
        self._epoch = epoch
        self._keys: dict[str, ApiKey] | None = None
        self._seen: tuple[int, ...] | None = None
        self._running: asyncio.Task[None] | None = None
        self.failure: str | None = None
        """Why the file was refused last; None if it was not."""

    def __repr__(self) -> str:
        return f"<FileKeys {self._path} keys={len(self._keys or ())} failure={self.failure!r}>"

    @property
    def ready(self) -> bool:
        return self._keys is not None

    def find(self, sha256: str) -> ApiKey | None:
        return (self._keys or {}).get(sha256)

    def read(self) -> None:
        """Take the file's keys. Raises ConfigError."""
        self._seen = self._state()
        self._take(keys_of(self._provider, read_document(self._path)))

    def _take(self, keys: dict[str, ApiKey]) -> None:
        if keys != self._keys:
            self._keys = keys
            self._epoch.version += 1
        if self.failure is not None:
            said = "identity %s: the keys of %s are in force again"
            logger.info(said, self._provider, self._path, extra=state(f"identity {self._provider}"))
        self.failure = None

    def look(self) -> None:
        """Read the file again soon, changed or not."""
        self._seen = None

    async def _look(self) -> None:
        """Read the file again, beside the event loop; if it is refused, go on with the keys that there are."""
        self._seen = self._state()
        try:
            self._take(await asyncio.to_thread(lambda: keys_of(self._provider, read_document(self._path))))
        except ConfigError as error:
            reason = "; ".join(map(str, error.problems))
            if reason != self.failure:
                said = "identity %s: %s. The last keys stay in force"
                logger.error(said, self._provider, reason, extra=state(f"identity {self._provider}", reason))
            self.failure = reason

    async def start(self) -> None:
        self.begin()

    def begin(self) -> None:
        if self._running is None:
            self._running = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            if self._state() != self._seen:
                await self._look()

    def _state(self) -> tuple[int, ...]:
        with suppress(OSError):
            found = self._path.stat()
            return found.st_mtime_ns, found.st_size, found.st_ino
        return ()

    async def aclose(self) -> None:
        await end(self._running)


_SETTINGS = ("sha256", "owner", "plan", "scopes", "expires")


def keys_of(provider: str, document: Document) -> dict[str, ApiKey]:
    """The keys of a file by their digests. Raises ConfigError with the line of each problem."""
    problems = list(document.problems)
    items = document.tree.get("keys")
    if set(document.tree) - {"keys"} or not isinstance(items, list):
        problems.append(ConfigProblem(document.name, "keys", "must be a list of keys, and all that the file has"))
        raise ConfigError(problems)
    if len(items) > MOST_IN_FILE:
        problems.append(ConfigProblem(document.name, "keys", f"has more than {MOST_IN_FILE} keys: use `keys: redis`"))
        raise ConfigError(problems)
    found: dict[str, ApiKey] = {}
    places = _places(document)
    for index, item in enumerate(items):
        try:
            key = _key_of(provider, item)
            if key.sha256 in found:
                raise ValueError("stands twice: each key has a digest of its own")
            found[key.sha256] = key
        except ValueError as error:
            problems.append(ConfigProblem(places.get(str(index), document.name), f"keys.{index}", str(error)))
    if problems:
        raise ConfigError(problems)
    return found


def _places(document: Document) -> dict[str, str]:
    """Where each item of the list is."""
    found: dict[str, str] = {}
    for name, line in document.lines.items():
        if len(name) > 1:
            found.setdefault(name[1], f"{document.name} line {line}")
    return found


def _key_of(provider: str, item: Any) -> ApiKey:
    """Raises ValueError."""
    if not isinstance(item, dict):
        raise ValueError(f"must be a mapping with sha256, and {', '.join(_SETTINGS[1:])} if wanted")
    if unknown := [str(name) for name in item if name not in _SETTINGS]:
        raise ValueError(f"{unknown[0]} is unknown; allowed here: {', '.join(_SETTINGS)}")
    digest = item.get("sha256")
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise ValueError("sha256 must be the key's SHA-256, 64 hexadecimal digits, as `gateway keys create` prints it")
    expires = item.get("expires")
    if expires is not None and not isinstance(expires, str):
        raise ValueError("expires must be a date, such as 2027-01-31")
    scopes = item.get("scopes", [])
    if not isinstance(scopes, list):
        raise ValueError("scopes must be a list, such as [home:read]")
    return ApiKey(
        key=key_id(digest.lower()),
        provider=provider,
        sha256=digest.lower(),
        created=0.0,
        owner=checked_text("owner", item.get("owner", "")),
        plan=checked_text("plan", item.get("plan", "")),
        scopes=checked_scopes(scopes),
        expires=None if expires is None else parse_instant(expires),
    )


def checked_text(name: str, value: Any) -> str:
    """Raises ValueError."""
    if not isinstance(value, str) or len(value) > LONGEST_TEXT or not value.isprintable():
        raise ValueError(f"{name} must be text of at most {LONGEST_TEXT} characters; put it in quotes")
    return value


def checked_scopes(values: list[Any]) -> tuple[str, ...]:
    """Scopes as OAuth has them (RFC 6749 §3.3). Raises ValueError."""
    scopes = tuple(dict.fromkeys(checked_text("scopes", each) for each in values))
    if len(scopes) > MOST_SCOPES or not all(re.fullmatch(r"[\x21\x23-\x5b\x5d-\x7e]+", each) for each in scopes):
        raise ValueError(f"scopes must be at most {MOST_SCOPES} names without spaces, such as home:read")
    return scopes


class KeyProvider:
    """Verifies the keys of `name`, which are in the request header `header`."""

    def __init__(self, name: str, header: str, keys: Keys, clock: Clock, epoch: Epoch) -> None:
        self.name = name
        self.sources = (header,)
        self.keys = keys
        self.epoch = epoch
        self._clock = clock
        self._principals: dict[str, tuple[ApiKey, Principal]] = {}

    def __repr__(self) -> str:
        return f"<KeyProvider {self.name} {self.keys!r}>"

    @property
    def ready(self) -> bool:
        """Whether it can verify anything now."""
        return self.keys.ready

    def recognises(self, credential: bytes) -> bool:
        return credential.startswith(PREFIX.encode())

    def known(self, credential: bytes) -> Principal | None:
        """The principal of a key that is accepted now; None for any other."""
        found = self.keys.find(digest_of(credential)) if self.keys.ready else None
        if found is None or self._clock.now() >= found.accepted_until or not is_well_formed(credential):
            return None
        return self._principal(found)

    verified_at_once = known
    """Looking a key up is all that there is to verify."""

    def holds_until(self, principal: Principal) -> float:
        return float("inf") if principal.expires_at is None else principal.expires_at

    async def verified(self, credential: bytes) -> Principal:
        """Raises NotAdmitted."""
        if not is_well_formed(credential):
            raise NotAdmitted(401, "invalid_token", "This is no API key, or it is mistyped.", "form")
        if not self.keys.ready:
            raise NotAdmitted(503, "", "API keys can't be verified now: they are not known.", "keys", (), RETRY_AFTER)
        found = self.keys.find(digest_of(credential))
        if found is None:
            raise NotAdmitted(401, "invalid_token", "The API key is unknown.", "unknown")
        if found.revoked is not None:
            raise NotAdmitted(401, "invalid_token", "The API key is revoked.", "revoked")
        if self._clock.now() >= found.accepted_until:
            raise NotAdmitted(401, "invalid_token", "The API key has expired.", "expired")
        return self._principal(found)

    def _principal(self, key: ApiKey) -> Principal:
        made = self._principals.get(key.key)
        if made is None or made[0] is not key:
            made = self._principals[key.key] = (key, principal_of(key))
            if len(self._principals) > MOST_PRINCIPALS:
                del self._principals[next(iter(self._principals))]
        return made[1]


def principal_of(key: ApiKey) -> Principal:
    """What a key says: `sub` is its owner, or its ID if it has none. No issuer of tokens has a space in its name."""
    claims = {"sub": key.owner or key.key, "key": key.key, "scope": " ".join(key.scopes), "plan": key.plan}
    return Principal(
        provider=key.provider,
        issuer=f"keys {key.provider}",
        claims={name: value for name, value in claims.items() if value},
        scopes=frozenset(key.scopes),
        issued_at=key.created,
        expires_at=key.expires,
    )
