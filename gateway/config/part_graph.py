"""The plan of an aggregate: what each part needs from the request and from other parts, and so their order.

Pure. References are in braces (`{user}`, `{query.page}`, `{product.seller_id}`) and in JMESPath conditions; all of them
are resolved when the configuration is read, so that an unknown name or a cycle is refused then, and the aggregate's
cache key can contain everything that its parts can see.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from typing import Any

from gateway.config.expressions import Expression
from gateway.config.part import PartConfig
from gateway.config.part_values import PartTarget, Reference, Text, Values
from gateway.http.path_template import PathTemplate, TemplateError, compile_target
from gateway.http.target import Slashes

_BRACES = re.compile(r"\{([^{}]*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OF_A_PART = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?:\.|(?=\[))(.+)")
_HEADER = re.compile(r"[A-Za-z0-9_\-]+")
OF_THE_REQUEST = ("path", "query", "header")
RESERVED = (*OF_THE_REQUEST, "item", "ids", "parts")


@dataclass(frozen=True, slots=True)
class PartProblem:
    """A problem of a part: `key` is its place, relative to the aggregate."""

    key: tuple[str, ...]
    message: str
    value: object = None


class OwnValues(Values, frozen=True):
    """A request's values, with a valid placeholder for each value of an earlier part: what is refused with these is
    refused whatever the parts return."""

    def of(self, reference: Reference) -> str:
        return super().of(reference) if reference.source in OF_THE_REQUEST else "x"


@dataclass(frozen=True)
class PlannedPart:
    """A part and its dependencies. `needs` are the parts whose values it uses."""

    name: str
    config: PartConfig
    target: PartTarget | None
    batch: PartTarget | None
    headers: tuple[tuple[bytes, Text], ...]
    tags: tuple[Text, ...]
    when: Expression | None
    each: tuple[str, Expression] | None
    needs: tuple[str, ...]
    query: frozenset[str]
    reads: frozenset[str]
    """The request headers that it takes values from."""

    @cached_property
    def is_static(self) -> bool:
        return self.config.is_static

    @cached_property
    def is_certain(self) -> bool:
        """Whether every request for it is sent or answered from the cache, whatever other parts are."""
        return not self.is_static and not self.needs and self.when is None

    @cached_property
    def is_required(self) -> bool:
        """Whether the whole fails if it does."""
        return not self.config.optional and not self.config.has_default

    @cached_property
    def group(self) -> str | None:
        """Under which name it stands; None for the root."""
        return self.config.group_of(self.name)

    @cached_property
    def is_for_incomplete(self) -> bool:
        """Whether it is a constant for responses in which another part failed."""
        return self.is_static and self.config.static_if == "incomplete"


@dataclass(frozen=True)
class PartPlan:
    """The parts in their declared order, and an order in which each comes after those that it needs."""

    parts: Mapping[str, PlannedPart]
    order: tuple[str, ...]
    problems: list[PartProblem]

    def closure(self, shown: Iterable[str]) -> frozenset[str]:
        """The parts to request in order to show `shown`."""
        wanted: set[str] = set()
        waiting = list(shown)
        while waiting:
            name = waiting.pop()
            if name not in wanted:
                wanted.add(name)
                waiting += self.parts[name].needs
        return frozenset(wanted)

    def sequence(self, shown: Iterable[str]) -> tuple[str, ...]:
        """The parts to request in order to show `shown`, dependencies first."""
        wanted = self.closure(shown)
        return tuple(name for name in self.order if name in wanted)

    @cached_property
    def needed(self) -> frozenset[str]:
        """The parts whose values others take."""
        return frozenset(name for part in self.parts.values() for name in part.needs)

    @cached_property
    def query(self) -> frozenset[str]:
        return frozenset(name for part in self.parts.values() for name in part.query)

    @cached_property
    def reads(self) -> frozenset[str]:
        return frozenset(name for part in self.parts.values() for name in part.reads)


def near(name: str, known: Iterable[str]) -> str:
    """`; did you mean …?`, or what there is."""
    names = list(known)
    close = get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are: {', '.join(names) or 'none'}"


def plan_parts(path: PathTemplate, parts: Mapping[str, PartConfig], slashes: Slashes = "refuse") -> PartPlan:
    """The plan of an aggregate at `path`; its errors are in `problems`. `slashes` is the handling of encoded slashes in
    parts without a setting of their own."""
    problems: list[PartProblem] = []
    planned = {name: _Planner(name, config, path, parts, problems, slashes).plan() for name, config in parts.items()}
    problems += _group_problems(parts)
    order, circle = _ordered({name: part.needs for name, part in planned.items()})
    if circle:
        chain = " → ".join([*circle, circle[0]])
        problems.append(PartProblem(("parts", circle[0]), f"parts depend on each other in a cycle: {chain}"))
    return PartPlan(planned, order, problems)


def _ordered(needs: Mapping[str, tuple[str, ...]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A topological order; or a cycle."""
    order: list[str] = []
    path: list[str] = []

    def visit(name: str) -> tuple[str, ...]:
        if name in order:
            return ()
        if name in path:
            return tuple(path[path.index(name) :])
        path.append(name)
        for needed in needs.get(name, ()):
            if circle := visit(needed):
                return circle
        path.pop()
        order.append(name)
        return ()

    for name in needs:
        if circle := visit(name):
            return (), circle
    return tuple(order), ()


