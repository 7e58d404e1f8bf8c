"""The providers of a configuration: made of `identity`, kept over reloads where their settings did not change.

What verifies signatures is imported with the first of them: it takes a fifth of a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, TypeAlias

from gateway.cache.shared_store import NoShared, SharedStore
from gateway.clock import Clock
from gateway.config.identity import IssuerConfig
from gateway.errors import ConfigError, ConfigProblem
from gateway.identity.admission import Epoch
from gateway.identity.api_keys import FileKeys, KeyProvider, Keys, RedisKeys
from gateway.identity.credential_log import CredentialLog, LocalCredentials
from gateway.identity.introspection import Introspector
from gateway.identity.records import Codec
from gateway.policy.identity_key import IdentityKey
from gateway.policy.keys import digest
from gateway.upstreams.client import Upstream
from gateway.upstreams.httpx_api import httpx

if TYPE_CHECKING:
    from gateway.identity.documents import Documents
    from gateway.identity.issuer import TokenIssuer
    from gateway.identity.key_source import KeySource

IdentityProvider: TypeAlias = "TokenIssuer | KeyProvider | Introspector"

_OF_KEYS = {"issuer", "jwks", "jwks_refresh", "jwks_stale", "unknown_kid_every", "ca_file", "secret"}
"""The settings that its keys depend on. Where only others change, an issuer keeps its keys."""


class Source(Protocol):
    """Where a provider's keys come from: it is kept, and goes on, where another provider takes its place."""

    async def start(self) -> None: ...

    def begin(self) -> None: ...

    async def aclose(self) -> None: ...


@dataclass
class _Fetched:
    """The keys of an issuer that are fetched, and the client that fetches them."""

    source: KeySource
    documents: Documents

    async def start(self) -> None:
        await self.source.start()

    def begin(self) -> None:
        self.source.begin()

    async def aclose(self) -> None:
        await self.source.aclose()
        await self.documents.aclose()


@dataclass
class _Made:
    config: IssuerConfig
    provider: IdentityProvider
    source: Source | None = None
    """None where there is nothing to keep."""
    upstream: Upstream | None = None
    """Where tokens are asked for."""


