"""A draft of a configuration from an OpenAPI document: 3.0, 3.1 or Swagger 2.0, as JSON or YAML.

Each path becomes a route. A GET that needs no credentials gets a ttl of its own, and forwards the query parameters that
the document names; one that needs some follows the API's own headers, so that nothing personal is shared.

A document may be anybody's: what has another type than OpenAPI says counts as missing, and what becomes a comment is
one line (gateway.importers.draft).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import yaml

from gateway.config.types import check_vary
from gateway.importers.draft import (
    Draft,
    ImportFailed,
    RouteDraft,
    UpstreamDraft,
    as_name,
    one_line,
    unique,
    upstream_of,
)

Document = Mapping[str, Any]
METHODS = ("get", "post", "put", "patch", "delete")
RESERVED = ("/healthz", "/readyz")
TTL = "30s"
_ALWAYS_KEYED = ("accept", "accept-language")
_OF_THE_MESSAGE = frozenset(("content-type", "authorization", "cookie"))
MOST_REFERENCES = 20


def parse_document(text: str, source: str) -> Document:
    """The document, from JSON or YAML. Raises ImportFailed."""
    try:
        document = _loaded(text)
    except yaml.YAMLError as error:
        raise ImportFailed(f"{source} is neither JSON nor YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(document, dict) or not isinstance(document.get("paths"), dict):
        raise ImportFailed(f"{source} isn't an OpenAPI document: it has no `paths`")
    if not ("openapi" in document or "swagger" in document):
        raise ImportFailed(f"{source} isn't an OpenAPI document: it has neither `openapi` nor `swagger`")
    return document


def _loaded(text: str) -> Any:
    """JSON is read as such: its escapes of characters beyond U+FFFF are not YAML's."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe


def add_document(draft: Draft, document: Document, source: str, upstream: str | None = None, *, prefixed: bool) -> None:
    """Add a document's upstream and routes. `source` is the URL or file that it comes from, `upstream` the API's URL or
    NAME=URL where the document's own is not to be used. `prefixed` puts the upstream's name before each path. Raises
    ImportFailed."""
    api = upstream_for(document, source, upstream, [each.name for each in draft.upstreams])
    draft.upstreams.append(api)
    taken = {each.name for each in draft.routes}
    shapes: set[str] = set()
    for path, item in document["paths"].items():
        drafted = _Path(document, str(path), _mapping(_resolved(document, item)))
        if (reason := drafted.unusable(shapes)) is not None:
            draft.notes.append(f"{path}: {reason}")
            continue
        route = drafted.route(api, unique(drafted.name, taken), prefixed=prefixed)
        taken.add(route.name)
        draft.routes.append(route)


def upstream_for(document: Document, source: str, given: str | None, taken: list[str]) -> UpstreamDraft:
    """The API's address: the given one, the document's first server, or where the document came from. Raises
    ImportFailed."""
    name = as_name(_text(_mapping(document.get("info")).get("title")), "api")
    short = "_".join(name.split("_")[:2])
    if given is not None:
        return upstream_of(given, taken)
    url = _server(document)
    if not urlsplit(url).netloc:
        if not source.startswith(("http://", "https://")):
            raise ImportFailed(
                f"{source} doesn't say where the API is (`servers`); name it: gateway init URL --openapi {source}"
            )
        url = urljoin(source, url or "/")
    found = upstream_of(url, taken)
    return UpstreamDraft(unique(short, taken), found.url)


def _server(document: Document) -> str:
    if "swagger" in document:
        schemes = [each for each in _list(document.get("schemes")) if each in ("https", "http")]
        host, base = _text(document.get("host")), _text(document.get("basePath"))
        return f"{(schemes or ['https'])[0]}://{host}{base}" if host else base
    server = _mapping(next(iter(_list(document.get("servers"))), None))
    variables = _mapping(server.get("variables"))
    known = {name: _text(_mapping(each).get("default")) for name, each in variables.items()}
    return re.sub(r"\{(\w+)\}", lambda found: known.get(found[1], found[0]), _text(server.get("url")))


def _resolved(document: Document, node: Any) -> Any:
    """What a local `$ref` leads to. Raises ImportFailed."""
    for _ in range(MOST_REFERENCES):
        if not isinstance(node, Mapping) or not isinstance(node.get("$ref"), str):
            return node
        reference = node["$ref"]
        if not reference.startswith("#/"):
            raise ImportFailed(f"the reference {reference} leads to another document; bundle the documents first")
        node = document
        for step in unquote(reference[2:]).split("/"):
            node = _member(node, step.replace("~1", "/").replace("~0", "~"))
        if node is None:
            raise ImportFailed(f"the reference {reference} leads to nothing in the document")
    raise ImportFailed("a reference of the document leads to itself")


def _member(node: Any, step: str) -> Any:
    """One step of a JSON pointer (RFC 6901); bundled documents refer into lists too."""
    if isinstance(node, list):
        return node[int(step)] if re.fullmatch("[0-9]{1,6}", step) and int(step) < len(node) else None
    return _mapping(node).get(step)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: object) -> str:
    return str(value) if isinstance(value, str | int | float) else ""


