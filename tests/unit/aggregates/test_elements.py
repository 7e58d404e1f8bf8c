"""`for_each` keeps the places of its list: what can't be asked for is null there, and all the others are asked."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.testing import TurnedClock, running
from tests.support.shop import Shop, home, part, said


class Echo(Shop):
    """Answers `/p/ID` with `ID` as text, and a batch of them in another order."""

    def __init__(self, found: Any) -> None:
        super().__init__()
        self.set("/all", found)
        self.answers = _Echoed(self.answers)


class _Echoed(dict[str, Any]):
    def get(self, path: str, default: Any = None) -> Any:
        if path.startswith("/p?ids="):
            return {item: f"{item}!" for item in reversed(unquote(path.removeprefix("/p?ids=")).split(","))}
        return f"{unquote(path.removeprefix('/p/'))}!" if path.startswith("/p/") else super().get(path, default)


def each(batch: bool = False, **more: Any) -> dict[str, Any]:
    return part("/p/{item}", **{"for_each": "all[*]", **({"batch": "/p?ids={ids}"} if batch else {}), **more})


async def places(found: Any, clock: TurnedClock, **more: Any) -> tuple[Any, str, str]:
    async with running(home(Echo(found), {"all": part("/all"), "p": each(**more)}, clock)) as client:
        response = await client.get("/home/1")
    return response.json()["p"], said(response)["p"], response.headers["gateway-complete"]


LISTS: list[tuple[Any, Any, str, str]] = [
    (["a", None, "", "d"], ["a!", None, None, "d!"], "list;miss=2;skipped=2", "?1"),
    ([None, None], [None, None], "list;skipped=2", "?1"),
    ([{"id": 1}, "b", {}], [None, "b!", None], "list;miss=1;skipped=2", "?1"),
    (["a", "..", "b"], ["a!", None, "b!"], "partial;miss=2;refused=1;failed=1", "?0"),
    (["a", "b/c", "x\\y", "\x00", "b"], ["a!", None, None, None, "b!"], "partial;miss=2;refused=3;failed=3", "?0"),
    (["a", "x" * 9000, "b"], ["a!", None, "b!"], "partial;miss=2;refused=1;failed=1", "?0"),
    (["a", ["b", None, ["c"]], [], "a"], ["a!", ["b!", None, ["c!"]], [], "a!"], "list;miss=3;skipped=1", "?1"),
    (
        ["a", "b", "c", "d", "e", "f", "a"],
        [*("a!", "b!", "c!", "d!", "e!", None, "a!")],
        "list;miss=5;left-out=1",
        "?1",
    ),
    ([True, False, 0], ["true!", "false!", "0!"], "list;miss=3", "?1"),
]


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize(("found", "expected", "text", "complete"), LISTS)
async def test_a_list_keeps_its_places(
    found: Any, expected: Any, text: str, complete: str, batch: bool, clock: TurnedClock
) -> None:
    assert await places(found, clock, batch=batch, limit=5) == (expected, text, complete)


async def test_a_surrogate_without_its_other_half_is_refused_in_its_place(clock: TurnedClock) -> None:
    found = await places(b'["a","\\ud800","b"]', clock)
    assert found == (["a!", None, "b!"], "partial;miss=2;refused=1;failed=1", "?0")


async def test_a_list_is_as_long_as_what_its_projection_goes_through(clock: TurnedClock) -> None:
    found = [{"id": 1}, {}, {"id": None}, {"id": 4}]
    assert (await places(found, clock, for_each="all[*].id"))[0] == ["1!", None, None, "4!"]
    assert (await places(found, clock, for_each="all[?id].id"))[0] == ["1!", "4!"]
    orders = [{"items": [{"id": 1}, {}]}, {}, {"items": []}]
    assert (await places(orders, clock, for_each="all[*].items[*].id"))[0] == [["1!", None], None, []]
    assert (await places(orders, clock, for_each="all[].items[].id"))[0] == ["1!", None, None]


async def test_lists_deeper_than_16_are_null(clock: TurnedClock) -> None:
    deep: Any = ["a"]
    for _ in range(16):
        deep = [deep]
    assert await places([deep[0], deep], clock) == (json.loads(json.dumps([deep[0], deep]).replace("[", "[").replace(
        '"a"', '"a!"', 1).replace('["a"]', "null", 1)), "list;miss=1;skipped=1", "?1")  # fmt: skip


async def test_where_each_element_is_required_one_that_is_refused_fails_the_part_and_null_does_not(
    clock: TurnedClock,
) -> None:
    assert (await places(["a", None], clock, elements="required"))[1:] == ("list;miss=1;skipped=1", "?1")
    found = await places(["a", ".."], clock, elements="required", default=[])
    assert found == ([], "failed;miss=1;refused=1;default", "?0")


async def test_other_parts_take_the_elements_of_a_list_by_their_places(clock: TurnedClock) -> None:
    shop = Echo([None, "b"])
    parts = {"all": part("/all"), "p": each(), "one": part("/p/{p[1]}"), "none": part("/p/{p[0]}")}
    async with running(home(shop, parts, clock)) as client:
        response = await client.get("/home/1")
    assert (response.json()["one"], response.json()["none"]) == ("b!!", None)


async def test_elements_that_have_no_room_in_one_target_are_fetched_in_several(clock: TurnedClock) -> None:
    found = [f"{number}-{'x' * 100}" for number in range(100)]
    shop = Echo(found)
    async with running(home(shop, {"all": part("/all"), "p": each(batch=True, limit=100)}, clock)) as client:
        response = await client.get("/home/1")
    assert response.json()["p"] == [f"{item}!" for item in found]
    batches = [path for path in shop.asked if path.startswith("/p?")]
    assert len(shop.asked) == 1 + len(batches) == 4
    assert max(map(len, batches)) <= 4200


scalars = st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["", "a", "b", "..", ".", "a/b", "ü", "a,b"])
lists = st.lists(
    st.recursive(scalars | st.just({"id": 1}), lambda inner: st.lists(inner, max_size=3), max_leaves=6), max_size=6
)
ASKED = {item: f"{item}!" for item in ("a", "b", "ü", "a,b")}


def _expected(found: Any) -> Any:
    if isinstance(found, list):
        return [_expected(item) for item in found]
    if isinstance(found, bool | int):
        return f"{json.dumps(found)}!"
    return ASKED.get(found) if isinstance(found, str) else None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lists, st.booleans())
async def test_each_answer_stands_where_its_element_stands(found: list[Any], batch: bool) -> None:
    clock = TurnedClock()
    answer, text, _ = await places(found, clock, batch=batch, limit=1000, default="failed")
    assert answer == (_expected(found) if not text.startswith("failed") else "failed")
