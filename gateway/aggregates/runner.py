"""Runs one aggregate's parts: their order, which of them are awaited, and what replaces a failed one.

Independent parts start at once, each as soon as the values it uses are available.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import msgspec
from msgspec import structs
from pydantic import JsonValue

from gateway.aggregates.elements import NULL, Elements, groups, list_text
from gateway.aggregates.fetching import ElementOrigin
from gateway.aggregates.lifetime import together
from gateway.aggregates.merge import BodyCache, WrongType
from gateway.aggregates.part_result import Absent, Failure, Got, Resolved
from gateway.aggregates.part_source import LONGEST, PartSource, Wanting
from gateway.cache.request import CacheRequest
from gateway.config.part_graph import PartPlan, PlannedPart
from gateway.config.part_values import Missing, Values, condition_holds
from gateway.errors import RequestRefused, UpstreamError
from gateway.http.json_text import text_of


def missing_text(what: str) -> str:
    """For a part that lacks a value: a string of RFC 8941, which is ASCII, with quotes escaped."""
    text = what.encode("ascii", "replace").decode("ascii").replace("\\", "\\\\").replace('"', '\\"')
    return f'skipped;missing="{text}"'


class _Awaited(msgspec.Struct, frozen=True):
    """A part that is being fetched: until when it is waited for, on the event loop's clock, and when that `began`, on
    the performance counter."""

    part: PlannedPart
    until: float
    began: float


_Running = dict["asyncio.Task[Resolved]", _Awaited]


@dataclass(frozen=True)
class Kit:
    """The constant context of an aggregate's runs. `sources` has the parts with an upstream; `count` counts a part by
    its state."""

    plan: PartPlan
    sources: Mapping[str, PartSource]
    statics: Mapping[str, bytes]
    body_cache: BodyCache
    count: Callable[[str, str], None]
    shadows: set[asyncio.Task[None]] = field(default_factory=set)
    paces: dict[str, float] = field(default_factory=dict)
    """How long a part's fetch is expected to take, in seconds: a moving average."""
    sequences: dict[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)
    """The sequences of selections that were shown before."""

    def sequence(self, shown: tuple[str, ...]) -> tuple[str, ...]:
        """`PartPlan.sequence`, worked out once for a selection."""
        known = self.sequences.get(shown)
        if known is None:
            # Selections come from clients, but are names of parts in their order: at most 2^parts of them.
            if len(self.sequences) > 1000:
                self.sequences.clear()
            known = self.sequences[shown] = self.plan.sequence(shown)
        return known

    def took(self, name: str, seconds: float) -> None:
        """A fetch of a part took so long."""
        expected = self.paces.get(name, 0.0)
        self.paces[name] = expected + _LATEST * (seconds - expected)


_LATEST = 0.2
"""The weight of the last fetch in a part's expected duration."""