def sole_part(parts: Mapping[str, PartConfig]) -> str | None:
    """The part that is the whole answer: the only one, and under no name."""
    shown = [name for name, part in parts.items() if not part.shadow]
    return shown[0] if len(shown) == 1 and parts[shown[0]].at_root else None


def _group_problems(parts: Mapping[str, PartConfig]) -> Iterator[PartProblem]:
    taken: dict[str, str] = {}
    sole = sole_part(parts)
    for name, part in parts.items():
        if name in RESERVED:
            yield PartProblem(("parts", name), f"{name} is reserved in templates; choose another")
        group = part.group_of(name)
        if part.at_root and part.for_each is not None and name != sole:
            message = "null can't be combined with `for_each`, which makes a list; set a name"
            yield PartProblem(("parts", name, "group"), message)
        if group is None or part.shadow:
            continue
        if group in ("_meta", "_errors") or not group:
            yield PartProblem(("parts", name, "group"), f"{group!r} isn't a valid group name", group)
        other = taken.setdefault(group, name)
        if other != name:
            message = f"{group} is already the group of the part {other}"
            yield PartProblem(("parts", name, "group"), message, group)


@dataclass
class _Planner:
    name: str
    config: PartConfig
    path: PathTemplate
    parts: Mapping[str, PartConfig]
    problems: list[PartProblem]
    slashes: Slashes
    found: list[Reference] = field(default_factory=list)

    def plan(self) -> PlannedPart:
        config = self.config
        each = self._each()
        when = self._condition()
        planned = PlannedPart(
            name=self.name,
            config=config,
            target=self._target("path", config.path),
            batch=self._target("batch", config.batch, also=("ids",)),
            headers=tuple((key.encode(), self._text("headers", value)) for key, value in config.headers.items()),
            tags=tuple(self._text("tags", tag) for tag in config.tags),
            when=when,
            each=each,
            needs=(),
            query=frozenset(),
            reads=frozenset(),
        )
        needs = dict.fromkeys(each.source for each in self.found if each.source in self.parts)
        query = {each.rest for each in self.found if each.source == "query"} | set(config.query)
        reads = {each.rest for each in self.found if each.source == "header"}
        fields = {name: getattr(planned, name) for name in planned.__dataclass_fields__}
        return PlannedPart(**{**fields, "needs": tuple(needs), "query": frozenset(query), "reads": frozenset(reads)})

    def _wrong(self, setting: str, message: str) -> None:
        key = ("parts", self.name, setting)
        if not any(problem.key == key for problem in self.problems):
            self.problems.append(PartProblem(key, message, getattr(self.config, setting)))

    def _target(self, setting: str, text: str | None, also: tuple[str, ...] = ()) -> PartTarget | None:
        if text is None:
            return None
        path = text.partition("?")[0]
        literals, references = self._split(setting, text, also)
        numbered = "".join(
            literal + (f"{{p{number}}}" if number < len(references) else "") for number, literal in enumerate(literals)
        )
        for name in self.path.parameters:
            if f"{{{name}:path}}" in self.path.text and f"{{{name}}}" in path:
                self._wrong(setting, f"uses {{{name}}}, which matches several segments; a value must fit in one")
        try:
            names = tuple(f"p{number}" for number in range(len(references)))
            template = compile_target(numbered, names, self.config.encoded_slashes or self.slashes)
        except TemplateError as error:
            self._wrong(setting, str(error))
            return None
        pairs = tuple(
            (pair, tuple(number for number in range(len(references)) if f"{{p{number}}}" in pair))
            for pair in template.query
        )
        return PartTarget(references, template, pairs)

    def _text(self, setting: str, text: str) -> Text:
        return Text(*self._split(setting, text, ()))

    def _split(self, setting: str, text: str, also: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[Reference, ...]]:
        pieces = _BRACES.split(text)
        references = tuple(self._reference(setting, piece, also) for piece in pieces[1::2])
        if any("{" in literal or "}" in literal for literal in pieces[::2]):
            self._wrong(setting, "has an unmatched brace; write {name}")
        self.found += references
        return tuple(pieces[::2]), references

    def _reference(self, setting: str, text: str, also: tuple[str, ...]) -> Reference:
        match = _OF_A_PART.fullmatch(text)
        source, rest = (match[1], match[2]) if match is not None else (text, "")
        if text in also or (text == "item" and self.config.for_each is not None and not also):
            return Reference(text, "item")
        if match is None:
            self._check_parameter(setting, text)
            return Reference(text, "path", text)
        if source == "query":
            return Reference(text, "query", rest)
        if source == "header":
            if not _HEADER.fullmatch(rest):
                self._wrong(setting, f"uses {{{text}}}, which isn't a valid header name")
            return Reference(text, "header", _field_name(rest))
        if source == "claim" and setting == "tags" and source not in self.parts:
            return Reference(text, "claim", rest)
        self._check_part(setting, source, f"{{{text}}}")
        try:
            Expression(rest)
        except ValueError as error:
            self._wrong(setting, f"uses {{{text}}}: {rest} {error}")
        return Reference(text, source, rest)

    def _check_parameter(self, setting: str, name: str) -> None:
        if name not in self.path.parameters:
            hint = near(name, self.path.parameters)
            of_part = f"; write {{{name}.field}} for a value of the part {name}" if name in self.parts else hint
            self._wrong(setting, f"uses {{{name}}}, which the aggregate's path does not have{of_part}")

    def _check_part(self, setting: str, name: str, text: str) -> None:
        others = [each for each in self.parts if each != self.name]
        if name not in self.parts:
            self._wrong(setting, f"uses {text}, but there is no part {name}{near(name, others)}")
        elif self.parts[name].shadow:
            self._wrong(setting, f"uses {text}, but {name} is a shadow part, whose response is discarded")

    def _each(self) -> tuple[str, Expression] | None:
        expression = self.config.for_each
        if expression is None:
            return None
        match = _NAME.match(expression)
        name = match[0] if match else ""
        rest = expression[len(name) :].lstrip()
        if not name or not rest.startswith((".", "[")):
            self._wrong("for_each", "must begin with an earlier part's name, such as cart.items[*].id")
            return None
        self._check_part("for_each", name, name)
        self.found.append(Reference(expression, name, rest))
        return name, Expression(expression)

    def _condition(self) -> Expression | None:
        expression = self.config.when
        if expression is None:
            return None
        parsed = Expression(expression)
        for root, member in _roots(parsed.parsed):
            self._condition_root(root, member)
        return parsed

    def _condition_root(self, root: str, member: str | None) -> None:
        if root not in OF_THE_REQUEST:
            self._check_part("when", root, root)
            self.found.append(Reference(root, root))
        elif member is None:
            self._wrong("when", f"must select a value of {root}, such as {root}.name")
        elif root == "path":
            self._check_parameter("when", member)
        else:
            self.found.append(Reference(f"{root}.{member}", root, _field_name(member) if root == "header" else member))


