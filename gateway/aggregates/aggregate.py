"""Aggregates: one response joined from the responses of several upstreams.

An aggregate's response is requested from the engine like any other, with an origin that joins the parts; so it is
stored, collapsed and served like any other. If all parts are in memory, it is joined within one event loop iteration.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import orjson
from msgspec import structs

from gateway.aggregates.lifetime import joining, together, whole_headers
from gateway.aggregates.merge import MergePiece, joined
from gateway.aggregates.part_source import Wanting
from gateway.aggregates.runner import Kit, Run
from gateway.cache.engine import Engine
from gateway.cache.request import CacheRequest, Route
from gateway.cache.respond import Answer, problem
from gateway.config.part_graph import sole_part
from gateway.config.part_values import Values
from gateway.config.route import RouteConfig
from gateway.context import Outcome, PartState, RequestContext, Result
from gateway.errors import PartFailed, RequestRefused, problem_document
from gateway.http.headers import Headers
from gateway.identity.admission import Admission
from gateway.identity.principal import Principal
from gateway.limits.route_limits import RouteLimits
from gateway.policy.claim_tags import render_tags
from gateway.policy.keys import Plan
from gateway.policy.rules import RequestDirectives
from gateway.policy.validation import fields_of_304, not_modified
from gateway.routing.fast_path import BlockCache
from gateway.upstreams.response import Fetched, WholeBody

CONSTANT_LIFE = 60.0
"""Lifetime in seconds of a response without an upstream: of constants, and of omitted parts."""
SLACK = 1.0
"""Seconds beyond the parts' deadline after which the engine aborts the aggregate."""


