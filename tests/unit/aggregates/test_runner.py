"""What an aggregate's runs have in common."""

from __future__ import annotations

from gateway.testing import TurnedClock
from tests.support.shop import Shop, home, part


def test_no_more_than_a_thousand_selections_are_remembered(clock: TurnedClock) -> None:
    names = [f"p{number}" for number in range(11)]
    kit = home(Shop(), {name: part(f"/{name}") for name in names}, clock).aggregates[0].kit
    for number in range(1, 1 << len(names)):
        shown = tuple(name for place, name in enumerate(names) if number >> place & 1)
        asked = kit.sequence(shown)
        assert asked == shown
        assert kit.sequence(shown) is asked
        assert len(kit.sequences) <= 1001