def _field_name(text: str) -> str:
    # Names with an underscore are never forwarded: here it can only mean a dash, which JMESPath requires in quotes.
    return text.lower().replace("_", "-")


_SCOPED = frozenset(
    ("subexpression", "index_expression", "projection", "value_projection", "filter_projection", "pipe", "flatten")
)


def _roots(node: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """The fields that a JMESPath expression reads from its root, each with the field read from it."""
    children = node["children"]
    if node["type"] == "field":
        yield node["value"], None
    elif node["type"] == "subexpression" and children[0]["type"] == "field":
        member = children[1]
        while member["children"] and member["type"] in _SCOPED:
            member = member["children"][0]
        yield children[0]["value"], member["value"] if member["type"] == "field" else None
    elif node["type"] in _SCOPED:
        yield from _roots(children[0])
    else:
        for child in children:
            yield from _roots(child)


def cross_problems(
    parts: Mapping[str, PartConfig],
    path: PathTemplate,
    upstreams: frozenset[str],
    several: frozenset[str],
    routes: Mapping[str, PathTemplate],
    identified: frozenset[str],
) -> Iterator[PartProblem]:
    """Invalid references of parts to upstreams and routes. `several` are the upstreams with more than one base URL;
    `routes` the paths of the routes that are not aggregates; `identified` those with `identity`, which an aggregate
    without it would serve to everybody."""
    for name, part in parts.items():
        if part.upstream is not None and part.upstream not in upstreams:
            message = f"there is no upstream {part.upstream}{near(part.upstream, sorted(upstreams))}"
            yield PartProblem(("parts", name, "upstream"), message, part.upstream)
        elif part.hedge is not None and part.upstream not in several:
            yield PartProblem(
                ("parts", name, "hedge"), f"needs an upstream with several `urls`; {part.upstream} has one"
            )
        if part.route in identified:
            message = f"the route {part.route} has `identity`; an aggregate, which lets anybody in, can't be made of it"
            yield PartProblem(("parts", name, "route"), message, part.route)
        elif part.route is not None:
            yield from _route_problems(name, part, path, routes)


def _route_problems(
    name: str, part: PartConfig, path: PathTemplate, routes: Mapping[str, PathTemplate]
) -> Iterator[PartProblem]:
    assert part.route is not None
    if part.route not in routes:
        message = f"there is no route {part.route} with an upstream{near(part.route, sorted(routes))}"
        yield PartProblem(("parts", name, "route"), message, part.route)
    elif part.path is None:
        absent = [each for each in routes[part.route].parameters if each not in path.parameters]
        if absent:
            message = f"is missing: the path of the route {part.route} has {{{absent[0]}}}, which this one has not"
            yield PartProblem(("parts", name, "path"), message)