class Run:
    """The parts of one response, in progress. `shown` are those that the client requested."""

    def __init__(self, kit: Kit, wanting: Wanting, shown: tuple[str, ...]) -> None:
        self.kit = kit
        self.wanting = wanting
        self.shown = shown
        self.order = kit.sequence(shown)
        self.results: dict[str, Resolved] = {}
        self.values: dict[str, JsonValue] = {}
        self.complete = True
        """Whether no part has failed by now, and no element of one."""
        self.failures: list[Resolved] = []
        """The parts that have failed by now, or elements of which have, or whose upstreams have no such resource."""
        self._asks: dict[str, CacheRequest] = {}
        self._missing: list[PlannedPart] = []
        """Those that have to be fetched, and are not yet."""
        self._sought: set[str] = set()
        """Those that were not found: the missing ones, and those being fetched."""

    @property
    def failed_requirement(self) -> Resolved | None:
        """The first part that has failed by now and can't be done without."""
        for name in self.order:
            each = self.results.get(name)
            if each is None or each.failure is None or each.partial:
                continue
            if self.kit.plan.parts[name].is_required:
                return each
        return None

    # --- the order of things ---------------------------------------------------------------------------------

    def now(self) -> bool:
        """Resolve what can be without waiting; whether that was all."""
        parts, results = self.kit.plan.parts, self.results
        for name in self.order:
            if name in results or name in self._sought:
                continue
            part = parts[name]
            if any(needed not in results for needed in part.needs) if part.needs else False:
                continue
            resolved = self._at_hand(part)
            if resolved is None:
                self._sought.add(name)
                self._missing.append(part)
            else:
                self._take(resolved)
        return len(results) == len(self.order)

    async def all(self) -> None:
        """Resolve every part, each as soon as its dependencies are."""
        running: _Running = {}
        try:
            while self._missing or not self.now():
                self._start(running)
                first = min([awaited.until for awaited in running.values()])
                left = None if first == math.inf else first - asyncio.get_running_loop().time()
                done, _ = await asyncio.wait(running, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    del running[task]
                    resolved = task.result()
                    self._take(resolved)
                    if resolved.failure is None:
                        self.kit.took(resolved.name, resolved.seconds)
                if not done:
                    self._give_up(running, first)
        finally:
            for task, awaited in running.items():
                self._leave(task, awaited.part)

    def _start(self, running: _Running) -> None:
        # Requests go out one after another, some 0.2 ms apart: the one that takes longest goes first.
        if len(self._missing) > 1:
            self._missing.sort(key=lambda part: self.kit.paces.get(part.name, 0.0), reverse=True)
        loop = asyncio.get_running_loop()
        for part in self._missing:
            until = self._until(self.kit.sources[part.name]) if part.name in self._asks else math.inf
            running[loop.create_task(self._timed(part))] = _Awaited(part, until, time.perf_counter())
        self._missing.clear()

    def _until(self, source: PartSource) -> float:
        """Until when an answer is waited for that is requested now."""
        return min(self.wanting.until, asyncio.get_running_loop().time() + source.timeout)

    def _give_up(self, running: _Running, until: float) -> None:
        """Resolve the parts without which nothing more can be waited for until this instant."""
        for task, awaited in [*running.items()]:
            if awaited.until <= until:
                del running[task]
                self._leave(task, awaited.part)
                self._take(self._late(awaited.part, awaited.began))

    def _leave(self, task: asyncio.Task[Resolved], part: PlannedPart) -> None:
        """Wait no longer for a part; a fetch that others may wait for goes on."""
        request = self._asks.get(part.name)
        if request is None or not request.exchange.leading:
            task.cancel()
        self.kit.sources[part.name].engine.background.spawn(task)

    def _take(self, resolved: Resolved) -> None:
        self.results[resolved.name] = resolved
        if resolved.name in self.kit.plan.needed:
            self.values[resolved.name] = resolved.value
        if resolved.failure is not None:
            self.failures.append(resolved)
            self.complete = self.complete and not resolved.incomplete

    # --- one part ----------------------------------------------------------------------------------------------

    def _at_hand(self, part: PlannedPart) -> Resolved | None:
        """The state of a part, if it is known without waiting. Its dependencies are resolved."""
        began = time.perf_counter()
        skipped = None if part.is_certain else self._skipped(part)
        if skipped is not None:
            return skipped
        source = self.kit.sources[part.name]
        if part.config.method == "POST":
            return None
        try:
            if part.config.shadow:
                return self._shadowed(part, source)
            if part.each is not None:
                return self._elements_at_hand(part, source)
            wanting = self._wanting()
            request = self._asks[part.name] = source.ask(wanting, *source.target(wanting.values), stays=True)
            got = source.at_hand(request)
            return None if got is None else self._prepared(part, source, got, time.perf_counter() - began)
        except Missing as missing:
            return self._without(part, missing_text(missing.what))
        except (Failure, RequestRefused, WrongType) as error:
            return self._failed(part, self._failure(source, error), time.perf_counter() - began)

    def _skipped(self, part: PlannedPart) -> Resolved | None:
        if part.is_static:
            static = part.config.static
            return Resolved(part.name, "static", self.kit.statics[part.name], static, static)
        for needed in part.needs:
            if self.results[needed].failed:
                return self._without(part, missing_text(needed))
        if part.when is not None and not condition_holds(part.when, self._values(), self.values):
            return Resolved(part.name, "skipped", None)
        return None

    def _wanting(self, item: str | None = None) -> Wanting:
        if not self.values and item is None:
            return self.wanting
        return structs.replace(self.wanting, values=self._values(item))

    def _values(self, item: str | None = None) -> Values:
        values = self.wanting.values
        return structs.replace(values, parts=self.values, item=item) if self.values or item is not None else values

    async def _timed(self, part: PlannedPart) -> Resolved:
        began = time.perf_counter()
        source = self.kit.sources[part.name]
        try:
            if part.each is not None:
                resolved = await self._elements(part, source)
                return structs.replace(resolved, seconds=time.perf_counter() - began)
            if part.config.method == "POST":
                got = await source.post(self._wanting(), source.target(self._values())[0])
            else:
                got = await source.fetched(self._asks[part.name])
            return self._prepared(part, source, got, time.perf_counter() - began)
        except Missing as missing:
            return structs.replace(self._without(part, missing_text(missing.what)), seconds=time.perf_counter() - began)
        except TimeoutError:
            return self._late(part, began)
        except (Failure, RequestRefused, WrongType) as error:
            return self._failed(part, self._failure(source, error), time.perf_counter() - began)

    def _late(self, part: PlannedPart, began: float) -> Resolved:
        """The state of a part whose answer does not come in time."""
        source, seconds = self.kit.sources[part.name], time.perf_counter() - began
        try:
            return self._prepared(part, source, source.late(self._asks[part.name]), seconds)
        except (Failure, WrongType) as error:
            return self._failed(part, self._failure(source, error), seconds)

    def _prepared(self, part: PlannedPart, source: PartSource, got: Got, seconds: float = 0.0) -> Resolved:
        prepared = self.kit.body_cache.prepared(source.transform, got.key, got.headers, got.body)
        return Resolved(part.name, got.said, prepared.text, prepared.value, prepared.shown, got.life, None, seconds)

    def _without(self, part: PlannedPart, said: str) -> Resolved:
        """The part is not requested: its default, or null, replaces it."""
        return Resolved(part.name, said, self._default(part), shown=part.config.default)

    def _failed(self, part: PlannedPart, failure: Failure, seconds: float = 0.0) -> Resolved:
        failure.__traceback__ = failure.__context__ = None  # their frames hold this run, which holds the failure
        said = failure.kind + (";default" if part.config.has_default else "")
        life = failure.life if isinstance(failure, Absent) else None
        text, shown = self._default(part), part.config.default
        return Resolved(part.name, said, text, None, shown, life, failure, seconds)

    def _failure(self, source: PartSource, error: Failure | RequestRefused | WrongType) -> Failure:
        if isinstance(error, Failure):
            return error
        if isinstance(error, WrongType):
            return Failure("wrong-type", str(error))
        return Failure("refused", str(error), 400 if source.refuses(self.wanting.values) else 502)

    def _default(self, part: PlannedPart) -> bytes:
        return text_of(part.config.default) if part.config.has_default else NULL

    # --- a part for each element of a list -----------------------------------------------------------------------

    def _elements_of(self, part: PlannedPart) -> Elements:
        """The list's elements. Raises Missing if there is no list."""
        assert part.each is not None
        name, expression = part.each
        try:
            found = expression.places({name: self.values.get(name)})
        except ValueError:
            found = None
        if not isinstance(found, list):
            raise Missing(str(part.config.for_each))
        return Elements.of(found, part.config.limit)

    def _asks_of(self, source: PartSource, items: Iterable[str]) -> dict[str, CacheRequest | Failure]:
        """The request for each element, or why there is none; the others are unaffected. Raises Missing."""
        asks: dict[str, CacheRequest | Failure] = {}
        for item in items:
            wanting = self._wanting(item)
            try:
                asks[item] = source.ask(wanting, *source.target(wanting.values))
            except RequestRefused as error:
                asks[item] = self._failure(source, error)
        return asks

    def _elements_at_hand(self, part: PlannedPart, source: PartSource) -> Resolved | None:
        elements = self._elements_of(part)
        got: dict[str, Got | Failure] = {}
        for item, request in self._asks_of(source, elements.asked).items():
            found = _or_failure(source, request)
            if found is None:
                return None
            got[item] = found
        return self._listed(part, source, elements, got)

    async def _elements(self, part: PlannedPart, source: PartSource) -> Resolved:
        elements = self._elements_of(part)
        asks = self._asks_of(source, elements.asked)
        if part.batch is not None:
            asks = self._batched(source, asks)
        results = await asyncio.gather(*(self._element(source, request) for request in asks.values()))
        return self._listed(part, source, elements, dict(zip(asks, results, strict=True)))

    async def _element(self, source: PartSource, request: CacheRequest | Failure) -> Got | Failure:
        if isinstance(request, Failure):
            return request
        try:
            return source.at_hand(request) or await source.get(request, self._until(source))
        except Failure as failure:
            return failure

    def _batched(
        self, source: PartSource, asks: dict[str, CacheRequest | Failure]
    ) -> dict[str, CacheRequest | Failure]:
        """The same, with the elements to fetch batched, as many as fit into a target. An ID with a comma is requested
        alone."""
        together = dict(asks)
        missing = (item for item, request in asks.items() if "," not in item and _or_failure(source, request) is None)
        for items in groups(missing, LONGEST // 2):
            batch = source.batch(self._wanting(), len(items)) if len(items) > 1 else None
            for item in items:
                request = asks[item]
                if batch is not None and not isinstance(request, Failure):
                    origin = ElementOrigin(batch, item, source.upstream.name, source.timeout)
                    together[item] = structs.replace(request, origin=origin)
        return together

    def _listed(
        self, part: PlannedPart, source: PartSource, elements: Elements, got: Mapping[str, Got | Failure]
    ) -> Resolved:
        """The list of the elements' responses, each in its place, null for one that failed or was not requested. If all
        of them failed, or if each is required, the part has failed."""
        made = {item: self._element_made(part, source, found) for item, found in got.items()}
        failures = [each.failure for each in made.values() if each.failed and each.failure is not None]
        lost = bool(failures) and (len(failures) == len(made) or part.config.elements == "required")
        counts = Counter(each.said.partition(";")[0] for each in made.values())
        counts += Counter(skipped=elements.skipped)
        state = list_text(counts, len(failures), elements.left_out, lost=lost, default=part.config.has_default)
        if lost:
            return structs.replace(self._failed(part, failures[0]), said=state)
        text, value = elements.placed(made)
        return Resolved(
            part.name,
            state,
            text,
            value,
            life=together([each.life for each in made.values() if each.life is not None]),
            failure=failures[0].of_elements(len(failures), len(made)) if failures else None,
            partial=bool(failures),
        )

    def _element_made(self, part: PlannedPart, source: PartSource, found: Got | Failure) -> Resolved:
        try:
            if isinstance(found, Got):
                return self._prepared(part, source, found)
            failure = found
        except WrongType as error:
            failure = self._failure(source, error)
        life = failure.life if isinstance(failure, Absent) else None
        return Resolved(part.name, failure.kind, None, life=life, failure=failure)

    # --- shadows -------------------------------------------------------------------------------------------------

    def _shadowed(self, part: PlannedPart, source: PartSource) -> Resolved:
        kit = self.kit
        if len(kit.shadows) < MAX_SHADOWS:
            request = source.ask(self._wanting(), *source.target(self._values()))
            task = asyncio.ensure_future(_ask_and_ignore(request, source.timeout, kit.count, part.name))
            kit.shadows.add(task)
            task.add_done_callback(kit.shadows.discard)
        return Resolved(part.name, "shadow", None)


MAX_SHADOWS = 100


async def _ask_and_ignore(request: CacheRequest, timeout: float, count: Callable[[str, str], None], name: str) -> None:
    """Fetch without the cache, read the complete response, and count its state."""
    said = "timeout"
    try:
        async with asyncio.timeout(timeout):
            fetched = await request.past()
            async for _ in fetched.body.chunks():
                pass
            said = "miss" if fetched.status < 400 else "failed"
    except (TimeoutError, UpstreamError):
        said = said if said == "timeout" else "failed"
    finally:
        count(name, f"shadow-{said}")


def _or_failure(source: PartSource, request: CacheRequest | Failure) -> Got | Failure | None:
    if isinstance(request, Failure):
        return request
    try:
        return source.at_hand(request)
    except Failure as failure:
        return failure