class Providers:
    """The providers by name. `transport` makes a transport for requests to an issuer; None for a real one.
    `credentials` are the API keys and revocations of the fleet."""

    def __init__(
        self,
        *,
        store: SharedStore,
        clock: Clock,
        identity_key: IdentityKey,
        credentials: CredentialLog | None = None,
        transport: Callable[[str], httpx.AsyncBaseTransport | None] = lambda name: None,
    ) -> None:
        self._store = store
        self._clock = clock
        self.credentials = credentials if credentials is not None else LocalCredentials(clock, Codec(None))
        self.credentials.records.changed = self._revoke
        self.identity_key = identity_key
        self._transport = transport
        self._made: dict[str, _Made] = {}
        self._next: dict[str, _Made] = {}
        self._started = False
        self._ending: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Providers {' '.join(self._made)}>"

    def __getitem__(self, name: str) -> IdentityProvider:
        return self._made[name].provider

    def of(
        self, config: Mapping[str, IssuerConfig], upstreams: Mapping[str, Upstream] = MappingProxyType({})
    ) -> dict[str, IdentityProvider]:
        """The providers of a configuration; those that are in force, where the settings are the same. Raises
        ConfigError."""
        found = {}
        for name, each in config.items():
            known = self._made.get(name)
            upstream = upstreams[each.introspect.upstream] if each.introspect is not None else None
            same = known is not None and known.config == each and known.upstream is upstream
            found[name] = known if known is not None and same else self._make(name, each, upstream)
        self._next = found
        return {name: each.provider for name, each in found.items()}

    def take_over(self) -> None:
        """Let the providers that were made last be in force. Those they replace end."""
        old, kept = self._sources, {name for name, each in self._next.items() if self._made.get(name) is each}
        self._made = self._next
        for name, each in self._sources.items():
            if self._started and old.get(name) is not each:
                each.begin()
            elif name in kept and isinstance(each, FileKeys):
                each.look()
        if self._started and self._made:
            self.credentials.begin()
        for name, each in old.items():
            if self._sources.get(name) is not each:
                self._end(each)

    def _end(self, source: Source) -> None:
        task = asyncio.ensure_future(source.aclose())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _revoke(self) -> None:
        """What was verified may be revoked since."""
        for each in self._made.values():
            each.provider.epoch.version += 1

    @property
    def names(self) -> list[str]:
        return [*self._made]

    @property
    def introspectors(self) -> list[Introspector]:
        return [each.provider for each in self._made.values() if isinstance(each.provider, Introspector)]

    @property
    def without_keys(self) -> list[str]:
        """The names of those that can verify nothing now, for want of keys."""
        asked = {each.name for each in self.introspectors}
        return [name for name, each in self._made.items() if not each.provider.ready and name not in asked]

    @property
    def unanswered(self) -> list[str]:
        """The names of those whose endpoint has not answered when it was asked last."""
        return [each.name for each in self.introspectors if not each.ready]

    @property
    def without_records(self) -> bool:
        """Whether it is not known yet which tokens are revoked."""
        return bool(self._made) and not self.credentials.records.known

    async def start(self) -> None:
        self._started = True
        if self._made:
            await asyncio.gather(self.credentials.start(), *(each.start() for each in self._sources.values()))
        if any(each.config.keys == "redis" for each in self._made.values()):
            await self.credentials.complain_of_loss()

    async def aclose(self) -> None:
        for task in tuple(self._ending):
            task.cancel()
        if self._ending:
            await asyncio.wait(set(self._ending))
        for each in self._sources.values():
            await each.aclose()
        for asking in self.introspectors:
            await asking.aclose()
        await self.credentials.aclose()

    @property
    def _sources(self) -> dict[str, Source]:
        return {name: each.source for name, each in self._made.items() if each.source is not None}

    def _make(self, name: str, config: IssuerConfig, upstream: Upstream | None) -> _Made:
        """Raises ConfigError for a file of keys that is refused, and if what verifies signatures is not installed."""
        if config.keys is not None:
            return self._of_keys(name, config, config.keys)
        if upstream is not None:
            asking = Introspector(name, config, upstream, self.credentials.records, self._clock, Epoch())
            return _Made(config, asking, upstream=upstream)
        return self._of_tokens(name, config)

    def _of_keys(self, name: str, config: IssuerConfig, place: str) -> _Made:
        epoch = Epoch()
        if place == "redis":
            keys: Keys = RedisKeys(name, self.credentials.records)
            return _Made(config, KeyProvider(name, config.header, keys, self._clock, epoch))
        file = FileKeys(name, Path(place.removeprefix("file:")), epoch)
        file.read()
        return _Made(config, KeyProvider(name, config.header, file, self._clock, epoch), file)

    def _of_tokens(self, name: str, config: IssuerConfig) -> _Made:
        """Raises ConfigError if what verifies signatures is not installed."""
        check_extra()
        from gateway.identity.issuer import FixedKeys, TokenIssuer
        from gateway.identity.key_set import secret_key
        from gateway.identity.tokens import Issuer

        issuer = Issuer(
            provider=name,
            issuer=config.issuer,
            audience=frozenset(config.audience),
            algorithms=frozenset(config.algorithms),
            leeway=config.leeway.total_seconds(),
        )
        issued_by = partial(
            TokenIssuer,
            issuer,
            clock=self._clock,
            sources=tuple(config.sources),
            remembered=config.tokens,
            records=self.credentials.records,
        )
        if config.secret is not None:
            fixed = FixedKeys(secret_key(config.secret.get_secret_value().encode(), issuer.algorithms))
            return _Made(config, issued_by(fixed))
        fetched = self._kept(name, config) or self._fetching(name, config)
        return _Made(config, issued_by(fetched.source), fetched)

    def _kept(self, name: str, config: IssuerConfig) -> _Fetched | None:
        known = self._made.get(name)
        same = known is not None and known.config.model_dump(include=_OF_KEYS) == config.model_dump(include=_OF_KEYS)
        return known.source if known is not None and same and isinstance(known.source, _Fetched) else None

    def _fetching(self, name: str, config: IssuerConfig) -> _Fetched:
        from gateway.identity.documents import Documents, key_document
        from gateway.identity.key_source import KeySource

        documents = Documents(name, config, self._transport(name))
        requested = isinstance(config.jwks, str) and not config.jwks.startswith("file:")
        source = KeySource(
            name,
            key_document(config, documents.get),
            store=self._store if requested else NoShared(),  # each worker has the file, and the configuration, itself
            clock=self._clock,
            seal=self.identity_key,
            shared_as=f"{name}-{digest(f'{config.issuer} {config.jwks}')}",
            refresh=config.jwks_refresh.total_seconds(),
            stale=config.jwks_stale.total_seconds(),
            unknown_every=config.unknown_kid_every.total_seconds(),
        )
        return _Fetched(source, documents)


def check_extra() -> None:
    """Raises ConfigError if what verifies signatures is not installed."""
    try:
        import gateway.identity.key_set
        import gateway.identity.tokens  # noqa: F401 - both import what the extra `identity` installs
    except ModuleNotFoundError as error:
        message = f"requires the package {error.name}: install cached-gateway[identity]"
        raise ConfigError([ConfigProblem("", "identity", message)]) from None
