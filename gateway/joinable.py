"""Which wholes the edge may join by itself, and of what: those whose parts each stand for themselves."""

from __future__ import annotations

from collections.abc import Iterator

from .aggregate import Aggregate
from .errors import RequestRefused
from .exchange import Exchange
from .joints import Ingredient, Joinable
from .part_plan import Missing, PlannedPart, Values
from .part_source import NOT_FOR_PARTS, Wanting
from .policy import PLAIN

_UNSEEN = frozenset(name.decode("ascii") for name in NOT_FOR_PARTS)


def joinable(aggregate: Aggregate, exchange: Exchange, values: Values, shown: tuple[str, ...]) -> Joinable | None:
    """How the whole of the parts `shown` is joined of what lies in memory, for a plain request; None where it takes
    more than their bytes in a row."""
    plan = aggregate.kit.plan
    parts = [plan.parts[name] for name in plan.sequence(shown)]
    if aggregate.config.envelope or not all(_stands_alone(part) for part in parts) or plan.reads:
        return None
    said = tuple(part.name for part in parts if not part.config.is_static)
    wanting = Wanting.of(exchange, PLAIN, values, 0.0)
    try:
        ingredients = tuple(_ingredients(aggregate, wanting, shown))
    except (_NotPlain, Missing, RequestRefused):
        return None
    asked = tuple(name for name in shown if name in said)
    return Joinable(ingredients, asked, said, aggregate.vary, aggregate.kit.workshop) if said else None


class _NotPlain(Exception):
    """A part does not go by the cache alone."""


def _stands_alone(part: PlannedPart) -> bool:
    config = part.config
    return (
        not (part.needs or config.shadow or config.at_root)
        and part.each is None
        and part.when is None
        and config.method == "GET"
    )


def _ingredients(aggregate: Aggregate, wanting: Wanting, shown: tuple[str, ...]) -> Iterator[Ingredient]:
    """Raises _NotPlain, Missing, RequestRefused."""
    kit = aggregate.kit
    for name in shown:
        config = kit.plan.parts[name].config
        group = config.group_of(name) or ""
        if config.is_static:
            if config.static_if == "always":
                yield Ingredient(group, kit.statics[name])
            continue
        source = kit.sources[name]
        ask = source.ask(wanting, *source.target(wanting.values))
        if ask.plan.bypass is not None or ask.facts is not PLAIN:
            raise _NotPlain
        yield Ingredient(
            group,
            recipe=source.recipe,
            rules=ask.route.rules,
            primary=ask.plan.primary,
            base=ask.plan.base,
            route=ask.route.name,
            names=ask.wanted.names,
            # With headers of its own it may see another value than the client's.
            unseen=None if config.headers else _UNSEEN,
        )
