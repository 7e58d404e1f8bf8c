"""Live overrides: what they make of a configuration, and how every worker comes to know them."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest

from gateway.config.environment import SettingSource
from gateway.config.loader import Loaded
from gateway.config.models import Config
from gateway.config.overrides import Override, applied, in_force, overridden
from gateway.errors import ConfigError
from gateway.policy import freshness, storability
from gateway.policy.entry import Entry
from gateway.policy.freshness import Hit, Revalidate
from gateway.policy.rules import PLAIN, CachePolicy
from gateway.policy.storability import Admit, ReceivedResponse
from gateway.testing import TurnedClock
from tests.support.overrides import override

SOURCE = SettingSource("file", "config/gateway.yaml line 7", "30s")
LOADED = Loaded(
    Config.model_validate(
        {
            "upstreams": {"api": {"url": "http://api.test"}},
            "routes": {
                "item": {"path": "/items/{id}", "upstream": "api", "ttl": "30s", "tags": ["item:{id}"]},
                "varied": {"path": "/varied", "upstream": "api", "ttl": "30s", "vary": ["accept"]},
            },
        }
    ),
    {("routes", "item", "ttl"): (SOURCE,)},
    (),
)


def test_an_override_stands_over_all_other_sources_and_says_who_set_it() -> None:
    changed = overridden(LOADED, override())
    assert changed.config.routes["item"].ttl == timedelta(seconds=10)
    assert changed.config.routes["item"].tags == LOADED.config.routes["item"].tags
    winner, before = changed.sources["routes", "item", "ttl"]
    assert (winner.place, winner.value) == ("live override by ops until 1970-01-01 00:01:40Z", "10s")
    assert before == SOURCE
    assert LOADED.config.routes["item"].ttl == timedelta(seconds=30)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (override(route="itme"), "no route 'itme'; did you mean item?"),
        (override(setting="path"), "can't be overridden live; these can: ttl"),
        (override("10x"), "'10x' is refused"),
        (override("-1s"), "refused"),
        (override("origin", route="varied"), "vary requires a duration as ttl"),
    ],
)
def test_what_a_file_could_not_hold_is_refused_with_a_reason(wrong: Override, why: str) -> None:
    with pytest.raises(ConfigError) as refused:
        overridden(LOADED, wrong)
    assert why in str(refused.value.problems[0])


WITH_PARTS = Loaded(
    Config.model_validate(
        {
            "upstreams": {"api": {"url": "http://api.test"}},
            "routes": {
                "home": {
                    "path": "/home/{user}",
                    "parts": {
                        "user": {"upstream": "api", "path": "/users/{user}", "ttl": "5m"},
                        "offers": {"upstream": "api", "path": "/offers", "optional": True, "default": []},
                    },
                }
            },
        }
    ),
    {("routes", "home", "parts", "user", "ttl"): (SOURCE,)},
    (),
)


def test_an_override_changes_one_setting_of_a_part_of_an_aggregate() -> None:
    changed = overridden(WITH_PARTS, override(route="home.user"))
    parts, before = changed.config.routes["home"].parts, WITH_PARTS.config.routes["home"].parts
    assert (parts["user"].ttl, parts["user"].path) == (timedelta(seconds=10), "/users/{user}")
    assert parts["offers"] == before["offers"]
    winner, file = changed.sources["routes", "home", "parts", "user", "ttl"]
    assert (winner.kind, winner.value, file) == ("live", "10s", SOURCE)
    for wrong, why in [
        (override(route="home.usr"), "no route 'home.usr'; did you mean home.user?"),
        (override("5s", route="home.user", setting="client_ttl"), "a part has no client_ttl"),
        (override("10x", route="home.user"), "'10x' is refused"),
    ]:
        with pytest.raises(ConfigError) as refused:
            overridden(WITH_PARTS, wrong)
        assert why in str(refused.value.problems[0])


CODED = {
    "shop.sums": CachePolicy(ttl=20.0, stale_if_error=60.0, max_life=90.0),
    "shop.news": CachePolicy(),
}


def test_an_override_changes_one_setting_of_a_handler_and_leaves_what_its_code_says_of_the_others() -> None:
    first = overridden(LOADED, override(route="shop.sums"), CODED)
    both = overridden(first, override("5m", route="shop.sums", setting="stale_if_error"), CODED)
    assert both.handlers == {"shop.sums": CachePolicy(ttl=10.0, stale_if_error=300.0, max_life=90.0)}
    assert both.sources["routes", "shop.sums", "ttl"][0].value == "10s"
    assert both.config == LOADED.config
    assert overridden(LOADED, override(route="shop.news"), CODED).handlers["shop.news"].ttl == 10.0


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (override(route="shop.sum"), "no route 'shop.sum'; did you mean shop.sums?"),
        (override("10x", route="shop.sums"), "'10x' is refused"),
        (override("origin", route="shop.sums"), "the handler has its own ttl"),
        (override("5s", route="shop.news", setting="client_ttl"), "client_ttl requires a duration as ttl"),
    ],
)
def test_what_a_handler_could_not_have_is_refused_with_a_reason(wrong: Override, why: str) -> None:
    with pytest.raises(ConfigError) as refused:
        overridden(LOADED, wrong, CODED)
    assert why in str(refused.value.problems[0])


def test_an_override_that_no_longer_fits_is_passed_over_and_the_others_hold() -> None:
    found = applied(
        LOADED, {"a": override(route="gone"), "b": override("5m", setting="stale_if_error"), "c": override()}
    )
    assert found.config.routes["item"].stale_if_error == timedelta(minutes=5)
    assert found.config.routes["item"].ttl == timedelta(seconds=10)


def test_an_override_ends_by_its_time() -> None:
    overrides = [override(until=10.0), override("1m", setting="stale_if_error", until=20.0)]
    assert set(in_force(overrides, 9.9)) == {"item.ttl", "item.stale_if_error"}
    assert set(in_force(overrides, 10.0)) == {"item.stale_if_error"}
    assert in_force(overrides, 20.0) == {}


@pytest.mark.parametrize(
    ("said", "revived"), [("max-age=5, must-revalidate", False), ("no-cache", False), ("max-age=5", True)]
)
async def test_a_longer_ttl_does_not_revive_what_clients_were_promised_would_be_validated(
    clock: TurnedClock, said: str, revived: bool
) -> None:
    received = ReceivedResponse(200, ((b"cache-control", said.encode()), (b"etag", b'"a"')), clock.at, clock.at)
    origin, own = CachePolicy(ttl=None), CachePolicy(ttl=3600.0, stale_while_revalidate=60.0)
    admitted = storability.admit(received, PLAIN, origin)
    assert isinstance(admitted, Admit)
    stored = Entry(
        key="k", primary="p", born=clock.at, started=clock.at, initial_age=0.0, status=200, headers=admitted.headers,
        body=b"", life=admitted.life,
    )  # fmt: skip
    decision = freshness.decide(stored, PLAIN, own, clock.at + 60)
    assert isinstance(decision, Hit if revived else Revalidate)
    later = storability.admit(received, PLAIN, own)
    assert isinstance(later, Admit)
    fresh = freshness.decide(msgspec.structs.replace(stored, life=later.life), PLAIN, own, clock.at + 60)
    assert isinstance(fresh, Hit)