@dataclass(frozen=True)
class Aggregate:
    """A route with parts, ready for requests."""

    name: str
    config: RouteConfig
    kit: Kit
    route: Route
    engine: Engine
    admission: Admission | None = None
    """What it asks of credentials; None if it lets anybody in."""
    written: RouteConfig | None = None
    """For an aggregate written in Python: its settings in code, without live overrides."""
    limits: RouteLimits | None = None

    @cached_property
    def counts_hits(self) -> bool:
        """Whether a limit counts each request, so that none is answered without the app."""
        return self.limits is not None and bool(self.limits.of_all)

    @cached_property
    def origin(self) -> str:
        """The name of its responses' origin in keys."""
        return f"+{self.name}"

    @cached_property
    def all_parts(self) -> tuple[str, ...]:
        """The names of its parts, in the order of the settings."""
        return tuple(self.config.parts)

    @cached_property
    def deadline(self) -> float:
        return self.config.deadline.total_seconds()

    @property
    def part_routes(self) -> list[str]:
        """The names of the parts' own routes, by which they can be purged: `home.offers`."""
        return [route.name for route in self.own_routes]

    @property
    def own_routes(self) -> list[Route]:
        """The routes of those parts that are not declared routes."""
        return [source.route for source in self.kit.sources.values() if source.declared is None]

    @cached_property
    def follows_origin(self) -> bool:
        """Whether an upstream of a part decides what of a request counts."""
        return any(source.route.follows_origin for source in self.kit.sources.values())

    def ask(
        self,
        exchange: RequestContext,
        plan: Plan,
        facts: RequestDirectives,
        values: Values,
        shown: tuple[str, ...],
        block: BlockCache | None = None,
        *,
        stays: bool = False,
    ) -> CacheRequest:
        """The request for the parts `shown`, as the engine takes it. `block` as in `Wanting.of`, `stays` as in
        `CacheRequest`."""
        origin, headers = _JoinOrigin(self, exchange, facts, values, shown, block), exchange.headers
        tags = self.tags(values, exchange.principal) if self.config.tags else ()
        wanted = structs.replace(self.route.selection, plan=plan, headers=headers, tags=tags)
        return CacheRequest(self.route, plan, facts, headers, exchange, origin, origin.past, wanted, stays=stays)

    def at_hand(self, request: CacheRequest) -> Answer | None:
        """The response, if it is in memory, complete or in parts; None if a fetch is needed."""
        assert isinstance(request.origin, _JoinOrigin)
        try:
            answer = self.engine.at_hand(request) or self._now(request, request.origin)
        except RequestRefused as refused:
            return problem(request.exchange, refused.status, refused.detail)
        return None if answer is None else _told(answer, request.exchange)

    async def answer(self, request: CacheRequest) -> Answer:
        """The answer to a GET or HEAD."""
        try:
            return _told(await self.engine.answer(request), request.exchange)
        except RequestRefused as refused:
            return problem(request.exchange, refused.status, refused.detail)

    def tags(self, values: Values, principal: Principal | None) -> tuple[str, ...]:
        """The tags of a response for `principal`."""
        claims = {} if principal is None or self.admission is None else principal.texts(self.admission.per)
        return render_tags(self.config.tags, values.path, claims, self.engine.identity_key)

    def _now(self, request: CacheRequest, origin: _JoinOrigin) -> Answer | None:
        """The response, if every part is in memory; it is kept, if allowed."""
        if request.plan.bypass is not None or request.facts.no_store:
            return None
        run = origin.begin()
        whole = run.now()
        if run.failures:
            _check_refusal(run)
        if not whole:
            return None
        try:
            fetched, body = self.whole(run, request.exchange, at_once=True)
        except PartFailed:
            return None
        if fetched.made is not None:
            return self.engine.keep_made(request, fetched, fetched.made, body)
        result = Result.STALE if run.complete else Result.STALE_ERROR
        request.exchange.outcome = Outcome(result, detail="joined" if run.complete else "incomplete")
        if not_modified(request.headers, fetched.headers, self.engine.clock.now()):
            return Answer(304, fields_of_304(fetched.headers), b"")
        return Answer(200, list(fetched.headers), b"" if request.facts.head else body)

    def whole(self, run: Run, exchange: RequestContext, *, at_once: bool = False) -> tuple[Fetched, bytes]:
        """The joined response of a finished run. `at_once`: within one event loop iteration, so that all purges are
        applied already, and a purge of the aggregate alone takes effect. Raises PartFailed if a required part failed,
        RequestRefused if the client's values are the reason."""
        exchange.parts = self._counted(run)
        if run.failures:
            _check_failures(run, exchange)
        body = self._joined(run, exchange)
        whole = together([each.life for each in run.results.values() if each.life is not None])
        complete, stamps = run.complete, whole.stamps
        tiers = self.engine.tiers
        if at_once or not stamps:  # noqa: SIM108 (three cases)
            stamp = tiers.stamp()
        else:
            stamp = stamps[0] if len(stamps) == 1 else tiers.least_stamp(stamps)
        life = joining(whole, complete=complete, stamp=stamp, longest=CONSTANT_LIFE, vary=self.vary)
        states = _states(exchange.parts) if life.made is None else _settled(exchange.parts)
        headers = whole_headers(body, life, states, complete=complete)
        return Fetched(200, headers, WholeBody(body), life.made), body

    def _counted(self, run: Run) -> tuple[PartState, ...]:
        """The states of the parts with an upstream, which are counted."""
        states = []
        for name in run.order:
            each = run.results[name]
            if each.said != "static":
                states.append(PartState(name, each.said, each.seconds))
                self.kit.count(name, each.said.partition(";")[0])
        return tuple(states)

    @cached_property
    def vary(self) -> frozenset[str]:
        """The keyed request fields of the parts, before their upstreams' `Vary`."""
        keying = self.route.keying
        credentials = {"authorization": keying.authorization == "key", "cookie": bool(keying.cookies)}
        return frozenset((*(keying.vary or ()), *(name for name, counts in credentials.items() if counts)))

    def _joined(self, run: Run, exchange: RequestContext) -> bytes:
        alone = run.results.get(self.sole) if self.sole is not None else None
        if alone is not None:
            return alone.text or b"null"
        pieces = self._pieces(run)
        if self.config.errors or self.config.envelope:
            pieces += self._more(run, exchange)
        return joined(pieces, self.config.merge)

    @cached_property
    def sole(self) -> str | None:
        """The part that is the complete response, if it is the only one and there are no additional keys."""
        return None if self.config.envelope or self.config.errors else sole_part(self.config.parts)

    def _pieces(self, run: Run) -> list[MergePiece]:
        pieces = []
        for name in run.shown:
            part, each = self.kit.plan.parts[name], run.results[name]
            if each.text is None or (run.complete and part.is_for_incomplete):
                continue
            if part.group is not None or isinstance(each.shown, dict):
                pieces.append(MergePiece(part.group, each.text, each.shown))
        return pieces

    def _more(self, run: Run, exchange: RequestContext) -> Iterator[MergePiece]:
        """The report about the parts in the body, if enabled."""
        if self.config.errors:
            errors = {
                each.name: problem_document(each.failure.status, f"The part {each.name}: {each.failure.detail}.", "")
                for each in run.results.values()
                if each.failure is not None
            }
            if errors:
                yield MergePiece("_errors", orjson.dumps(errors))
        if self.config.envelope:
            parts = {each.name: _as_members(each.text) for each in exchange.parts}
            yield MergePiece("_meta", orjson.dumps({"complete": run.complete, "parts": parts}))


