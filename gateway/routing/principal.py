"""Who sent a request, for handlers: the dependency `principal`, what a route requires of it, and what of it a `@cached`
handler may read.

A handler that takes a `Principal` verifies credentials by the providers of the setting `identity`. Behind `@cached` the
verified claims in `per` are part of the key, so only those can be read: a response that depended on another one would
reach users whose claim differs.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

from fastapi import Depends, Request
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_dependant

from gateway.config.identity import RequireConfig
from gateway.config.names import did_you_mean
from gateway.context import STORED_KEY, exchange_of
from gateway.errors import GatewayError
from gateway.identity import principal as identity
from gateway.identity.admission import Admission, NotAdmitted, Provider
from gateway.policy.downstream import NOTHING, for_users
from gateway.routing.handler_inputs import IDENTITY, OWN
from gateway.routing.handler_settings import WHO_KEY, Cached, runtime_of

ASKED_KEY = "gateway.admission"
"""The scope key of what is asked of the credential that is verified first."""
READER_KEY = "gateway.principal_reader"
"""The scope key of the `@cached` handler that reads the principal: its name, and the claims in its key."""


class UnkeyedClaim(GatewayError):
    """A `@cached` handler reads what isn't part of its key."""

    def __init__(self, what: str, handler: str, per: Sequence[str]) -> None:
        wanted = f"; write @cached(per={[*per, what]!r})" if what.isidentifier() else ""
        super().__init__(f"{handler} reads {what!r} of the Principal, which isn't part of its cache key{wanted}")


class KeyedPrincipal:
    """A principal as a `@cached` handler sees it: the claims in `per`, and the issuer. Raises UnkeyedClaim for all
    else."""

    def __init__(self, whole: identity.Principal, per: tuple[str, ...], handler: str) -> None:
        self._whole, self._per, self._handler = whole, per, handler

    def __repr__(self) -> str:
        return f"<KeyedPrincipal {' '.join(self._per)}>"

    def __getattr__(self, name: str) -> Any:
        if name in identity.Principal.__struct_fields__:
            raise UnkeyedClaim(f"principal.{name}", self._handler, self._per)
        raise AttributeError(name)

    @property
    def issuer(self) -> str:
        if not self._per:
            raise UnkeyedClaim("principal.issuer", self._handler, self._per)
        return self._whole.issuer

    @property
    def subject(self) -> str | None:
        self._check("sub")
        return self._whole.subject

    @property
    def claims(self) -> Mapping[str, Any]:
        return _KeyedClaims(self, self._per)

    def claim(self, name: str) -> Any:
        """As `Principal.claim`."""
        self._check(name)
        return self._whole.claim(name)

    def _check(self, name: str) -> None:
        if name not in self._per:
            raise UnkeyedClaim(name, self._handler, self._per)


