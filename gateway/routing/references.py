"""Translates references of upstreams to public URLs for clients.

An upstream's reference means a target at that upstream (RFC 3986 §5: it is resolved against the requested URL). A
public URL replaces it if a request for that URL would be forwarded to exactly that target: path and query, by the app's
own choice of a route. No other is written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

import msgspec

from gateway.errors import RequestRefused
from gateway.http.headers import Headers
from gateway.http.path_template import TargetTemplate
from gateway.http.target import Slashes, Target, normalise, resolve
from gateway.routing.location import DROPPED_IN_URLS, REFERRING, replaced, rooted

if TYPE_CHECKING:
    from gateway.routing.declared import Declared
    from gateway.upstreams.client import Upstream


_DEFAULT_PORTS = {"http": 80, "https": 443}
_OPTIONAL = (b"link", b"content-location")
_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


class Asked(msgspec.Struct, frozen=True, gc=False):
    """The request of a response: its route, its upstream target, and its public path and query below `root`, the path
    where the app is mounted."""

    route: Declared
    target: str
    path: str
    query: tuple[str, ...] = ()
    root: str = ""

    @property
    def public(self) -> str:
        return str(Target(self.path, self.query, ""))


@dataclass(frozen=True)
class References:
    """Translates the references of responses. `serving` finds the declared route that serves a decoded path; None if
    nothing or something else does."""

    declared: Sequence[Declared]
    serving: Callable[[str], Declared | None]

    def mapped(self, headers: Headers, asked: Asked) -> list[tuple[bytes, bytes]]:
        """An answer's fields with every reference in them as a client may follow it. `Link`s and `Content-Location`s to
        what an upstream does not show here are left out; `Location` and `Refresh`, which have to name a place, become
        the path alone, unless something else is found there."""
        fields = []
        for name, value in headers:
            if name in REFERRING:
                translated = replaced(name, value, partial(self._public, asked, keep=name not in _OPTIONAL))
                if translated is not None:
                    fields.append((name, translated))
            else:
                fields.append((name, value))
        return fields

    def _public(self, asked: Asked, text: str, *, keep: bool) -> str | None:
        """A reference as a public URL; None if it must be removed."""
        reference = text.translate(DROPPED_IN_URLS)
        try:
            parts = urlsplit(reference)
            _ = parts.port  # raises where it is none
            if parts.netloc:
                return self._of_url(text, reference, asked, keep=keep)
            if parts.scheme or not (parts.path or parts.query):
                return text
            return self._of_path(text, reference, asked)
        except ValueError:
            return None if self._names_an_upstream(reference) else text

    def _of_url(self, text: str, reference: str, asked: Asked, *, keep: bool) -> str | None:
        public = self._leading_to(reference, asked)
        if public is not None:
            return rooted(asked.root + public)
        named = [
            *self._below(reference, asked, within=True),
            *((None, path) for _, path in self._below(reference, asked)),
        ]
        if not named:
            return text
        upstream, path = named[0]
        return rooted(asked.root + path) if keep and self._misleads_nobody(upstream, path) else None

    def _of_path(self, text: str, reference: str, asked: Asked) -> str:
        """A path, or part of one, means something else to a client than to an upstream with other paths."""
        for base in asked.route.upstream.config.bases:
            meant = urljoin(base + asked.target, reference)
            public = self._leading_to(meant, asked, self._led_to(self._as_read(reference, asked)))
            if public is not None:
                return rooted(asked.root + public) if public else text
        return text

    def _misleads_nobody(self, upstream: Upstream | None, path: str) -> bool:
        """Whether a client that requests a path below an upstream's base here gets nothing, or the same target without
        parameters that its route doesn't forward. `upstream` is None if the path is below no base."""
        led, wanted = self._led_to(path), _target_of(path)
        if led is None or wanted is None:
            return True
        return (led[0], led[1].partition("?")[0]) == (upstream, wanted.partition("?")[0])

    @staticmethod
    def _as_read(reference: str, asked: Asked) -> str:
        """A path, or part of one, as seen by a client: below the app's mount path, or nowhere."""
        read = urljoin(asked.root + asked.public, reference)
        return read[len(asked.root) :] if read.startswith(asked.root + "/") else ""

    def _upstreams(self, asked: Asked) -> Iterable[Upstream]:
        first = asked.route.upstream
        return {id(each): each for each in (first, *(route.upstream for route in self.declared))}.values()

    def _names_an_upstream(self, text: str) -> bool:
        upstreams = (route.upstream for route in self.declared)
        return any((urlsplit(base).hostname or "") in text.lower() for each in upstreams for base in each.config.bases)

    def _below(
        self, url: str, asked: Asked, *, within: bool = False, named: bool = False
    ) -> list[tuple[Upstream, str]]:
        """The upstreams that a URL names, each with the path below its base; `within` leaves out those whose base it is
        outside of, `named` adds those that bear the `Host` that an upstream is sent."""
        return [
            (upstream, path)
            for upstream in self._upstreams(asked)
            for base in (upstream.config.named_bases if named else upstream.config.bases)
            if (path := below_base(url, [base])) is not None and not (within and not _is_within(url, base))
        ]

    def _leading_to(self, url: str, asked: Asked, led: tuple[Upstream, str] | None = None) -> str | None:
        """The public path and query with the target of an upstream's URL, with its fragment; empty if the client is
        `led` there already, None if nothing leads there."""
        below = self._below(url, asked, within=True, named=True)
        found = [(upstream, path, _target_of(path)) for upstream, path in below]
        if led is not None and any(led == (upstream, wanted) for upstream, _, wanted in found):
            return ""
        public = (self._inverse(upstream, wanted, path) for upstream, path, wanted in found if wanted is not None)
        return next(filter(None, public), None)

    def _inverse(self, upstream: Upstream, wanted: str, reference: str) -> str | None:
        path, _, query = wanted.partition("?")
        pairs = tuple(query.split("&")) if query else ()
        for route in self.declared:
            if route.upstream is upstream:
                for public in _inverted(route, path, pairs):
                    if self._led_to(public) == (upstream, wanted):
                        return public + _fragment(reference)
        return None

    def _slashes(self, target: Target) -> Slashes:
        route = self.serving(target.decoded)
        return "refuse" if route is None else route.config.encoded_slashes

    def _led_to(self, public: str) -> tuple[Upstream, str] | None:
        """The upstream, and its target, that a public path and query lead to."""
        try:
            path, _, query = public.partition("#")[0].partition("?")
            target = resolve(path.encode("latin-1"), query.encode("latin-1"), self._slashes)
            route = self.serving(target.decoded)
            return None if route is None else (route.upstream, route.upstream_target(target.path, target.query)[0])
        except (RequestRefused, ValueError):
            return None