def _check_failures(run: Run, exchange: RequestContext) -> None:
    """Raises PartFailed, RequestRefused, as `Aggregate.whole`."""
    exchange.failure = next((why for each in run.failures if (why := each.why)), exchange.failure)
    _check_refusal(run)
    failed = run.failed_requirement
    if failed is not None and failed.failure is not None:
        reason = f"{failed.failure.kind}: {failed.failure.detail}"
        error = PartFailed(failed.name, reason, failed.failure.status)
        error.cause, error.text = failed.why or error.why
        raise error


def _check_refusal(run: Run) -> None:
    """Raises RequestRefused if a required part can't be requested with the client's values."""
    failed = run.failed_requirement
    if failed is not None and failed.failure is not None and failed.failure.status == 400:
        raise RequestRefused(f"The part {failed.name}: {failed.failure.detail}")


def _states(parts: tuple[PartState, ...]) -> str:
    return ", ".join([f"{each.name}={each.text}" for each in parts])


_ANSWERED = frozenset(("hit", "list", "miss", "stale", "revalidated"))


def _settled(parts: tuple[PartState, ...]) -> str:
    """The states of the parts of a stored aggregate: all are hits."""
    return ", ".join(
        [f"{each.name}={'hit' if each.text.partition(';')[0] in _ANSWERED else each.text}" for each in parts]
    )


def _as_members(text: str) -> dict[str, str | int | bool]:
    """`stale;age=31` as an object for the envelope; a flag, such as `default`, is true."""
    status, *parameters = text.split(";")
    members: dict[str, str | int | bool] = {"status": status}
    for parameter in parameters:
        name, equals, value = parameter.partition("=")
        members[name] = (int(value) if value.isdigit() else value.strip('"')) if equals else True
    return members


def _told(answer: Answer, exchange: RequestContext) -> Answer:
    """The response with the states of the parts for this request, and its body as bytes."""
    if exchange.parts:
        text = _states(exchange.parts).encode("ascii")
        for index, (name, _) in enumerate(answer.headers):
            if name == b"gateway-parts":
                answer.headers[index] = (name, text)
                break
    return answer


class _JoinOrigin:
    """The origin of an aggregate's responses: its parts, for one request."""

    def __init__(
        self,
        aggregate: Aggregate,
        exchange: RequestContext,
        facts: RequestDirectives,
        values: Values,
        shown: tuple[str, ...],
        block: BlockCache | None,
    ) -> None:
        self._block = block
        self._aggregate = aggregate
        self._exchange = exchange
        self._facts = facts
        self._values = values
        self._shown = shown
        self._begun: Run | None = None

    @property
    def name(self) -> str:
        return self._aggregate.name

    @property
    def deadline(self) -> float:
        return self._aggregate.deadline + SLACK

    def begin(self) -> Run:
        """A run of the parts, which the next fetch continues: parts found in memory are not looked up twice."""
        until = asyncio.get_running_loop().time() + self._aggregate.deadline
        admission = self._aggregate.admission
        claims = () if admission is None else admission.per
        wanting = Wanting.of(self._exchange, self._facts, self._values, until, claims, self._block)
        self._begun = Run(self._aggregate.kit, wanting, self._shown)
        return self._begun

    def refusal(self) -> None:
        """None: its parts are requested."""

    async def fetch(self, method: str, headers: Headers) -> Fetched:
        run = self._begun or self.begin()
        self._begun = None
        await run.all()
        return self._aggregate.whole(run, self._exchange)[0]

    async def past(self) -> Fetched:
        fetched = await self.fetch("GET", ())
        if not_modified(self._exchange.headers, fetched.headers, self._aggregate.engine.clock.now()):
            return Fetched(304, fields_of_304(fetched.headers), WholeBody(b""))
        return fetched
