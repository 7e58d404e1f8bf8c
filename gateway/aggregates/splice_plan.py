"""Which aggregates the edge may join itself, and from what: those whose parts are independent of each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gateway.aggregates.aggregate import Aggregate
from gateway.aggregates.merge import BodyCache, BodyTransform, key_text
from gateway.aggregates.part_source import NOT_FOR_PARTS, Wanting
from gateway.config.part_graph import PlannedPart
from gateway.config.part_values import Missing, Values
from gateway.context import RequestContext
from gateway.errors import RequestRefused
from gateway.policy.rules import PLAIN, CachePolicy

_ANY = CachePolicy()


@dataclass(frozen=True, slots=True)
class SplicePart:
    """A part of an aggregate: its constant text; or its stored response's key, rules and purge names. `unseen` are the
    request fields that it does not see unchanged: if its response varies on one of them, the app joins; None if it does
    not see them at all."""

    group: str
    constant: bytes = b""
    transform: BodyTransform | None = None
    rules: CachePolicy = _ANY
    primary: str = ""
    base: str = ""
    route: str = ""
    names: tuple[str, ...] = ()
    unseen: frozenset[str] | None = frozenset()


@dataclass(frozen=True, slots=True)
class SplicePlan:
    """How an aggregate is joined from parts in memory. `asked` are the parts with an upstream, in the order of their
    ingredients, `said` in the order of the report; `vary` the request fields on which all responses of the route
    depend."""

    splice_parts: Sequence[SplicePart]
    asked: tuple[str, ...]
    said: tuple[str, ...]
    vary: frozenset[str]
    body_cache: BodyCache


def frame_of(splice_parts: Sequence[SplicePart]) -> tuple[list[bytes], list[int]]:
    """The body's pieces, and the indices of the parts with an upstream, as in `merge.joined`."""
    pieces: list[bytes] = [b"{"]
    places = []
    for number, each in enumerate(splice_parts):
        pieces[-1] += (b"," if number else b"") + key_text(each.group)
        if each.transform is None:
            pieces[-1] += each.constant
        else:
            places.append(len(pieces))
            pieces += [b"", b""]
    pieces[-1] += b"}"
    return pieces, places


_UNSEEN = frozenset(name.decode("ascii") for name in NOT_FOR_PARTS)


def joinable(
    aggregate: Aggregate, exchange: RequestContext, values: Values, shown: tuple[str, ...]
) -> SplicePlan | None:
    """How the parts `shown` are joined from memory, for a plain request; None if that takes more than concatenating
    bytes."""
    plan = aggregate.kit.plan
    parts = [plan.parts[name] for name in aggregate.kit.sequence(shown)]
    if aggregate.config.envelope or not all(_stands_alone(part) for part in parts) or plan.reads:
        return None
    said = tuple(part.name for part in parts if not part.config.is_static)
    wanting = Wanting.of(exchange, PLAIN, values, 0.0)
    try:
        splice_parts = tuple(_ingredients(aggregate, wanting, shown))
    except (_NotPlain, Missing, RequestRefused):
        return None
    asked = tuple(name for name in shown if name in said)
    return SplicePlan(splice_parts, asked, said, aggregate.vary, aggregate.kit.body_cache) if said else None


class _NotPlain(Exception):
    """A part bypasses the cache."""


def _stands_alone(part: PlannedPart) -> bool:
    config = part.config
    return (
        not (part.needs or config.shadow or config.at_root)
        and part.each is None
        and part.when is None
        and config.method == "GET"
    )


def _ingredients(aggregate: Aggregate, wanting: Wanting, shown: tuple[str, ...]) -> Iterator[SplicePart]:
    """Raises _NotPlain, Missing, RequestRefused."""
    kit = aggregate.kit
    for name in shown:
        config = kit.plan.parts[name].config
        group = config.group_of(name) or ""
        if config.is_static:
            if config.static_if == "always":
                yield SplicePart(group, kit.statics[name])
            continue
        source = kit.sources[name]
        request = source.ask(wanting, *source.target(wanting.values))
        if request.plan.bypass is not None or request.facts is not PLAIN:
            raise _NotPlain
        yield SplicePart(
            group,
            transform=source.transform,
            rules=request.route.rules,
            primary=request.plan.primary,
            base=request.plan.base,
            route=request.route.name,
            names=request.wanted.names,
            # With headers of its own its value may differ from the client's.
            unseen=None if config.headers else _UNSEEN,
        )
