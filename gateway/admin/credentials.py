"""API keys and revocations at the admin listener: what an order says, and the answer to it.

`identity.changes` decides what becomes of an order. A key never gets here: an order has its SHA-256. What a revocation
names is neither in the audit list nor in an answer, as it may be personal.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway.admin.console import encoded, problem
from gateway.app.generation import Generation
from gateway.cache.purge_log import PurgeReport
from gateway.config.overrides import instant
from gateway.config.types import parse_duration
from gateway.errors import GatewayError
from gateway.identity.api_keys import parse_instant
from gateway.identity.changes import Changed, Changes, ChangeUnavailable, Wanted
from gateway.identity.records import ApiKey, Revocation
from gateway.routing.declared import report_of

LONGEST_OVERLAP = 365 * 24 * 3600.0
_SHA256 = re.compile("[0-9a-f]{64}")


class KeyOrder(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The body of `POST /keys`. `sha256` is that of the key, `expires` an instant (ISO 8601) or a duration from now."""

    sha256: str
    identity: str = ""
    owner: str = ""
    plan: str = ""
    scopes: list[str] = []
    expires: str | None = None
    by: str = ""


class RotateOrder(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The body of `POST /keys/{id}/rotate`: the SHA-256 of the new key, and how long the old one is still
    accepted."""

    sha256: str
    overlap: str = "24h"
    by: str = ""


class RevokeOrder(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The body of `POST /revocations`: one of `sub`, `jti` and `client`, or `issued_before` alone. `issuer` is the name
    of an identity, and `issued_before` an instant (ISO 8601) or `now`."""

    sub: str = ""
    jti: str = ""
    client: str = ""
    issued_before: str | None = None
    issuer: str = ""
    by: str = ""


Note = Callable[[str, str, str], Awaitable[None]]
"""Adds to the audit list: what, the detail, and by whom."""


@dataclass(frozen=True)
class Credentials:
    """The handlers. `who` says who sent an order, by the name in it."""

    gateway: Callable[[], Generation]
    body: Callable[[Request], Awaitable[bytes]]
    who: Callable[[str, Request], str]
    note: Note

    async def keys(self, request: Request) -> Response:
        return encoded({"keys": [_shown(each, self._now()) for each in self._changes().listed()]})

    async def create(self, request: Request) -> Response:
        order = msgspec.json.decode(await self.body(request), type=KeyOrder)
        wanted = Wanted(
            sha256=_sha256(order.sha256),
            provider=order.identity,
            owner=order.owner,
            plan=order.plan,
            scopes=order.scopes,
            expires=self._end(order.expires),
        )
        by = self.who(order.by, request)
        return await self._changed(self._changes().create(wanted, by=by), "key created", by)

    async def rotate(self, request: Request) -> Response:
        order = msgspec.json.decode(await self.body(request), type=RotateOrder)
        overlap = parse_duration(order.overlap).total_seconds()
        if overlap > LONGEST_OVERLAP:
            raise ValueError("overlap is longer than 365d")
        by = self.who(order.by, request)
        rotated = self._changes().rotate(request.path_params["key"], _sha256(order.sha256), overlap, by=by)
        return await self._changed(rotated, "key rotated", by)

    async def revoke_key(self, request: Request) -> Response:
        by = self.who(request.query_params.get("by", ""), request)
        return await self._changed(self._changes().revoke_key(request.path_params["key"]), "key revoked", by)

    async def revoke_keys_of(self, request: Request) -> Response:
        by, owner = self.who(request.query_params.get("by", ""), request), request.query_params.get("owner", "")
        if not owner:
            raise ValueError("name the owner of the keys")
        return await self._changed(self._changes().revoke_keys_of(owner), "key revoked", by)

    async def revocations(self, request: Request) -> Response:
        known = self.gateway().worker_state.credentials.records.revocations.values()
        return encoded({"revocations": [_shown_revocation(each) for each in sorted(known, key=lambda each: -each.at)]})

    async def revoke(self, request: Request) -> Response:
        order = msgspec.json.decode(await self.body(request), type=RevokeOrder)
        given = {kind: value for kind in ("sub", "jti", "client") if (value := getattr(order, kind))}
        if len(given) > 1 or not (given or order.issued_before):
            raise ValueError("name one of sub, jti and client, or issued_before alone")
        kind, value = next(iter(given.items()), ("all", ""))
        before = None if order.issued_before is None else self._instant(order.issued_before)
        by = self.who(order.by, request)
        made = self._changes().revoke(kind, value, issuer=order.issuer, before=before, by=by)
        try:
            revocation, report = await made
        except GatewayError as error:
            return problem(400, str(error))
        await self.note("revoke", _detail(revocation, order.issuer), by)
        return self._answer(report, {"revocation": _shown_revocation(revocation)})

    async def _changed(self, change: Awaitable[Changed], what: str, by: str) -> Response:
        try:
            changed = await change
        except ChangeUnavailable as error:
            return problem(503, str(error))
        except GatewayError as error:
            return problem(400, str(error))
        await self.note(what, ", ".join(f"{each.provider} {each.key}" for each in changed.keys)[:500], by)
        return self._answer(changed.report, {"keys": [_shown(each, self._now()) for each in changed.keys]})

    def _answer(self, report: PurgeReport, more: dict[str, Any]) -> Response:
        """200 if every worker has applied it, 202 otherwise. `kept` says whether it outlasts the end of all workers."""
        config = self.gateway().config
        in_memory = config.redis_url == "embedded" and config.redis_dir is None
        kept = self.gateway().worker_state.credentials.keeps and not in_memory
        return encoded({**report_of(report), "kept": kept, **more}, 200 if report.complete else 202)

    def _changes(self) -> Changes:
        gateway = self.gateway()
        config, log = gateway.config, gateway.worker_state.credentials
        if not config.identity:
            raise ValueError("this gateway has no identity: there are no API keys, and no tokens to revoke")
        return Changes(log, config.identity, gateway.engine.clock, longest=config.max_token_age.total_seconds())

    def _now(self) -> float:
        return self.gateway().engine.clock.now()

    def _instant(self, text: str) -> float:
        return self._now() if text == "now" else parse_instant(text)

    def _end(self, text: str | None) -> float | None:
        """When a key expires: a duration counts from now."""
        if text is None:
            return None
        try:
            return self._now() + parse_duration(text).total_seconds()
        except ValueError:
            return parse_instant(text)


def _sha256(text: str) -> str:
    """Raises ValueError for what is no digest, such as a key itself."""
    if not _SHA256.fullmatch(text):
        raise ValueError("sha256 must be the SHA-256 of the key, 64 hexadecimal digits in lower case; never the key")
    return text


def _shown(key: ApiKey, now: float) -> dict[str, Any]:
    """A key as operators see it."""
    state = "revoked" if key.revoked is not None else "in force" if now < key.ends else "expired"
    return {
        "id": key.key,
        "identity": key.provider,
        "owner": key.owner,
        "plan": key.plan,
        "scopes": key.scopes,
        "created": key.created,
        "expires": key.expires,
        "revoked": key.revoked,
        "by": key.by,
        "state": state,
    }


def _shown_revocation(revocation: Revocation) -> dict[str, Any]:
    """A revocation as operators see it: without what it names."""
    return {
        "kind": revocation.kind,
        "issuer": revocation.issuer,
        "issued_before": revocation.before,
        "until": revocation.until,
        "at": revocation.at,
        "by": revocation.by,
    }


def _detail(revocation: Revocation, issuer: str) -> str:
    what = "all tokens" if revocation.kind == "all" else f"tokens of a {revocation.kind}"
    return f"{what}{f' of {issuer}' if issuer else ''} issued before {instant(revocation.before)}"
