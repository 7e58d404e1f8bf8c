"""Changes that an operator makes: API keys that are created, rotated and revoked, and tokens that are revoked.

Decides what a change may say, and which records it is. A key itself never gets here: who creates it sends its digest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from gateway.cache.purge_log import PurgeReport
from gateway.cache.redis.record_stream import ADD_AT_ONCE
from gateway.clock import Clock
from gateway.config.identity import IssuerConfig
from gateway.config.names import did_you_mean
from gateway.errors import GatewayError
from gateway.identity.api_keys import checked_scopes, checked_text
from gateway.identity.credential_log import CredentialLog
from gateway.identity.records import KINDS, LATEST, MOST_RECORDS, ApiKey, Revocation, key_id

LONGEST_VALUE = 4096
"""Characters of what a revocation names."""


class ChangeRefused(GatewayError):
    """The order can't be carried out; the message says why."""


class ChangeUnavailable(GatewayError):
    """Redis has not accepted the change; nothing was changed."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A key that is to be created. `expires` is in seconds since 1970."""

    sha256: str
    provider: str = ""
    owner: str = ""
    plan: str = ""
    scopes: Sequence[str] = ()
    expires: float | None = None


@dataclass(frozen=True, slots=True)
class Changed:
    """What became of a change: the keys as they are from now on, and how far it is in force."""

    keys: tuple[ApiKey, ...]
    report: PurgeReport


def both(one: PurgeReport, other: PurgeReport) -> PurgeReport:
    """The report of two records."""
    return PurgeReport(
        min(one.confirmed, other.confirmed),
        max(one.workers, other.workers),
        one.seconds + other.seconds,
        added=one.added and other.added,
        settled=one.settled and other.settled,
    )


