"""The templates of an aggregate's parts, filled in: references in braces, their values, and the resulting target.

Resolves each reference (path, query, header, item, or another part's body), encodes values in a target, and evaluates
`when`. It sends no request and does not order parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import quote, unquote, unquote_to_bytes

import msgspec
from pydantic import JsonValue

from gateway.config.expressions import Expression, truthy
from gateway.errors import RequestRefused
from gateway.http.json_text import Number, is_unicode
from gateway.http.path_template import TargetTemplate
from gateway.http.target import query_name

# Characters allowed in a segment: RFC 3986's pchar, except those with a special meaning in some servers.
_SAFE = "~!$&'()*,=:@"


class Missing(Exception):
    """A value that a template needs is not there; `what` names it. `unsent`: it is one that the client did not send."""

    def __init__(self, what: str, *, unsent: bool = False) -> None:
        self.what = what
        self.unsent = unsent
        super().__init__(what)


@dataclass(frozen=True)
class Reference:
    """A value in braces: `source` is path, query, header, item, or a part's name; `rest` the name in it."""

    text: str
    source: str
    rest: str = ""

    @cached_property
    def expression(self) -> Expression:
        return Expression(self.rest)


class Values(msgspec.Struct, frozen=True, dict=True):
    """The sources of one request's template values. `path` holds encoded values; `pairs` are the keyed query pairs of
    the client, normalised; `parts` holds parsed values."""

    path: Mapping[str, str]
    pairs: tuple[str, ...]
    header: dict[str, str]
    parts: Mapping[str, JsonValue] = msgspec.field(default_factory=dict)
    item: str | None = None
    claims: Mapping[str, str] = msgspec.field(default_factory=dict)
    """Of who sent the request: for tags alone."""
    plain: bool = False
    """Whether `path` is known to have only letters, digits, `-`, `_` and `~`, and no empty value."""

    @cached_property
    def query(self) -> dict[str, list[bytes]]:
        """The values of the client's query by their names, in the client's order: their very bytes, for a target."""
        found: dict[str, list[bytes]] = {}
        for pair in self.pairs:
            value = unquote_to_bytes(pair.partition("=")[2].replace("+", " "))
            found.setdefault(query_name(pair), []).append(value)
        return found

    def of_query(self, name: str) -> str | None:
        """The first value of a name in the client's query, as text."""
        return self.query[name][0].decode("utf-8", "replace") if name in self.query else None

    def of(self, reference: Reference) -> str:
        """The value as text, not encoded except for the path's. Raises Missing, RequestRefused."""
        match reference.source:
            case "path":
                value: object = self.path.get(reference.rest)
            case "query":
                value = self.of_query(reference.rest)
            case "header":
                value = self.header.get(reference.rest)
            case "item":
                value = self.item
            case "claim":
                value = self.claims.get(reference.rest)
            case part:
                value = searched(reference.expression, self.parts.get(part))
        text = as_text(value)
        if text is None:
            raise Missing(reference.text, unsent=reference.source in ("query", "header"))
        if not is_unicode(text):
            raise RequestRefused("A value contains an unpaired surrogate.")
        return text


def searched(expression: Expression, value: JsonValue | Mapping[str, object]) -> JsonValue:
    """The result of a JMESPath expression; None if a function can't be applied."""
    try:
        found: JsonValue = expression.search(value)
    except ValueError:
        return None
    return found


def as_text(value: object) -> str | None:
    """A scalar as URL text; None if it is empty or not a scalar."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value or None
    if isinstance(value, Number):
        return value.text
    if isinstance(value, int):
        return str(value)
    return repr(value) if isinstance(value, float) else None


@dataclass(frozen=True)
class Text:
    """Text with values in braces, such as a header's or a tag."""

    literals: tuple[str, ...]
    references: tuple[Reference, ...]

    def render(self, values: Values) -> str:
        """Raises Missing."""
        found = [values.of(reference) for reference in self.references]
        return self.literals[0] + "".join(a + b for a, b in zip(found, self.literals[1:], strict=True))

    def given(self, values: Values) -> str | None:
        """The same; None if it uses a value that the client did not send. Raises Missing."""
        try:
            return self.render(values)
        except Missing as missing:
            if missing.unsent:
                return None
            raise


@dataclass(frozen=True)
class PartTarget:
    """A part's target, with values in braces, each of which stays in its place."""

    references: tuple[Reference, ...]
    template: TargetTemplate
    pairs: tuple[tuple[str, tuple[int, ...]], ...]
    """The pairs of the query, and which references each of them holds."""

    @cached_property
    def plain(self) -> str:
        """The target as a format (`%`) for the path's values, where those are plain; empty if it takes others, or has a
        query."""
        if any(each.source != "path" for each in self.references):
            return ""
        return self.template.plain_path % {
            f"p{number}": f"%({each.rest})s" for number, each in enumerate(self.references)
        }

    def render(self, values: Values) -> tuple[str, tuple[str, ...]]:
        """The normalised path and the query's pairs. A pair whose value the client did not send is left out; one that
        takes a single value of the client's query is repeated for each value of that name.

        Raises Missing, and RequestRefused where a value would leave its segment.
        """
        found: dict[str, str] = {}
        absent: set[int] = set()
        for number, reference in enumerate(self.references):
            try:
                value = values.of(reference)
            except Missing as missing:
                if not missing.unsent or f"{{p{number}}}" in self.template.path:
                    raise
                absent.add(number)
                value = ""
            found[f"p{number}"] = self._encoded(reference, value, values)
        kept: list[str] = []
        for pair, numbers in self.pairs:
            taken = [number for number in numbers if self.references[number].source == "query"]
            if len(taken) == 1 and absent.isdisjoint(set(numbers) - set(taken)):
                kept += self._repeated(pair, taken[0], values, found)
            elif absent.isdisjoint(numbers):
                kept.append(pair)
        return TargetTemplate(self.template.path, tuple(kept), self.template.slashes).ask(found)

    def _encoded(self, reference: Reference, value: str, values: Values) -> str:
        match reference.source:
            case "path":
                return value
            case "query" if value:
                return quote(values.query[reference.rest][0], safe=_SAFE)
        return quote(value, safe=_SAFE)

    def _repeated(self, pair: str, number: int, values: Values, found: dict[str, str]) -> Iterator[str]:
        """`pair` for each value that the client sent for its reference."""
        name = self.references[number].rest
        for count, value in enumerate(filter(None, values.query.get(name, ()))):
            found[f"p{number}_{count}"] = quote(value, safe=_SAFE)
            yield pair.replace(f"{{p{number}}}", f"{{p{number}_{count}}}")


def condition_holds(when: Expression, values: Values, parts: Mapping[str, JsonValue]) -> bool:
    """Whether a part's `when` is true."""
    header = values.header | {name.replace("-", "_"): value for name, value in values.header.items()}
    path = {name: unquote(value) for name, value in values.path.items()}
    query = {name: values.of_query(name) for name in values.query}
    scope: dict[str, object] = {**parts, "path": path, "query": query, "header": header}
    return truthy(searched(when, scope))