class _KeyedClaims(Mapping[str, Any]):
    def __init__(self, who: KeyedPrincipal, names: tuple[str, ...]) -> None:
        self._who, self._names = who, names

    def __getitem__(self, name: str) -> Any:
        return self._who.claim(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


# --- dependencies ------------------------------------------------------------------------------------------


async def principal(request: Request) -> Any:
    """The dependency behind `Principal`: who sent the request; None where a route lets in anybody. Raises NotAdmitted,
    which is answered by 400, 401, 403 or 503."""
    scope = request.scope
    if WHO_KEY not in scope:
        admission = scope.get(ASKED_KEY) or Admission(providers_of((), runtime_of(request).providers))
        scope[WHO_KEY] = await admission.principal(scope["headers"])
        exchange = exchange_of(scope)
        if exchange is not None and exchange.downstream is NOTHING:
            exchange.downstream = for_users(admission.sources)
    who, reader = scope[WHO_KEY], scope.get(READER_KEY)
    return who if who is None or reader is None else KeyedPrincipal(who, *reader)


setattr(principal, IDENTITY, None)
setattr(principal, OWN, True)
Principal: TypeAlias = Annotated[identity.Principal, Depends(principal)]


class Identified:
    """A dependency that lets in requests whose credential one of the providers `names` has verified."""

    def __init__(self, names: tuple[str, ...], require: RequireConfig, *, optional: bool) -> None:
        self.names, self.require, self.optional = names, require, optional
        setattr(self, IDENTITY, names)
        setattr(self, OWN, True)
        asking = Annotated[None, Depends(_Asking(self))]
        annotations = {"request": Request, "asked": asking, "who": Annotated[Any, Depends(principal)]}
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        self.__signature__ = inspect.Signature(
            [inspect.Parameter(name, kind, annotation=annotation) for name, annotation in annotations.items()]
        )

    async def __call__(self, request: Request, asked: None, who: Any) -> Any:
        admission = self.admission(runtime_of(request).providers)
        whole = _whole(who)
        admission.check(whole)
        names = {each.name for each in admission.providers}
        if whole is not None and whole.provider not in names and principal not in _overrides(request):
            raise NotAdmitted(
                401, "invalid_token", "The credential is of another provider.", "issuer", admission.scopes
            )
        return who

    def admission(self, providers: Mapping[str, Provider]) -> Admission:
        """Raises ValueError for an unknown name."""
        return _admission(providers_of(self.names, providers), self.require, optional=self.optional)


class _Asking:
    """Says what is asked of a credential, before it is verified."""

    def __init__(self, of: Identified) -> None:
        self._of = of
        setattr(self, OWN, True)

    async def __call__(self, request: Request) -> None:
        request.scope.setdefault(ASKED_KEY, self._of.admission(runtime_of(request).providers))


def _whole(who: Any) -> identity.Principal | None:
    whole: identity.Principal | None = who._whole if isinstance(who, KeyedPrincipal) else who
    return whole


def _overrides(request: Request) -> Mapping[Any, Any]:
    overrides: Mapping[Any, Any] = getattr(request.app, "dependency_overrides", {})
    return overrides


def identified(
    *names: str, scopes: Sequence[str] = (), claims: Mapping[str, Any] | None = None, optional: bool = False
) -> Any:
    """A dependency, for a router or a handler: requests need a credential that one of the providers `names` of the
    setting `identity` has verified (default: any of them), with all `scopes`, and for each of `claims` one of its
    values. Others get 401 or 403. With `optional`, requests without a credential are let in, too. Raises
    pydantic.ValidationError (a ValueError) for an invalid argument."""
    require = RequireConfig.model_validate({"scopes": [*scopes], "claims": dict(claims or {})})
    return Depends(Identified(names, require, optional=optional))


def _admission(
    providers: tuple[Provider, ...], require: RequireConfig, *, optional: bool, per: tuple[str, ...] = ()
) -> Admission:
    required = {name: tuple(values) for name, values in require.claims.items()}
    return Admission(providers, optional=optional, scopes=tuple(require.scopes), required=required, per=per)


def providers_of(names: Iterable[str], providers: Mapping[str, Provider]) -> tuple[Provider, ...]:
    """The providers of these names; all, for none. Raises ValueError for an unknown name, and where there is none."""
    if not providers:
        raise ValueError("requires the setting `identity`, which the configuration lacks")
    for name in names:
        if name not in providers:
            hint = did_you_mean(name, list(providers))
            raise ValueError(f"names the identity {name!r}, which is not configured{hint}")
    return tuple(providers[name] for name in names or providers)


# --- cached handlers -----------------------------------------------------------------------------------------


def admission_of_handler(
    dependant: Dependant, settings: Cached | None, providers: Mapping[str, Provider]
) -> Admission | None:
    """What a handler asks of credentials, by its tree of dependencies and its arguments of `@cached`; None if it lets
    anybody in. Raises ValueError for an unknown name."""
    found = [*_verifying(dependant)]
    asked = settings.identity if settings is not None else None
    if not found and asked is None:
        return None
    first = next((each.admission(providers) for each in found if isinstance(each, Identified)), None)
    if asked is None:
        return first or Admission(providers_of((), providers))
    named = first.providers if first is not None and not asked.names else providers_of(asked.names, providers)
    return _admission(named, asked.require, optional=asked.optional, per=asked.per)


def _verifying(dependant: Dependant) -> Iterator[Any]:
    """The dependencies of a handler's own that verify credentials."""
    for child in dependant.dependencies:
        if not isinstance(child.call, Admit):
            if hasattr(child.call, IDENTITY):
                yield child.call
            yield from _verifying(child)


class Expect:
    """Says, before the principal is asked for, what its `@cached` handler asks of it."""

    def __init__(self, settings: Cached, of: object) -> None:
        self._settings, self._of = settings, of
        setattr(self, OWN, True)

    async def __call__(self, request: Request) -> None:
        admission = runtime_of(request).identified[id(self._of)]
        request.scope[ASKED_KEY] = admission
        request.scope[READER_KEY] = admission.per, self._settings.name


@dataclass(eq=False)
class Admit:
    """A dependency that is solved before all others of a `@cached` handler: from then on the request has the partition
    of its principal, and no credential. `of` is the tree of dependencies, or the handler's settings, whose admission it
    is."""

    of: object

    def __post_init__(self) -> None:
        setattr(self, IDENTITY, None)
        setattr(self, OWN, True)

    async def __call__(self, request: Request, who: Annotated[Any, Depends(principal)]) -> None:
        self.let_in(request, who)

    def let_in(self, request: Request, who: Any) -> None:
        """Raises NotAdmitted."""
        runtime, scope = runtime_of(request), request.scope
        admission = runtime.identified[id(self.of)]
        whole = _whole(who)
        headers = admission.fields(scope["headers"], whole, runtime.engine.identity_key)
        scope[WHO_KEY] = whole
        scope.pop(STORED_KEY, None)  # the edge knows the request as it was before
        for cached in ("_headers", "_cookies"):
            request.__dict__.pop(cached, None)
        scope["headers"] = headers
        exchange = exchange_of(scope)
        if exchange is not None:
            exchange.headers, exchange.principal = [*headers], whole


def instrument_identity(dependant: Dependant, settings: Cached) -> None:
    """Have a `@cached` handler's requests admitted before any other of its dependencies is solved."""
    if any(isinstance(child.call, Admit) for child in dependant.dependencies):
        return
    path = dependant.path or "/"
    admit = get_dependant(path=path, call=Admit(dependant))
    admit.dependencies.insert(0, get_dependant(path=path, call=Expect(settings, dependant)))
    dependant.dependencies.insert(0, admit)


async def admit_late(request: Request, settings: Cached) -> None:
    """Admit a request that reached a `@cached` handler by a route which wasn't prepared. Raises NotAdmitted, and
    GatewayError without a gateway."""
    runtime = runtime_of(request)
    if id(settings) not in runtime.identified:
        raise GatewayError(f"the handler {settings.name} has `identity`, and its route is not known to the gateway")
    await Expect(settings, settings)(request)
    Admit(settings).let_in(request, await principal(request))