class Changes:
    """`identity` are the issuers of the configuration, `longest` is how old (seconds) a token may be."""

    def __init__(
        self, log: CredentialLog, identity: Mapping[str, IssuerConfig], clock: Clock, *, longest: float
    ) -> None:
        self._log = log
        self._identity = identity
        self._clock = clock
        self._longest = longest

    # --- API keys -------------------------------------------------------------------------------------------------

    def listed(self) -> list[ApiKey]:
        """All keys, the latest first; those that ended not long ago, too."""
        return sorted(self._log.records.keys.values(), key=lambda each: (-each.created, each.key))

    async def create(self, wanted: Wanted, *, by: str = "") -> Changed:
        """Raises ChangeRefused, and ChangeUnavailable."""
        if not self._log.keeps:
            raise ChangeRefused("there is no Redis here that keeps keys")
        now = self._clock.now()
        if wanted.expires is not None and not now < wanted.expires <= LATEST:
            raise ChangeRefused("expires is in the past")
        try:
            key = ApiKey(
                key=key_id(wanted.sha256),
                provider=self._of_keys(wanted.provider),
                sha256=wanted.sha256,
                created=now,
                owner=checked_text("owner", wanted.owner),
                plan=checked_text("plan", wanted.plan),
                scopes=checked_scopes([*wanted.scopes]),
                expires=wanted.expires,
                by=by,
            )
        except ValueError as error:
            raise ChangeRefused(str(error)) from None
        return Changed((key,), await self._add(key))

    async def rotate(self, name: str, sha256: str, overlap: float, *, by: str = "") -> Changed:
        """Create a key with all that the key `name` has, and let that one end `overlap` seconds from now. If it has an
        end, the new one lives as long as it was made for. Raises ChangeRefused, and ChangeUnavailable."""
        old, now = self._key(name), self._clock.now()
        if old.accepted_until <= now:
            raise ChangeRefused(f"the key {old.key} has ended; create another one")
        expires = None if old.expires is None else now + old.expires - old.created
        fresh = msgspec.structs.replace(
            old, key=key_id(sha256), sha256=sha256, created=now, expires=expires, by=by, revoked=None
        )
        report = await self._add(fresh)
        ending = old.joined(msgspec.structs.replace(old, expires=now + overlap))
        return Changed((fresh, ending), both(report, await self._log.publish(ending)))

    async def revoke_key(self, name: str) -> Changed:
        """Raises ChangeRefused."""
        return await self._end([self._key(name)])

    async def revoke_keys_of(self, owner: str) -> Changed:
        """Revoke all keys of an owner. Raises ChangeRefused if there is none."""
        now = self._clock.now()
        found = [each for each in self._log.records.keys.values() if each.owner == owner and each.accepted_until > now]
        if not found:
            raise ChangeRefused("there is no key of that owner in force")
        return await self._end(found)

    async def _end(self, keys: Iterable[ApiKey]) -> Changed:
        """Together, as each record may be waited for: until then, a key whose turn had not come would be accepted."""
        now = self._clock.now()
        ended = tuple(each.joined(msgspec.structs.replace(each, revoked=now)) for each in keys)
        report = await self._log.publish(*ended[:ADD_AT_ONCE])
        for at in range(ADD_AT_ONCE, len(ended), ADD_AT_ONCE):
            report = both(report, await self._log.publish(*ended[at : at + ADD_AT_ONCE]))
        return Changed(ended, report)

    def _of_keys(self, name: str) -> str:
        """The provider whose keys are in Redis. Raises ChangeRefused."""
        there = [each for each, config in self._identity.items() if config.keys == "redis"]
        if not there:
            raise ChangeRefused("no identity has `keys: redis`, so there is none to create a key for")
        if not name and len(there) > 1:
            raise ChangeRefused(f"there are keys of several identities: name one of {', '.join(there)}")
        if name and name not in there:
            raise ChangeRefused(f"there is no identity {name!r} with `keys: redis`{did_you_mean(name, there)}")
        return name or there[0]

    def _key(self, name: str) -> ApiKey:
        """The key whose ID is, or begins with, `name`. Raises ChangeRefused."""
        found = [each for each in self._log.records.keys.values() if each.key.startswith(name)] if name else []
        if len(found) == 1:
            return found[0]
        raise ChangeRefused(
            f"{len(found)} keys have IDs that begin with {name}" if found else f"there is no key {name}"
        )

    # --- tokens ---------------------------------------------------------------------------------------------------

    async def revoke(
        self, kind: str, value: str, *, issuer: str = "", before: float | None = None, by: str = ""
    ) -> tuple[Revocation, PurgeReport]:
        """Refuse the tokens that name `value` and were issued before `before` (seconds since 1970). By default that is
        now, and the `leeway` of the issuer: its clock may be so far ahead, and tokens with it. Raises ChangeRefused."""
        if kind not in KINDS or bool(value) != bool(KINDS[kind]) or len(value) > LONGEST_VALUE:
            raise ChangeRefused("name what is revoked: sub, jti or client, or all tokens issued before an instant")
        named = self._issuers(issuer)
        now = self._clock.now()
        if before is None:
            before = now + max(each.leeway.total_seconds() for each in named)
        if not 0 < before <= now + self._longest:
            raise ChangeRefused("issued_before must be an instant in the past, or not long from now")
        records = self._log.records
        salt = records.salt() if value else ""
        record = Revocation(
            kind=kind,
            before=before,
            until=records.needed_until(before),
            at=now,
            digest=records.digest(kind, value, salt) if value else "",
            salt=salt,
            issuer=issuer_text(issuer, self._identity[issuer]) if issuer else "",
            by=by,
        )
        if record.about not in records.revocations:
            self._check_room()
        return record, await self._log.publish(record)

    def _issuers(self, name: str) -> list[IssuerConfig]:
        """The issuers of tokens that a revocation is about. Raises ChangeRefused."""
        there = {each: config for each, config in self._identity.items() if config.keys is None}
        if not there:
            raise ChangeRefused("no identity verifies tokens; API keys are revoked by `gateway keys revoke`")
        if name and name not in there:
            raise ChangeRefused(f"there is no identity {name!r} of tokens{did_you_mean(name, list(there))}")
        return [there[name]] if name else [*there.values()]

    # --- records --------------------------------------------------------------------------------------------------

    async def _add(self, key: ApiKey) -> PurgeReport:
        """Raises ChangeRefused, and ChangeUnavailable: a key that one worker alone knows is none."""
        if key.key in self._log.records.keys:
            raise ChangeRefused("this key was created before")
        self._check_room()
        report = await self._log.publish(key)
        if not report.added:
            self._log.records.withdraw(key)
            raise ChangeUnavailable("Redis is unavailable: no key was created; try again")
        return report

    def _check_room(self) -> None:
        """Raises ChangeRefused if there are as many records as are kept."""
        if self._log.records.is_full:
            raise ChangeRefused(f"there are {MOST_RECORDS} keys and revocations; no more are kept")


def issuer_text(name: str, config: IssuerConfig) -> str:
    """What the principals of an issuer of tokens have as `issuer`: no two have the same, as no URL has a space."""
    return config.issuer or f"introspection {name}"
