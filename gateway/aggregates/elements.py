"""The elements of a list for each of which a part is requested, and their places in its response. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from pydantic import JsonValue

from gateway.aggregates.merge import list_of
from gateway.aggregates.part_result import Resolved
from gateway.config.part_values import as_text

NESTED = 16
"""Maximum depth of lists in the list of `for_each`; deeper ones are null."""
NULL = b"null"


@dataclass(frozen=True, slots=True)
class Elements:
    """A list's elements: `places` is the list, `asked` are the distinct texts of its elements to request; `left_out`
    counts those beyond the limit, `skipped` the places without a text: null, empty, an object."""

    places: list[JsonValue]
    asked: list[str]
    left_out: int
    skipped: int

    @classmethod
    def of(cls, places: list[JsonValue], limit: int) -> Elements:
        """At most `limit` of them are requested."""
        texts = list(_texts(places, NESTED))
        distinct = list(dict.fromkeys(text for text in texts if text is not None))
        asked = distinct[:limit]
        return cls(places, asked, len(distinct) - len(asked), texts.count(None))

    def placed(self, made: Mapping[str, Resolved]) -> tuple[bytes, list[JsonValue]]:
        """The list of the answers, which `made` has by the texts of the elements, as JSON text, and of their values for
        other parts."""
        return _placed(self.places, made, NESTED)


def list_text(counts: Mapping[str, int], failed: int, left_out: int, *, lost: bool, default: bool) -> str:
    """For a list: the number of its elements by state. `failed` is how many failed; `lost` is whether the list has
    failed with them, `default` whether a default replaces it."""
    state = ["failed" if lost else "partial" if failed else "list"]
    state += [f"{word}={count}" for word, count in counts.items()]
    if failed and not lost:
        state.append(f"failed={failed}")
    if left_out:
        state.append(f"left-out={left_out}")
    return ";".join([*state, "default"] if lost and default else state)


def _texts(found: Iterable[JsonValue], levels: int) -> Iterator[str | None]:
    """The text of each place of a list, and of nested lists; None if there is nothing to request."""
    for each in found:
        if isinstance(each, list) and levels:
            yield from _texts(each, levels - 1)
        else:
            yield as_text(each)


def _placed(found: Iterable[JsonValue], made: Mapping[str, Resolved], levels: int) -> tuple[bytes, list[JsonValue]]:
    texts: list[bytes] = []
    values: list[JsonValue] = []
    for each in found:
        text: bytes = NULL
        value: JsonValue = None
        if isinstance(each, list) and levels:
            text, value = _placed(each, made, levels - 1)
        elif (resolved := made.get(as_text(each) or "")) is not None:
            text, value = resolved.text or NULL, resolved.value
        texts.append(text)
        values.append(value)
    return list_of(texts), values


def groups(items: Iterable[str], longest: int) -> Iterator[list[str]]:
    """Items in groups of at most `longest` bytes in a target."""
    group: list[str] = []
    size = 0
    for item in items:
        own = len(quote(item, safe="~")) + len("%2C")
        if group and size + own > longest:
            yield group
            group, size = [], 0
        group.append(item)
        size += own
    if group:
        yield group
