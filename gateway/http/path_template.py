"""Path templates: which requests a route matches, which route is more specific, and the upstream path.

Pure. A template is matched against the normalised, still encoded path (`targets.Target.path`), so that captured values
are forwarded byte for byte.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import quote, unquote_to_bytes

from gateway.errors import RequestRefused
from gateway.http.target import Slashes, normalise_path, normalise_query, recode_path

_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(?::([a-z]+))?\}")


_PLAIN_VALUES = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_~")
"""Characters of which no value makes a dot segment, or a path in another form, in a template without `%` and `/.`."""


class TemplateError(ValueError):
    """A malformed path template; the message says what to write."""


@dataclass(frozen=True)
class PathTemplate:
    """A path with parameters: `{name}` takes one segment or a piece of one, `{name:path}` all that follows."""

    text: str

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        return tuple(match[1] for match in _PARAMETER.finditer(self.text))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        pattern, position = "", 0
        for match in _PARAMETER.finditer(self.text):
            pattern += re.escape(self.text[position : match.start()])
            pattern += f"(?P<{match[1]}>{'.*' if match[2] == 'path' else '[^/]+'})"
            position = match.end()
        return re.compile(pattern + re.escape(self.text[position:]), re.DOTALL)

    def match(self, path: str) -> dict[str, str] | None:
        """The parameters' encoded values, or None where `path` isn't the template's."""
        match = self._pattern.fullmatch(path)
        return match.groupdict() if match else None

    @cached_property
    def specificity(self) -> tuple[tuple[int, int], ...]:
        """Sorts the more specific template first, segment by segment: literal before mixed, parameter, rest."""
        ranks = []
        for segment in self.text.split("/")[1:]:
            found = list(_PARAMETER.finditer(segment))
            literal = len(_PARAMETER.sub("", segment))
            if not found:
                ranks.append((0, 0))
            elif any(match[2] == "path" for match in found):
                ranks.append((3, -literal))
            else:
                ranks.append((1, -literal) if literal else (2, 0))
        return tuple(ranks)


def compile_path(text: str) -> PathTemplate:
    """The template of a route's `path`. Raises TemplateError."""
    if not text.startswith("/"):
        raise TemplateError("must begin with a slash")
    if "?" in text or "#" in text:
        raise TemplateError("must be a path alone, without query or fragment")
    _check_parameters(text)
    pieces, position = [], 0
    for match in _PARAMETER.finditer(text):
        pieces += [text[position : match.start()], match[0]]
        position = match.end()
    pieces.append(text[position:])
    try:
        normalised = "".join(_normalised_literal(piece, index) for index, piece in enumerate(pieces))
        _check_segments(normalised)
    except RequestRefused as refused:
        raise TemplateError(refused.detail) from None
    return PathTemplate(normalised)


def _check_segments(path: str, slashes: Slashes = "refuse") -> None:
    plain = _PARAMETER.sub("x", path)
    if normalise_path(plain, slashes) != plain:
        raise TemplateError("must not have dot segments")


def _normalised_literal(piece: str, index: int, slashes: Slashes = "refuse") -> str:
    if index % 2:
        return piece
    if "{" in piece or "}" in piece:
        raise TemplateError("has an unmatched brace; write {name} or {name:path}")
    return recode_path(piece.encode().decode("latin-1"), keep_slashes=slashes == "keep")


def _check_parameters(text: str) -> None:
    names = [match[1] for match in _PARAMETER.finditer(text)]
    if len(names) != len(set(names)):
        raise TemplateError("names a parameter twice")
    for match in _PARAMETER.finditer(text):
        if match[2] not in (None, "path"):
            raise TemplateError(f"{{{match[1]}:{match[2]}}} is unknown; write {{{match[1]}}} or {{{match[1]}:path}}")
        if match[2] == "path" and match.end() != len(text):
            raise TemplateError(f"{{{match[1]}:path}} matches the rest of the path; it must be last")


