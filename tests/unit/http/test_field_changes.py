"""field_changes: what is taken out of a message's fields, and what is put in."""

from __future__ import annotations

from gateway.http.field_changes import NO_CHANGES, FieldChanges

FIELDS = [(b"a", b"1"), (b"b", b"2"), (b"a", b"3")]


def changes(**given: object) -> FieldChanges:
    told = {"put": {}, "added": {}, "removed": [], **given}
    return FieldChanges.of(**told)  # type: ignore[arg-type]


def test_what_is_set_replaces_what_is_added_stands_beside_and_what_is_removed_goes() -> None:
    assert changes(put={"a": "x"}).applied(FIELDS) == [(b"b", b"2"), (b"a", b"x")]
    assert changes(added={"a": ["x", "y"]}).applied(FIELDS) == [*FIELDS, (b"a", b"x"), (b"a", b"y")]
    assert changes(removed=["a"]).applied(FIELDS) == [(b"b", b"2")]
    assert NO_CHANGES.applied(FIELDS) == FIELDS
    assert not NO_CHANGES


def test_later_changes_come_after_earlier_ones() -> None:
    both = changes(put={"a": "x"}, added={"c": ["y"]}).then(changes(removed=["c", "b"], added={"a": ["z"]}))
    assert both.applied(FIELDS) == [(b"a", b"x"), (b"a", b"z")]


def test_their_text_tells_changes_apart() -> None:
    texts = [
        changes(put={"a": "x"}).text,
        changes(added={"a": ["x"]}).text,
        changes(removed=["a"]).text,
        changes(put={"a": "x,b"}).text,
        changes(put={"a": "x", "b": ""}).text,
    ]
    assert len({*texts}) == len(texts)


def test_nothing_before_or_after_leaves_the_very_changes() -> None:
    some = changes(put={"a": "x"})
    assert NO_CHANGES.then(some) is some
    assert some.then(NO_CHANGES) is some
    assert NO_CHANGES.then(NO_CHANGES) is NO_CHANGES


def test_changes_of_nothing_are_the_one_that_changes_nothing() -> None:
    assert changes() is NO_CHANGES
    assert bool(changes(removed=["a"])) is bool(changes(added={"a": ["x"]})) is True


def test_the_names_are_of_all_fields_that_change() -> None:
    assert changes(put={"a": "x"}, added={"b": ["y"]}, removed=["c"]).names == {b"a", b"b", b"c"}
    assert NO_CHANGES.names == frozenset()


def test_changes_of_one_field_can_be_left_out() -> None:
    both = changes(put={"a": "x"}, added={"b": ["y", "z"]}, removed=["c"])
    assert both.without(b"a").applied(FIELDS) == [*FIELDS, (b"b", b"y"), (b"b", b"z")]
    assert both.without(b"b") == changes(put={"a": "x"}, removed=["c"])
    assert both.without(b"c").removed == {b"a"}
    assert changes(put={"a": "x"}).without(b"a") is NO_CHANGES
