"""The source of a part's responses: one target at one upstream, fetched through the engine like a route.

So a part is cached, collapsed, served stale and purged as a route is. A failed part backs off, so that a hanging
upstream doesn't cost every request its timeout.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import msgspec
from msgspec import structs

from gateway.aggregates.fetching import Batch, Persistence, PersistentOrigin
from gateway.aggregates.lifetime import PartLife, unstored_part
from gateway.aggregates.merge import BodyTransform
from gateway.aggregates.part_result import Absent, BackOff, Failure, Got, failure_by, failure_of, late, unanswered
from gateway.cache.engine import Engine
from gateway.cache.request import CacheRequest, Origin, Route
from gateway.config.part_graph import OwnValues, PlannedPart
from gateway.config.part_values import Missing, PartTarget, Text, Values
from gateway.context import RequestContext, Result
from gateway.errors import RequestRefused, UpstreamError
from gateway.http.field_changes import NO_CHANGES, FieldChanges
from gateway.http.headers import CacheControl, Headers, has, without
from gateway.http.json_text import text_of
from gateway.http.target import Target, pair_name, query_name
from gateway.identity.admission import Dependence
from gateway.observability.metrics import Metrics
from gateway.policy import freshness
from gateway.policy.claim_tags import hidden, render_tags
from gateway.policy.entry import Entry
from gateway.policy.epochs import tag_name
from gateway.policy.freshness import Hit
from gateway.policy.keys import (
    PRINCIPAL,
    Keying,
    Plan,
    PlannedFields,
    digest,
    field_line,
    key_hash,
    passed_through,
    plan,
    primary_and_stem,
    sent_host,
    without_ignored,
)
from gateway.policy.rules import PLAIN, RequestDirectives
from gateway.routing.declared import Declared
from gateway.routing.fast_path import BlockCache, PartFields
from gateway.routing.upstream_request import UpstreamOrigin
from gateway.upstreams.client import Upstream
from gateway.upstreams.request import Deadline, Patience
from gateway.upstreams.response import Fetched, ResponseBody

NOT_FOR_PARTS = (
    b"if-none-match", b"if-modified-since", b"if-match", b"if-unmodified-since", b"range", b"if-range",
    b"accept-encoding", b"content-length", b"content-type", b"transfer-encoding", b"expect",
)  # fmt: skip
"""The client's request fields that concern the complete response, or a body."""
IDENTITY = (b"accept-encoding", b"identity")


class Wanting(msgspec.Struct, frozen=True):
    """The request that needs the parts. `headers` are those that parts may see, `until` is on the event loop's
    clock."""

    exchange: RequestContext
    headers: Headers
    facts: RequestDirectives
    values: Values
    until: float
    planned: dict[int, tuple[Keying, PlannedFields]]
    """As in `PartFields`."""
    fields: dict[int, Headers] = msgspec.field(default_factory=dict)
    """What parts see that depend on who sent the request, by the id of their Dependence."""

    def seen_by(self, dependence: Dependence | None, keying: Keying) -> Headers:
        """The fields of the request as a part sees them that depends on this of who sent it."""
        principal = self.exchange.principal
        if dependence is None or principal is None:
            return self.headers
        known = self.fields.get(id(dependence))
        if known is None:
            made = dependence.fields(principal, keying.identity_key)
            known = self.fields[id(dependence)] = [*self.headers, *made]
        return known

    def plan(self, keying: Keying, origin: str, target: str, headers: Headers) -> Plan:
        """The plan of a target; `keys.plan` for it, worked out once for all parts of one keying. `headers` are what
        parts of that keying see."""
        known = self.planned.get(id(keying))
        if known is None:
            known = self.planned[id(keying)] = keying, PlannedFields.of(keying, headers)
        of, (primary, stem) = known[1], primary_and_stem(origin, target, keying.identity_key)
        return Plan(primary, stem + of.suffix, of.forward, of.bypass, of.keyed, of.unkeyed)

    @classmethod
    def of(
        cls,
        exchange: RequestContext,
        facts: RequestDirectives,
        values: Values,
        until: float,
        claims: Sequence[str] = (),
        block: BlockCache | None = None,
    ) -> Wanting:
        """`claims` are those that the whole depends on; `block` is the header block of a request without a principal,
        if it was parsed before."""
        seen = None if block is None else block.for_parts
        if seen is None:
            shown = exchange.headers if block is None else block.headers
            seen = PartFields([*without(shown, *NOT_FOR_PARTS, PRINCIPAL), IDENTITY], {})
        headers = seen.headers
        if block is not None:
            block.for_parts = seen
            headers = [*headers, *exchange.headers[len(block.headers) :]]  # its request ID, which is in no key
        special = facts.no_store or facts.no_cache or facts.max_age is not None or facts.min_fresh or facts.max_stale
        principal = exchange.principal
        if principal is not None and claims:
            values = structs.replace(values, claims=principal.texts(claims))
        kept = structs.replace(facts, head=False, only_if_cached=False, authorized=False) if special else PLAIN
        return cls(exchange, headers, kept, values, until, seen.planned)


