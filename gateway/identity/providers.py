"""The providers of a configuration: made of `identity`, kept over reloads where their settings did not change.

What verifies signatures is imported with the first of them: it takes a fifth of a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.cache.shared_store import NoShared, SharedStore
from gateway.clock import Clock
from gateway.config.identity import IssuerConfig
from gateway.errors import ConfigError, ConfigProblem
from gateway.policy.identity_key import IdentityKey
from gateway.policy.keys import digest
from gateway.upstreams.httpx_api import httpx

if TYPE_CHECKING:
    from gateway.identity.documents import Documents
    from gateway.identity.issuer import TokenIssuer
    from gateway.identity.key_source import KeySource


_OF_KEYS = {"issuer", "jwks", "jwks_refresh", "jwks_stale", "unknown_kid_every", "ca_file", "secret"}
"""The settings that its keys depend on. Where only others change, an issuer keeps its keys."""


@dataclass
class _Fetched:
    """The keys of an issuer that are fetched, and the client that fetches them."""

    source: KeySource
    documents: Documents

    async def aclose(self) -> None:
        await self.source.aclose()
        await self.documents.aclose()


@dataclass
class _Made:
    config: IssuerConfig
    provider: TokenIssuer
    fetched: _Fetched | None
    """None where the configuration has the keys."""


class Providers:
    """The providers by name. `transport` makes a transport for requests to an issuer; None for a real one."""

    def __init__(
        self,
        *,
        store: SharedStore,
        clock: Clock,
        identity_key: IdentityKey,
        transport: Callable[[str], httpx.AsyncBaseTransport | None] = lambda name: None,
    ) -> None:
        self._store = store
        self._clock = clock
        self.identity_key = identity_key
        self._transport = transport
        self._made: dict[str, _Made] = {}
        self._next: dict[str, _Made] = {}
        self._started = False
        self._ending: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Providers {' '.join(self._made)}>"

    def __getitem__(self, name: str) -> TokenIssuer:
        return self._made[name].provider

    def of(self, config: Mapping[str, IssuerConfig]) -> dict[str, TokenIssuer]:
        """The providers of a configuration; those that are in force, where the settings are the same."""
        found = {}
        for name, each in config.items():
            known = self._made.get(name)
            found[name] = known if known is not None and known.config == each else self._make(name, each)
        self._next = found
        return {name: each.provider for name, each in found.items()}

    def take_over(self) -> None:
        """Let the providers that were made last be in force. Those they replace end."""
        old = self._fetched
        self._made = self._next
        for name, each in self._fetched.items():
            if self._started and old.get(name) is not each:
                each.source.begin()
        for name, each in old.items():
            if self._fetched.get(name) is not each:
                task = asyncio.ensure_future(each.aclose())
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)

    @property
    def without_keys(self) -> list[str]:
        """The names of those that can verify nothing now."""
        return [name for name, each in self._made.items() if each.provider.source.keys is None]

    async def start(self) -> None:
        self._started = True
        await asyncio.gather(*(each.source.start() for each in self._fetched.values()))

    async def aclose(self) -> None:
        for task in tuple(self._ending):
            task.cancel()
        if self._ending:
            await asyncio.wait(set(self._ending))
        for each in self._fetched.values():
            await each.aclose()

    @property
    def _fetched(self) -> dict[str, _Fetched]:
        return {name: each.fetched for name, each in self._made.items() if each.fetched is not None}

    def _make(self, name: str, config: IssuerConfig) -> _Made:
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
        sources = tuple(config.sources)
        if config.secret is not None:
            fixed = FixedKeys(secret_key(config.secret.get_secret_value().encode(), issuer.algorithms))
            provider = TokenIssuer(issuer, fixed, self._clock, sources=sources, remembered=config.tokens)
            return _Made(config, provider, None)
        fetched = self._kept(name, config) or self._fetching(name, config)
        provider = TokenIssuer(issuer, fetched.source, self._clock, sources=sources, remembered=config.tokens)
        return _Made(config, provider, fetched)

    def _kept(self, name: str, config: IssuerConfig) -> _Fetched | None:
        known = self._made.get(name)
        same = known is not None and known.config.model_dump(include=_OF_KEYS) == config.model_dump(include=_OF_KEYS)
        return known.fetched if known is not None and same else None

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