def _inverted(route: Declared, path: str, pairs: tuple[str, ...]) -> Iterator[str]:
    """Public paths and queries by which a route may lead to this target; each must be verified."""
    parameters = route.inside.match(path)
    if parameters is None:
        return
    left = list(pairs)
    for pattern in map(_pair_pattern, route.target.query):
        found = next((match for pair in left if (match := pattern.fullmatch(pair))), None)
        if found is None:
            return
        parameters = found.groupdict() | parameters
        left.remove(found[0])
    if set(parameters) == set(route.template.parameters):
        public = TargetTemplate(route.template.text.replace(":path}", "}"), ()).render(parameters)[0]
        yield f"{public}?{'&'.join(left)}" if left else public


def _pair_pattern(template: str) -> re.Pattern[str]:
    names = _PARAMETER.findall(template)
    pieces = [re.escape(piece) for piece in _PARAMETER.split(template)[::2]]
    values = [f"(?P<{name}>.+)" for name in names]
    return re.compile("".join(piece + value for piece, value in zip(pieces, [*values, ""], strict=True)))


def _target_of(reference: str) -> str | None:
    try:
        return str(_normalised(reference))
    except (RequestRefused, ValueError):
        return None


def _normalised(reference: str) -> Target:
    path, _, query = reference.partition("#")[0].partition("?")
    # As the upstream means it; `_led_to` checks whether a client may request it.
    return normalise(path.encode("latin-1"), query.encode("latin-1"), "keep")


def _fragment(reference: str) -> str:
    _, mark, fragment = reference.partition("#")
    return mark + fragment


def below_base(reference: str, bases: Iterable[str]) -> str | None:
    """The part of a URL reference below one of `bases`, whatever form its host is written in; None for another host."""
    reference = reference.translate(DROPPED_IN_URLS)
    try:
        parts = urlsplit(reference)
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return None
    host = (parts.hostname or "").removesuffix(".")
    for base in map(urlsplit, bases):
        # An upstream that gets the scheme https but no port refers to itself without one, even behind an http base.
        own = (base.port or _DEFAULT_PORTS[base.scheme], None, *(() if base.port else _DEFAULT_PORTS.values()))
        if host and host == base.hostname and port in own:
            path = parts.path or "/"
            within = base.path and (path + "/").startswith(base.path + "/")
            return (path[len(base.path) :] or "/" if within else path) + reference[
                _end_of_path(reference, parts.path) :
            ]
    return None


def _is_within(reference: str, base: str) -> bool:
    return (urlsplit(reference).path or "/").startswith(urlsplit(base).path + "/")


def _end_of_path(reference: str, path: str) -> int:
    start = reference.find("//") + 2
    after = min((at for mark in "/?#" if (at := reference.find(mark, start)) >= 0), default=len(reference))
    return after + len(path)