@dataclass(frozen=True)
class _Path:
    """A path of the document and its operations."""

    document: Document
    path: str
    item: Mapping[str, Any]

    @property
    def operations(self) -> dict[str, Mapping[str, Any]]:
        return {name: self.item[name] for name in METHODS if isinstance(self.item.get(name), Mapping)}

    @property
    def name(self) -> str:
        """By the operation's ID; otherwise by the path."""
        first = next(iter(self.operations.values()))
        words = re.sub(r"\{[^}]*\}", " ", self.path)
        return as_name(_text(first.get("operationId")) or words.strip("/ ") or "root", "route")

    @property
    def template(self) -> str:
        """The path as a route has it: its parameters are words."""
        return re.sub(r"\{([^}]*)\}", lambda found: f"{{{_parameter(found[1])}}}", self.path)

    def unusable(self, shapes: set[str]) -> str | None:
        """Why there can be no route for it; its shape is added to `shapes`."""
        if not self.operations:
            return "it has no operation that a gateway passes on"
        if self.path in RESERVED:
            return "the gateway serves this path itself"
        shape = re.sub(r"\{[^}]*\}", "{}", self.path)
        if not self.path.startswith("/") or "?" in self.path or "#" in self.path:
            return "it isn't a path alone"
        if shape in shapes:
            return "an earlier path matches the same requests"
        shapes.add(shape)
        return None

    def route(self, api: UpstreamDraft, name: str, *, prefixed: bool) -> RouteDraft:
        prefix = f"/{api.name.replace('_', '-')}" if prefixed else ""
        settings: dict[str, object] = {"path": prefix + self.template, "upstream": api.name}
        if prefix:
            settings["upstream_path"] = self.template
        settings["methods"] = [each.upper() for each in self.operations]
        reasons: dict[str, str] = {}
        settings |= self._caching(reasons)
        read = self.operations.get("get") or next(iter(self.operations.values()))
        why = _text(read.get("summary")) or _text(read.get("description"))
        return RouteDraft(name, settings, _shortened(why), reasons)

    def _caching(self, reasons: dict[str, str]) -> dict[str, object]:
        read = self.operations.get("get")
        if read is None:
            return {"cache": False}
        if self._streams(read):
            reasons["cache"] = "a stream of events"
            return {"cache": False}
        if (security := self._credentials(read)) is not None:
            reasons["ttl"] = f"needs credentials ({security}): what the API says of its responses is followed"
            return {"ttl": "origin"}
        parameters = list(self._parameters(read))
        found: dict[str, object] = {"ttl": TTL, "stale_while_revalidate": "60s", "stale_if_error": "10m"}
        found["query"] = list(dict.fromkeys(name for place, name in parameters if place == "query"))
        headers = [name.lower() for place, name in parameters if place == "header"]
        if vary := [each for each in headers if each not in _OF_THE_MESSAGE and _may_be_keyed(each)]:
            found["vary"] = list(dict.fromkeys((*_ALWAYS_KEYED, *vary)))
        if tag := self._tag():
            found["tags"] = [tag]
        return found

    def _streams(self, operation: Mapping[str, Any]) -> bool:
        responses = (_resolved(self.document, each) for each in _mapping(operation.get("responses")).values())
        types = [name for each in responses for name in _mapping(_mapping(each).get("content"))]
        return "text/event-stream" in (*types, *_list(operation.get("produces")))

    def _credentials(self, operation: Mapping[str, Any]) -> str | None:
        """The names of the schemes that a request must satisfy; None where it may go without."""
        security = operation.get("security", self.document.get("security"))
        if not security:
            return None
        schemes = _list(security)
        if not schemes or not all(isinstance(each, Mapping) for each in schemes):
            return "of a form that OpenAPI doesn't have"
        return None if {} in schemes else ", ".join(dict.fromkeys(str(name) for each in schemes for name in each))

    def _parameters(self, operation: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Where each parameter is, and its name."""
        for each in (*_list(self.item.get("parameters")), *_list(operation.get("parameters"))):
            parameter = _mapping(_resolved(self.document, each))
            yield _text(parameter.get("in")), _text(parameter.get("name"))

    def _tag(self) -> str | None:
        """`pet:{petId}` for /pet/{petId}, by which that pet's responses are purged together."""
        found = re.findall(r"([A-Za-z0-9_-]+)/\{([^}]*)\}", self.path)
        return f"{found[-1][0]}:{{{_parameter(found[-1][1])}}}" if found else None


def _parameter(name: str) -> str:
    word = re.sub("[^A-Za-z0-9_]", "_", name)
    return word if re.match("[A-Za-z_]", word) else f"p{word}"


def _may_be_keyed(field: str) -> bool:
    try:
        check_vary([field])
    except ValueError:
        return False
    return True


def _shortened(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= 110 else f"{line[:107]}..."
