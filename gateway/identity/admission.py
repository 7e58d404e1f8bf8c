"""Who is let in to a route: from a request's credential to a principal, and to the fields that the rest of the gateway
sees.

After admission a request has no credential any more (unless the route forwards it): in its place stand the fields that
the route makes of claims, and the pseudo-field `:principal`, the partition of the claims that its responses depend on.
So everything behind it (the key, the upstream, an explanation) is a function of the partition, and never sees a token.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from gateway.config.route import RouteConfig
from gateway.errors import GatewayError
from gateway.http.headers import Headers, connection_named, values
from gateway.identity.principal import MissingClaim, Principal, partition
from gateway.policy.identity_key import IdentityKey
from gateway.policy.keys import PRINCIPAL

Fields = list[tuple[bytes, bytes]]
_OF_THIS_HOP = frozenset((b"content-length", b"transfer-encoding", b"te", b"upgrade"))
"""Fields that describe the request itself: no `Connection` takes them out."""
_BAD_IN_VALUE = re.compile(r"[^\x20-\x7e]")


class NotAdmitted(GatewayError):
    """A request is refused before anything else is done for it.

    `status` is 400 (malformed), 401 (no credential, or an invalid one), 403 (a valid one that is not enough) or 503 (it
    can't be verified now). `error` and `detail` are those of RFC 6750 §3.1, and contain nothing of the credential;
    `scopes` are those that the route requires; `reason` is a word of a closed set for log and metric. `retry_after` is
    in seconds.
    """

    def __init__(
        self,
        status: int,
        error: str,
        detail: str,
        reason: str,
        scopes: Iterable[str] = (),
        retry_after: int | None = None,
    ) -> None:
        self.status = status
        self.error = error
        self.detail = detail
        self.reason = reason
        self.scopes = tuple(scopes)
        self.retry_after = retry_after
        super().__init__(detail)


class Epoch:
    """Ends what was verified before its time: `version` changes with whatever may, such as keys of an issuer that were
    replaced, or a revocation. The provider's `known` then says what still holds."""

    __slots__ = ("version",)

    def __init__(self) -> None:
        self.version = 0

    def __repr__(self) -> str:
        return f"<Epoch {self.version}>"


class Provider(Protocol):
    """Verifies the credentials of one setting below `identity`."""

    @property
    def name(self) -> str: ...

    @property
    def sources(self) -> tuple[str, ...]:
        """The fields of its credentials: a request field's name in lower case, or `cookie:NAME`."""

    @property
    def epoch(self) -> Epoch: ...

    def known(self, credential: bytes) -> Principal | None:
        """The principal of a credential that was verified before and would be again; None for any other. It does no
        I/O and checks no signature."""

    def holds_until(self, principal: Principal) -> float:
        """Until when, in seconds since 1970, a principal of `known` remains known while `epoch` does not change."""

    def recognises(self, credential: bytes) -> bool:
        """Whether the credential says that it is of this provider; asked where a source has several."""

    def verified_at_once(self, credential: bytes) -> Principal | None:
        """`verified` where that takes no I/O and no wait; None where it may. Raises NotAdmitted."""

    async def verified(self, credential: bytes) -> Principal:
        """Raises NotAdmitted."""


class Admitted:
    """A request that was let in without a wait: its `fields` after admission, and who sent it. The same
    holds for requests with the same fields as long as `holds` says so."""

    __slots__ = ("epoch", "fields", "principal", "until", "version")

    def __init__(self, fields: Fields, principal: Principal | None, epoch: Epoch, until: float) -> None:
        self.fields = fields
        self.principal = principal
        self.epoch, self.version = epoch, epoch.version
        self.until = until
        """Seconds since 1970."""

    def __repr__(self) -> str:
        return f"<Admitted until {self.until} version {self.version}>"  # of whom is not for a log

    @property
    def terms(self) -> tuple[float, Epoch, int, Principal | None]:
        """Of what `holds` depends: until when, on which epoch, and its version; and who is let in."""
        return self.until, self.epoch, self.version, self.principal

    def holds(self, now: float) -> bool:
        return now < self.until and self.epoch.version == self.version


_NEVER = Epoch()
"""Of what nobody has verified: it has no end."""


@dataclass(frozen=True)
class Dependence:
    """What of a principal a response depends on: the claims of its partition, and the request fields made of claims."""

    per: tuple[str, ...] = ()
    claims: Mapping[str, str] = field(default_factory=dict)

    def fields(self, principal: Principal, identity_key: IdentityKey) -> Fields:
        """The fields that stand for the principal in a request. Raises MissingClaim, and ValueError for a claim that
        can't be in a key or a field."""
        found = [(PRINCIPAL, partition(principal, self.per, identity_key).encode("ascii"))]
        for name, claim in self.claims.items():
            found.append((name.encode("latin-1"), as_field_value(principal.claim(claim)).encode("ascii")))
        return found


@dataclass(frozen=True)
class Admission:
    """What a route asks of the credentials of its requests. `claims` maps the request fields that the route adds to the
    claims they are made of; `required` has the accepted values of claims. `parts` are what the parts of an aggregate
    depend on: their request fields are removed from requests as the route's own are, and their claims have to be
    there."""

    providers: tuple[Provider, ...]
    optional: bool = False
    scopes: tuple[str, ...] = ()
    required: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    per: tuple[str, ...] = ()
    claims: Mapping[str, str] = field(default_factory=dict)
    forward_token: bool = False
    parts: tuple[Dependence, ...] = ()

    @property
    def sources(self) -> tuple[str, ...]:
        """The fields in which it looks for credentials."""
        return tuple(dict.fromkeys(source for each in self.providers for source in each.sources))

    @cached_property
    def dependence(self) -> Dependence:
        return Dependence(self.per, self.claims)

    async def admit(self, headers: Headers, identity_key: IdentityKey) -> tuple[Fields, Principal | None]:
        """The fields of a request after admission, and who sent it; None if nobody says who, and that is allowed.
        Raises NotAdmitted."""
        principal = await self.principal(headers)
        return self.fields(headers, principal, identity_key), principal

    async def principal(self, headers: Headers) -> Principal | None:
        """Who sent a request; None if it has no credential, and needs none. Raises NotAdmitted."""
        found = self._credential(headers)
        if found is None:
            self.check(None)
            return None
        provider, credential = found
        return await provider.verified(credential)

    def fields(self, headers: Headers, principal: Principal | None, identity_key: IdentityKey) -> Fields:
        """The fields of a request of `principal` after admission. Raises NotAdmitted if that is not let in."""
        self.check(principal)
        return self.anonymous(headers) if principal is None else self._rewritten(headers, principal, identity_key)

    def check(self, principal: Principal | None) -> None:
        """Raises NotAdmitted if `principal` is not let in."""
        if principal is not None:
            self._check(principal)
        elif not self.optional:
            raise NotAdmitted(401, "", "This route requires a credential.", "missing", self.scopes)

    def known(self, headers: Headers, identity_key: IdentityKey, *, verify: bool = False) -> Admitted | None:
        """What `admit` would say, where that takes no verifying; None where it does, or raises NotAdmitted. With
        `verify` it may check a signature, but takes no wait."""
        try:
            found = self._credential(headers)
            if found is None:
                return Admitted(self.anonymous(headers), None, _NEVER, math.inf) if self.optional else None
            provider, credential = found
            principal = provider.verified_at_once(credential) if verify else provider.known(credential)
            if principal is None:
                return None
            self._check(principal)
            fields = self._rewritten(headers, principal, identity_key)
        except NotAdmitted:
            return None
        return Admitted(fields, principal, provider.epoch, provider.holds_until(principal))

    def anonymous(self, headers: Headers) -> Fields:
        """The fields of a request that nobody has verified: without what only a principal may say."""
        dropped = self._dropped | (connection_named(headers) - _OF_THIS_HOP)
        return _without_cookies([pair for pair in headers if pair[0] not in dropped], self._dropped_cookies)

    def _credential(self, headers: Headers) -> tuple[Provider, bytes] | None:
        """A request's credential, and the provider that verifies it: of several, the first that recognises it. Raises
        NotAdmitted if there are two in one field: which of them is meant is not for a proxy to decide."""
        found = []
        for provider in self.providers:
            credential = next(filter(None, (_from(headers, source) for source in provider.sources)), None)
            if credential is not None:
                found.append((provider, credential))
        if len(found) > 1:
            return next((each for each in found if each[0].recognises(each[1])), found[0])
        return found[0] if found else None

    def _check(self, principal: Principal) -> None:
        missing = [scope for scope in self.scopes if scope not in principal.scopes]
        if missing:
            raise NotAdmitted(403, "insufficient_scope", "The credential lacks a scope.", "scope", self.scopes)
        for name, accepted in self.required.items():
            try:
                value = principal.claim(name)
            except MissingClaim:
                value = []
            given = value if isinstance(value, list) else [value]
            if not any(type(one) is type(other) and one == other for one in given for other in accepted):
                raise NotAdmitted(403, "insufficient_scope", "The credential's claims are not sufficient.", "claim")

    def _rewritten(self, headers: Headers, principal: Principal, identity_key: IdentityKey) -> Fields:
        """Raises NotAdmitted if the principal lacks a claim that the route's responses depend on."""
        try:
            for each in self.parts:
                each.fields(principal, identity_key)
            return [*self.anonymous(headers), *self.dependence.fields(principal, identity_key)]
        except MissingClaim as missing:
            raise NotAdmitted(403, "insufficient_scope", f"{_sentence(str(missing))}.", "claim") from None
        except ValueError as error:
            raise NotAdmitted(403, "insufficient_scope", f"{_sentence(str(error))}.", "claim") from None

    @cached_property
    def _dropped(self) -> frozenset[bytes]:
        """The fields that no request has after admission as it came."""
        made = {name for each in (self.dependence, *self.parts) for name in each.claims}
        dropped = {b"connection", PRINCIPAL, *(name.encode("latin-1") for name in made)}
        if not self.forward_token:
            fields = [source for source in self.sources if not source.startswith("cookie:")]
            dropped |= {b"authorization", *(name.encode("latin-1") for name in fields)}
        return frozenset(dropped)

    @cached_property
    def _dropped_cookies(self) -> frozenset[str]:
        cookies = [source for source in self.sources if source.startswith("cookie:") and not self.forward_token]
        return frozenset(source.removeprefix("cookie:") for source in cookies)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def as_field_value(value: Any) -> str:
    """A claim as the value of a request field: a text as it is, a number or a truth value in JSON's form. Raises
    ValueError for any other, and for characters that a field can't have: two values must not look alike."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str) or _BAD_IN_VALUE.search(value) or value != value.strip():
        raise ValueError("the claim can't be the value of a header")
    return value


def _from(headers: Headers, source: str) -> bytes | None:
    """The credential that a request has in `source`; None for none. Raises NotAdmitted."""
    if source.startswith("cookie:"):
        return _only(_cookie_values(headers, source.removeprefix("cookie:")))
    found = _only([*values(headers, source.encode("latin-1"))])
    if found is None or source != "authorization":
        return found
    scheme, _, rest = found.partition(b" ")
    token = rest.strip(b" ")
    if scheme.lower() == b"bearer" and _is_one_word(token):
        return token
    if found.lower().startswith(b"bearer"):
        raise NotAdmitted(400, "invalid_request", "The Authorization header has no bearer token.", "form")
    return None


def _is_one_word(token: bytes) -> bool:
    """Whether no character of a token is a space of any kind. A regular expression takes three times as long."""
    text = token.decode("latin-1")
    return text.split(None, 1) == [text]


def _only(found: list[bytes]) -> bytes | None:
    if len(found) > 1:
        raise NotAdmitted(400, "invalid_request", "The request has more than one credential of a kind.", "form")
    return found[0] if found and found[0] else None


def _cookie_values(headers: Headers, name: str) -> list[bytes]:
    pairs = [crumb.strip().partition(b"=") for line in values(headers, b"cookie") for crumb in line.split(b";")]
    return [value for key, equals, value in pairs if equals and key == name.encode("latin-1")]


def _without_cookies(headers: Fields, names: frozenset[str]) -> Fields:
    if not names:
        return headers
    kept: Fields = []
    for field_name, value in headers:
        if field_name == b"cookie":
            crumbs = [crumb.strip() for crumb in value.split(b";")]
            crumbs = [crumb for crumb in crumbs if crumb and crumb.partition(b"=")[0].decode("latin-1") not in names]
            if not crumbs:
                continue
            value = b"; ".join(crumbs)
        kept.append((field_name, value))
    return kept


def admission_of(route: RouteConfig, providers: Mapping[str, Provider]) -> Admission | None:
    """What a route asks of credentials; None for a route without `identity`."""
    if not route.identity:
        return None
    return Admission(
        tuple(providers[name] for name in route.identity),
        optional=route.optional,
        scopes=tuple(route.require.scopes),
        required={name: tuple(values) for name, values in route.require.claims.items()},
        per=tuple(route.per),
        claims=route.forward,
        forward_token=route.forward_token,
    )