@dataclass(frozen=True)
class PartSource:
    """A part's source, made once. `through` is the name of its aggregate."""

    part: PlannedPart
    through: str
    upstream: Upstream
    route: Route
    transform: BodyTransform
    engine: Engine
    back_off: BackOff
    persistence: Persistence
    metrics: Metrics
    declared: Declared | None = None
    dependence: Dependence | None = None
    """What of the principal its responses depend on; None if they are shared by all."""

    @cached_property
    def timeout(self) -> float:
        own = self.part.config.timeout
        most = self.upstream.timeout if self.declared is None else self.declared.deadline
        return most if own is None else min(own.total_seconds(), most)

    def target(self, values: Values) -> tuple[str, tuple[str, ...]]:
        """The upstream target, and the tags. Raises Missing, RequestRefused."""
        if self._constant is not None:
            return self._constant
        if values.plain and self._plain and len(target := self._plain % values.path) <= LONGEST:
            return target, ()
        return self._rendered(values)

    @cached_property
    def _plain(self) -> str:
        """Its target as a format for the path's values, where those are plain; empty if it takes more than that."""
        target = self.part.target
        more = self.declared is not None or self.part.config.query or self.part.tags
        return "" if target is None or more else target.plain

    @cached_property
    def _constant(self) -> tuple[str, tuple[str, ...]] | None:
        """The target for all clients; None if it differs between them."""
        part = self.part
        texts = (part.target, *part.tags)
        if self.declared is not None or part.config.query or any(each is None or each.references for each in texts):
            return None
        return self._rendered(Values({}, (), {}))

    def refuses(self, values: Values) -> bool:
        """Whether the client's own values are refused, whatever earlier parts answer."""
        own = OwnValues(values.path, values.pairs, values.header)
        try:
            self._rendered(own)
            self._own_headers(own)
        except Missing:
            return False
        except RequestRefused:
            return True
        return False

    def _rendered(self, values: Values) -> tuple[str, tuple[str, ...]]:
        if self.declared is not None:
            return self._target_of_route(self.declared, values)
        assert self.part.target is not None
        target = self._filled(self.part.target, values)
        tags = tuple(tag for each in self.part.tags if (tag := self._tag(each, values)) is not None)
        _check_length(target, *tags)
        return target, tags

    def _tag(self, tag: Text, values: Values) -> str | None:
        """A tag with its values; None for one that names a claim, where nobody has sent a credential."""
        named = [each.rest for each in tag.references if each.source == "claim"]
        if any(name not in values.claims for name in named):
            return None
        text = tag.render(values)
        return hidden(tag.literals[0], text, self.engine.identity_key) if named else text

    def _filled(self, template: PartTarget, values: Values) -> str:
        """A target with its values in it, and the client's pairs that the part passes on, as a route does it."""
        path, pairs = template.render(values)
        passed = self.part.config.query
        if passed:
            pairs = (*pairs, *(pair for pair in values.pairs if query_name(pair) in passed))
        return str(Target(path, tuple(sorted(pairs, key=pair_name)), ""))

    def _target_of_route(self, declared: Declared, values: Values) -> tuple[str, tuple[str, ...]]:
        template = self.part.target
        if template is None:
            path, pairs = declared.template.text, tuple[str, ...]()
            for name in declared.template.parameters:
                path = path.replace(f"{{{name}}}", values.path[name])
        else:
            path, pairs = template.render(values)
        target, parameters = declared.upstream_target(path, pairs)
        return target, render_tags(declared.config.tags, parameters, values.claims, self.engine.identity_key)

    def ask(self, wanting: Wanting, target: str, tags: tuple[str, ...], *, stays: bool = False) -> CacheRequest:
        """The request for a target, as the engine takes it; `stays` as in `CacheRequest`."""
        of, now = wanting.exchange, time.perf_counter()
        exchange = RequestContext(of.request_id, now, "GET", of.client, of.scheme, headers=of.headers)
        keying, facts = self.route.keying, wanting.facts
        headers = wanting.headers if self.dependence is None else wanting.seen_by(self.dependence, keying)
        if keying.authorization == "pass" and has(headers, b"authorization"):
            facts = structs.replace(facts, authorized=True)
        planned = wanting.plan(keying, self.upstream.name, target, headers)
        if self.part.headers:
            planned, headers = self._with_own_headers(planned, headers, wanting.values)
        asking = self.origin(target, exchange.request_id)

        async def past() -> Fetched:
            sent = [*sent_host(keying, headers), *passed_through(without_ignored(keying, headers))]
            return await asking.fetch("GET", [*sent, *keying.constants])

        through = None if self.declared is not None else self.through
        wanted = structs.replace(self.route.selection, plan=planned, headers=headers, tags=tags, through=through)
        return CacheRequest(self.route, planned, facts, headers, exchange, asking, past, wanted, stays=stays, bare=True)

    def origin(self, target: str, request_id: str) -> Origin:
        """The origin of a target's responses."""
        plain = structs.replace(self._origin, target=target, request_id=request_id)
        persistence = self.persistence
        eager = persistence.retries or persistence.hedge is not None
        return PersistentOrigin(plain, persistence) if eager else plain

    @cached_property
    def _origin(self) -> UpstreamOrigin:
        """The origin of its responses, but for what each request has of its own."""
        largest = None if self.declared is None else self.declared.config.max_response_body
        return UpstreamOrigin(
            self.upstream,
            "",
            "",
            self.metrics,
            patience=Patience(timeout=self.timeout),
            changes=self._changes,
            largest=largest,
        )

    @cached_property
    def _changes(self) -> FieldChanges:
        return NO_CHANGES if self.declared is None else self.declared.config.headers.request.changes

    def batch(self, wanting: Wanting, elements: int) -> Batch:
        """Fetches the elements of a list together. Raises Missing."""
        template = self.part.batch
        assert template is not None
        headers = wanting.seen_by(self.dependence, self.route.keying)
        example = plan(self.route.keying, self.upstream.name, "/", headers)
        if self.part.headers:
            example, _ = self._with_own_headers(example, headers, wanting.values)

        async def send(ids: str) -> Fetched:
            target = self._filled(template, structs.replace(wanting.values, item=ids))
            return await self.origin(target, wanting.exchange.request_id).fetch("GET", example.forward)

        config = self.part.config
        return Batch(self.upstream.name, send, config.batch_key, self.route.max_body * config.limit, elements)

    def _with_own_headers(
        self, planned: Plan, headers: Headers, values: Values
    ) -> tuple[Plan, list[tuple[bytes, bytes]]]:
        """The part's own request headers: sent, and part of the key on any route; without those whose value the client
        did not send. Raises Missing."""
        own = self._own_headers(values)
        names = [name for name, _ in self.part.headers]
        secret = self.route.keying.identity_key
        lines = [f"header {field_line(name.decode(), value.decode('latin-1'), secret)}" for name, value in own]
        base = "\n".join((planned.base, *lines))
        forward = (*without(planned.forward, *names), *own)
        return structs.replace(planned, base=base, forward=forward), [*without(headers, *names), *own]

    def _own_headers(self, values: Values) -> list[tuple[bytes, bytes]]:
        """Raises Missing, RequestRefused."""
        given = [(name, text.given(values)) for name, text in self.part.headers]
        own = [(name, value.encode("latin-1", "replace")) for name, value in given if value is not None]
        if any(b"\r" in value or b"\n" in value or b"\0" in value for _, value in own):
            raise RequestRefused("A header value contains a line break or a NUL.")
        _check_length(*(value for _, value in own))
        return own

    # --- fetching -----------------------------------------------------------------------------------------------

    def at_hand(self, request: CacheRequest) -> Got | None:
        """The response, if it is usable in memory. Raises Failure if it failed just now and nothing can replace it,
        Absent."""
        decision = self.engine.look(request)
        if decision is None:
            if request.facts.no_cache or not self.back_off.failures:
                return None
            failed = self.back_off.known(*self._keys(request))
            return None if failed is None else self._instead(request, failed)
        said = "hit" if isinstance(decision, Hit) else "stale"
        self.engine.traffic.seen(request.route.name, key_hash(request.plan.base))
        return self._stored(request, decision.stored, said, fresh=decision.windows.fresh)

    async def get(self, request: CacheRequest, until: float) -> Got:
        """As `fetched`, until an instant of the event loop's clock at most."""
        try:
            with Deadline(until - asyncio.get_running_loop().time()):
                return await self.fetched(request)
        except TimeoutError:
            return self.late(request)

    async def fetched(self, request: CacheRequest) -> Got:
        """The answer: from the cache, else from the upstream, else a stale copy. Raises Failure, Absent."""
        back_off = self.back_off
        failed = back_off.claimed(*self._keys(request), self.timeout) if back_off.failures else None
        if failed is not None:
            return self._instead(request, failed)
        try:
            got = await self._asked(request)
        except UpstreamError as error:
            return self._failed(request, failure_of(error))
        except Absent:
            back_off.forget(*self._keys(request))
            raise
        except Failure as failure:
            return self._failed(request, failure)
        if got.life.failing:
            back_off.put(self._keys(request)[1], Failure("error", "upstream failed"))
        elif back_off.failures:
            back_off.forget(*self._keys(request))
        return got

    def late(self, request: CacheRequest) -> Got:
        """What stands in for an answer that does not come in time. Raises Failure, Absent."""
        return self._failed(request, late())

    def _failed(self, request: CacheRequest, failure: Failure) -> Got:
        self.back_off.remember(*self._keys(request), failure)
        return self._instead(request, failure)

    def _too_large(self) -> Failure:
        return Failure("too-large", f"it is larger than {self.route.max_body} bytes")

    def _keys(self, request: CacheRequest) -> tuple[str, str]:
        """The keys of a request's failures, for all and for its credentials."""
        return request.plan.base, self._asked_as(request.plan, request.headers)

    def _asked_as(self, planned: Plan, headers: Headers) -> str:
        """The key of a failure: the target, and the credentials sent with it, also if those are not part of the cache
        key."""
        keying = self.route.keying
        if planned.bypass is None and not (planned.keyed or planned.unkeyed or keying.claims or self.part.headers):
            return planned.base  # what is sent identifies nobody: its other fields are the same for all
        sent = planned.forward if planned.bypass is None else passed_through(headers)
        own = [b"%b:%b" % pair for pair in sent if keying.identifies(pair[0].decode("latin-1"))]
        return planned.base + "\n" + digest(b"\n".join(own).decode("latin-1")) if own else planned.base

    def _instead(self, request: CacheRequest, failure: Failure) -> Got:
        # The stored entry is not this client's if its credentials bypass the cache; and a 401, for example, is a
        # response.
        stands_in = request.plan.bypass is None and failure.backs_off
        stored = self.engine.stale_copy(request) if stands_in else None
        if stored is None or not 200 <= stored.status < 300:
            raise failure.again()
        return self._stored(request, stored, "stale", failing=failure.kind)

    async def _asked(self, request: CacheRequest) -> Got:
        answer = await self.engine.answer(request)
        outcome, stored, body = request.exchange.outcome, request.exchange.stored, answer.body
        if not isinstance(body, bytes):
            with Deadline(self.timeout):  # also if nobody waits for it any more
                whole = await self._read(body)
            if whole is None:
                raise self._too_large()
            body = whole
        if outcome.result is Result.ERROR:
            raise unanswered(outcome.detail or "error", answer.status, request.exchange.failure)
        if stored is not None:
            failing = "error" if outcome.result is Result.STALE_ERROR else ""
            return self._stored(request, stored, _SAID[outcome.result], failing=failing)
        private = request.plan.bypass is not None or request.facts.authorized
        life = unstored_part(answer.headers, private=private)
        if not 200 <= answer.status < 300:
            raise failure_by(answer.status, life)
        return Got("bypass" if request.plan.bypass is not None else "miss", answer.headers, body, life)

    def _stored(
        self, request: CacheRequest, stored: Entry, said: str, *, failing: str = "", fresh: float | None = None
    ) -> Got:
        now = self.engine.clock.now()
        rules = request.route.rules
        age = freshness.current_age(stored, now) if rules.ttl is None else max(0.0, now - stored.born)
        life = PartLife(
            age=age,
            remaining=(freshness.windows(stored, rules).fresh if fresh is None else fresh) - now,
            personal=request.route.keying.one_user and CacheControl.of(stored.headers).unqualified("private"),
            failing=bool(failing),
            stamps=(stored.stamp,),
            started=stored.started,
            names=(*request.wanted.names, *map(tag_name, stored.tags)),
            vary=stored.vary,
        )
        if not 200 <= stored.status < 300:
            raise failure_by(stored.status, life)
        if said == "stale":
            said = f"stale;age={int(age)}" + (f";error={failing}" if failing else "")
        return Got(said, stored.headers, stored.body, life, stored.key)

    async def post(self, wanting: Wanting, target: str) -> Got:
        """The response to a POST, which is never cached. Raises Failure, Missing."""
        keying = self.route.keying
        headers = wanting.seen_by(self.dependence, keying)
        planned = plan(keying, self.upstream.name, target, headers)
        if self.part.headers:
            planned, headers = self._with_own_headers(planned, headers, wanting.values)
        key, own = planned.base + "\nPOST", self._asked_as(planned, headers) + "\nPOST"
        failed = self.back_off.known(key, own)
        if failed is not None:
            raise failed.again()
        forward: Headers = planned.forward
        if planned.bypass is not None:
            forward = (*sent_host(keying, headers), *passed_through(headers), *keying.constants)
        left = wanting.until - asyncio.get_running_loop().time()
        try:
            with Deadline(min(left, self.timeout)):
                return await self._posted(target, wanting.exchange.request_id, forward)
        except TimeoutError:
            failure = late()
        except UpstreamError as error:
            failure = failure_of(error)
        except Absent:
            self.back_off.forget(key, own)
            raise
        except Failure as error:
            failure = error
        self.back_off.remember(key, own, failure)
        raise failure

    async def _posted(self, target: str, request_id: str, forward: Headers) -> Got:
        """Raises UpstreamError, Failure."""
        origin = UpstreamOrigin(self.upstream, target, request_id, self.metrics, changes=self._changes)
        sent = [*forward, (b"content-type", b"application/json")]
        fetched = await origin.send("POST", sent, text_of(self.part.config.body))
        body, life = await self._read(fetched.body), PartLife(remaining=0.0, unstored=True)
        if not 200 <= fetched.status < 300:
            raise failure_by(fetched.status, life)
        if body is None:
            raise self._too_large()
        return Got("bypass", fetched.headers, body, life)

    async def _read(self, body: ResponseBody) -> bytes | None:
        """A whole body; None if it is too large. It is closed, also if that takes too long."""
        try:
            return await body.whole(self.route.max_body)
        finally:
            await body.aclose()


_SAID: Mapping[Result, str] = {
    Result.HIT: "hit",
    Result.STALE: "stale",
    Result.STALE_ERROR: "stale",
    Result.REVALIDATED: "revalidated",
    Result.MISS: "miss",
}


LONGEST = 8 * 1024
"""Maximum length of a part's target, and of its headers and tags: that of a client's request line. A value from another
part may be as large as its response: a megabyte of it became a request line."""


def _check_length(*texts: str | bytes) -> None:
    if any(len(text) > LONGEST for text in texts):
        raise RequestRefused("A value is too long for the upstream request.")
