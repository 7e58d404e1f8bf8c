"""Opaque tokens: an endpoint says whether one is valid, and what it says (RFC 7662).

Decides when the endpoint is asked: once for all requests that come with a token while an answer is awaited, and not
again while the answer is remembered. Answers are remembered in the worker's memory alone, by digests that are made with
a secret of this process: they hold what is known of a user, and a copy in Redis would save one request a worker.
Without an answer the response is 503, and never says that the token is invalid.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from base64 import b64encode
from collections import Counter, OrderedDict
from hashlib import blake2b
from secrets import token_bytes
from typing import Any
from urllib.parse import quote_plus, urlencode

import msgspec

from gateway.clock import Clock
from gateway.config.identity import IntrospectConfig, IssuerConfig
from gateway.errors import GatewayError
from gateway.identity.admission import Epoch, NotAdmitted
from gateway.identity.principal import Principal, is_subject
from gateway.identity.records import CredentialRecords
from gateway.observability.log import state
from gateway.upstreams.client import Upstream

logger = logging.getLogger("gateway")
LONGEST_TOKEN = 8 * 1024
LONGEST_ANSWER = 64 * 1024
"""Bytes of an answer about a token."""
MOST_INVALID = 10_000
"""Invalid tokens that are remembered. They are apart from valid ones, so that no flood of them drives these out."""
RETRY_AFTER = 5
"""Seconds, in a 503."""
_TOKEN = re.compile(rb"[\x21-\x7e]+")
_MAX_NUMERIC_DATE = 253_402_300_799.0


class NoAnswer(Exception):
    """The endpoint has not said whether a token is valid; the message says why, and contains nothing of it."""


class Introspector:
    """Verifies the opaque tokens of `name` by asking `upstream`. `records` are the revocations."""

    def __init__(
        self,
        name: str,
        config: IssuerConfig,
        upstream: Upstream,
        records: CredentialRecords,
        clock: Clock,
        epoch: Epoch,
    ) -> None:
        assert config.introspect is not None, "it is of this kind"
        self.name = name
        self.sources = tuple(config.sources)
        self.epoch = epoch
        self.answers: Counter[str] = Counter()
        """What the endpoint said: `active`, `inactive`, or `failed` where it said nothing that can be used."""
        self.failure: str | None = None
        """Why the last request failed; None if it did not."""
        self._upstream = upstream
        self._records = records
        self._clock = clock
        self._config: IntrospectConfig = config.introspect
        self._audience = frozenset(config.audience)
        self._leeway = config.leeway.total_seconds()
        self._most = config.tokens
        self._valid: OrderedDict[bytes, Principal] = OrderedDict()
        self._invalid: OrderedDict[bytes, float] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[Principal | None]] = {}
        self._secret = token_bytes(32)
        self._authorization = _basic(self._config)

    def __repr__(self) -> str:
        return f"<Introspector {self.name} known={len(self._valid)} failure={self.failure!r}>"

    @property
    def ready(self) -> bool:
        """Whether the endpoint answered last time."""
        return self.failure is None

    @property
    def _topic(self) -> str:
        return f"identity {self.name}"

    def recognises(self, credential: bytes) -> bool:
        """A signed token has two dots. Whatever else there is may be an opaque one."""
        return credential.count(b".") != 2

    def known(self, credential: bytes) -> Principal | None:
        """The principal of a token that is known to be valid now."""
        digest = self._digest(credential)
        found = self._valid.get(digest)
        if found is None or not self._records.known:
            return None
        if self._clock.now() >= self.holds_until(found) or self._records.revoked(found):
            del self._valid[digest]
            return None
        self._valid.move_to_end(digest)
        return found

    verified_at_once = known
    """Any other token is asked about."""

    def holds_until(self, principal: Principal) -> float:
        assert principal.expires_at is not None
        return principal.expires_at

    async def verified(self, credential: bytes) -> Principal:
        """Raises NotAdmitted."""
        if len(credential) > LONGEST_TOKEN or not _TOKEN.fullmatch(credential):
            raise NotAdmitted(401, "invalid_token", "The token is malformed.", "form")
        if not self._records.known:
            raise unknown_revocations()
        principal = self.known(credential)
        if principal is not None:
            return principal
        digest = self._digest(credential)
        if self._is_invalid(digest):
            raise _inactive()
        principal = await self._asked(digest, credential)
        if principal is None:
            raise _inactive()
        if self._records.revoked(principal):
            raise NotAdmitted(401, "invalid_token", "The token is revoked.", "revoked")
        return principal

    def _is_invalid(self, digest: bytes) -> bool:
        return self._clock.now() < self._invalid.get(digest, -math.inf)

    async def _asked(self, digest: bytes, credential: bytes) -> Principal | None:
        """What the endpoint says; one request for all that wait. One that is cancelled ends it for no other. Raises
        NotAdmitted."""
        task = self._asking.get(digest)
        if task is None:
            task = self._asking[digest] = asyncio.ensure_future(self._ask(digest, credential))
            task.add_done_callback(lambda task: self._asked_for(digest, task))
        try:
            return await asyncio.shield(task)
        except NoAnswer:
            detail = "Tokens can't be verified now: the endpoint that knows them does not answer."
            raise NotAdmitted(503, "", detail, "introspection", (), RETRY_AFTER) from None

    def _asked_for(self, digest: bytes, task: asyncio.Task[Principal | None]) -> None:
        self._asking.pop(digest, None)
        if not task.cancelled():
            task.exception()  # it is logged, also where nobody waits any more

    async def _ask(self, digest: bytes, credential: bytes) -> Principal | None:
        """Raises NoAnswer."""
        try:
            found = self._principal(await self._request(credential))
        except NoAnswer as error:
            self._failed(str(error))
            raise
        if self.failure is not None:
            logger.info("identity %s: the endpoint of its tokens answers again", self.name, extra=state(self._topic))
        self.failure = None
        self.answers["inactive" if found is None else "active"] += 1
        self._remember(digest, found)
        return found

    def _failed(self, reason: str) -> None:
        self.answers["failed"] += 1
        if self.failure != reason:
            said = "identity %s: the endpoint of its tokens gives no answer (%s): they get 503"
            logger.warning(said, self.name, reason, extra=state(self._topic, reason))
        self.failure = reason

    async def _request(self, credential: bytes) -> dict[str, Any]:
        """Raises NoAnswer."""
        headers = {
            "authorization": self._authorization,
            "content-type": "application/x-www-form-urlencoded",
            "accept": "application/json",
        }
        form = urlencode({"token": credential.decode("ascii"), "token_type_hint": "access_token"}).encode("ascii")
        try:
            response = await self._upstream.request(
                "POST", self._config.path, headers=headers, content=form, max_body=LONGEST_ANSWER
            )
        except GatewayError as error:
            raise NoAnswer(f"{type(error).__name__} of upstream {self._upstream.name}") from None
        if response.status_code in (401, 403):
            raise NoAnswer(f"it responds {response.status_code}: check client_id and client_secret")
        if response.status_code != 200:
            raise NoAnswer(f"it responds {response.status_code}")
        try:
            found = msgspec.json.decode(response.content, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise NoAnswer("its answer is no JSON object") from None
        if not isinstance(found.get("active"), bool):
            raise NoAnswer("its answer does not say whether the token is active (RFC 7662 §2.2)")
        return found

    def _principal(self, said: dict[str, Any]) -> Principal | None:
        """The principal of an answer; None for one that says no. It expires when the answer is to be forgotten: with
        the token at the latest. Raises NoAnswer."""
        active, now = said.pop("active"), self._clock.now()
        expires, not_before, issued = (_date(said, name) for name in ("exp", "nbf", "iat"))
        last = math.inf if expires is None else expires
        if issued is not None:
            last = min(last, issued + self._records.longest)
        if not active or now >= last + self._leeway or now < (not_before or 0.0) - self._leeway:
            return None
        if "sub" in said and not is_subject(said["sub"]):
            raise NoAnswer("its answer has a `sub` that is no text")
        if self._audience and self._audience.isdisjoint(_texts(said.get("aud"))):
            return None
        return Principal(
            provider=self.name,
            issuer=f"introspection {self.name}",
            claims=said,
            scopes=frozenset(scope for text in _texts(said.get("scope")) for scope in text.split(" ") if scope),
            issued_at=issued,
            expires_at=min(last, now + self._config.cache.total_seconds()),
        )

    def _remember(self, digest: bytes, principal: Principal | None) -> None:
        if principal is None:
            self._invalid[digest] = self._clock.now() + self._config.negative.total_seconds()
            if len(self._invalid) > MOST_INVALID:
                self._invalid.popitem(last=False)
            return
        self._invalid.pop(digest, None)
        if self._most:
            self._valid[digest] = principal
            if len(self._valid) > self._most:
                self._valid.popitem(last=False)

    def _digest(self, credential: bytes) -> bytes:
        return blake2b(credential, digest_size=16, key=self._secret).digest()

    async def aclose(self) -> None:
        for task in [*self._asking.values()]:
            task.cancel()
        if self._asking:
            await asyncio.wait([*self._asking.values()], timeout=0.05)


def unknown_revocations() -> NotAdmitted:
    """A worker that has never read the revocations can let nobody in: any token may be revoked."""
    detail = "Tokens can't be verified now: it is not known which are revoked."
    return NotAdmitted(503, "", detail, "records", (), RETRY_AFTER)


def _inactive() -> NotAdmitted:
    return NotAdmitted(401, "invalid_token", "The token is invalid, or has ended.", "inactive")


def _basic(config: IntrospectConfig) -> str:
    """Client authentication (RFC 6749 §2.3.1): both are form-encoded first."""
    pair = f"{quote_plus(config.client_id)}:{quote_plus(config.client_secret.get_secret_value())}"
    return f"Basic {b64encode(pair.encode()).decode()}"


def _date(said: dict[str, Any], name: str) -> float | None:
    """Raises NoAnswer."""
    value = said.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_NUMERIC_DATE:
        raise NoAnswer(f"its answer has a `{name}` that is no date")
    return float(value)


def _texts(value: Any) -> list[str]:
    found = value if isinstance(value, list) else [value]
    return [each for each in found if isinstance(each, str)]