@dataclass(frozen=True)
class TargetTemplate:
    """What a route asks of its upstream: a path and perhaps a query, with the route's parameters in them. `slashes` is
    what becomes of encoded ones in the values."""

    path: str
    query: tuple[str, ...]
    slashes: Slashes = "refuse"

    @cached_property
    def _constant(self) -> bool:
        """Whether it contains no parameter."""
        return not any(map(_PARAMETER.search, (self.path, *self.query)))

    @cached_property
    def plain_path(self) -> str:
        """The path as a format (`%`) for values that it stays normalised with, as `_stays` says; empty if there is
        none, or a query."""
        if self.query or not self._is_plain:
            return ""
        return _PARAMETER.sub(r"%(\1)s", self.path)

    def ask(self, parameters: dict[str, str]) -> tuple[str, tuple[str, ...]]:
        """The target to request from an upstream. Raises RequestRefused if a value would leave its segment, as joined
        dots would."""
        if self._constant:
            return self.path, self.query
        path, query = self.render(parameters)
        if self.slashes == "decode":
            path = path.replace("%2F", "/")
        if not self._stays(parameters) and normalise_path(path, self.slashes) != path:
            raise RequestRefused("A path parameter would leave its segment in the upstream path.")
        return path, query

    def _stays(self, parameters: dict[str, str]) -> bool:
        """Whether the path is known to be normalised with these values, without a look at it."""
        values = parameters.values()
        return self._is_plain and all(values) and _PLAIN_VALUES.issuperset("".join(values))

    @cached_property
    def _is_plain(self) -> bool:
        return "%" not in self.path and "/." not in self.path

    def render(self, parameters: dict[str, str]) -> tuple[str, tuple[str, ...]]:
        """The path and the query pairs for `parameters` (encoded values of the route's template).

        A value in the path stays within its segment; in the query it is encoded so that it stays one value.
        """
        path = self.path.format_map(parameters)  # its braces are those of its parameters alone
        if not self.query:
            return path, ()
        query = tuple(
            _PARAMETER.sub(lambda match: quote(unquote_to_bytes(parameters[match[1]]), safe="~"), pair)
            for pair in self.query
        )
        return path, query


def compile_target(text: str, known: tuple[str, ...], slashes: Slashes = "refuse") -> TargetTemplate:
    """The template of an `upstream_path`. Raises TemplateError if it uses a parameter that is not in `known`."""
    if not text.startswith("/"):
        raise TemplateError("must begin with a slash")
    if "#" in text:
        raise TemplateError("must not have a fragment")
    for match in _PARAMETER.finditer(text):
        if match[1] not in known:
            has = ", ".join(known) or "none"
            raise TemplateError(f"uses {{{match[1]}}}, which the route's path does not have (it has: {has})")
    path, _, query = text.partition("?")
    pieces = _PARAMETER.split(path)[::3]
    names = [f"{{{match[1]}}}" for match in _PARAMETER.finditer(path)]
    try:
        literals = [_normalised_literal(piece, 0, slashes) for piece in pieces]
        path = literals[0] + "".join(name + piece for name, piece in zip(names, literals[1:], strict=True))
        _check_segments(path, slashes)
    except RequestRefused as refused:
        raise TemplateError(refused.detail) from None
    return TargetTemplate(path, tuple(_normalised_pair(pair) for pair in query.split("&") if pair), slashes)


def _normalised_pair(pair: str) -> str:
    pieces = _PARAMETER.split(pair)[::3]
    names = [f"{{{match[1]}}}" for match in _PARAMETER.finditer(pair)]
    try:
        literals = ["&".join(normalise_query(piece.encode().decode("latin-1"))) for piece in pieces]
    except RequestRefused as refused:
        raise TemplateError(refused.detail) from None
    return literals[0] + "".join(name + piece for name, piece in zip(names, literals[1:], strict=True))


def render_tag(template: str, parameters: dict[str, str]) -> str:
    """A tag such as `product:{id}` with these values; an unknown name stays as it is written."""
    return _PARAMETER.sub(lambda match: parameters.get(match[1], match[0]), template)


def tag_parameters(template: str) -> tuple[str, ...]:
    return tuple(match[1] for match in _PARAMETER.finditer(template))
