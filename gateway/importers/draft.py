"""A draft of a configuration: upstreams, routes with the reasons for their settings, and the file made of both.

What is written is meant to be read and changed: a comment says why a setting has its value, and examples of what comes
next are commented out. Comments hold what others wrote: each is one line, whatever its text has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import yaml

from gateway.config.types import is_address
from gateway.errors import GatewayError

SCHEMA_FILE = "gateway.schema.json"
LONGEST_NAME = 100
"""Characters; a key of YAML has at most 1024."""
_GENERIC_HOSTS = frozenset(("api", "www", "localhost", "host", "gateway", "app"))


class ImportFailed(GatewayError):
    """No configuration can be made of this; the message says why."""


@dataclass(frozen=True)
class UpstreamDraft:
    name: str
    url: str


@dataclass(frozen=True)
class RouteDraft:
    """A route: `settings` in the order in which they are written, `why` above it, `reasons` beside single settings."""

    name: str
    settings: dict[str, object]
    why: str = ""
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass
class Draft:
    upstreams: list[UpstreamDraft] = field(default_factory=list)
    routes: list[RouteDraft] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What the document has and the draft leaves out, and why."""


def draft_of(upstreams: Iterable[str]) -> Draft:
    """A draft that passes every path on to `upstreams`, each a URL or NAME=URL. Raises ImportFailed."""
    draft = Draft()
    for text in upstreams:
        draft.upstreams.append(upstream_of(text, [each.name for each in draft.upstreams]))
    several = len(draft.upstreams) > 1
    for upstream in draft.upstreams:
        prefix = f"/{upstream.name.replace('_', '-')}" if several else ""
        settings: dict[str, object] = {"path": f"{prefix}/{{path:path}}", "upstream": upstream.name}
        if several:
            settings["upstream_path"] = "/{path}"
        settings |= {"methods": "any", "ttl": "origin"}
        why = "Every path of this API. A more specific path wins, so routes with a ttl of their own go beside it."
        reason = "what the API's Cache-Control, Expires and ETag say; without them, nothing is stored"
        draft.routes.append(RouteDraft(upstream.name, settings, why, {"ttl": reason}))
    return draft


def upstream_of(text: str, taken: Iterable[str] = ()) -> UpstreamDraft:
    """An upstream, from a URL or NAME=URL. Raises ImportFailed."""
    name, equals, url = text.partition("=")
    if not equals or "://" in name or "/" in name:
        name, url = "", text
    if "://" not in url:
        url = f"http://{url}"
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        host = ""
    if not host or parts.scheme not in ("http", "https"):
        raise ImportFailed(
            f"{text} isn't the URL of an API; expected http://localhost:3000 or catalog=http://localhost:3000"
        )
    return UpstreamDraft(unique(as_name(name or _name_of(host), "api"), taken), url.rstrip("/"))


def _name_of(host: str) -> str:
    """The word of a host name that tells most: catalog of catalog.example.com, example of api.example.com."""
    if is_address(host):
        return "api"
    words = [word for word in host.split(".") if word not in _GENERIC_HOSTS]
    return words[0] if words else "api"


def as_name(text: str, default: str) -> str:
    """`text` as the name of a route or an upstream: lower-case words joined by _."""
    words = re.sub(r"([a-z0-9])([A-Z])|([A-Z])([A-Z][a-z])", r"\1\3_\2\4", text)
    name = re.sub("[^a-z0-9]+", "_", words.lower()).strip("_")
    name = name if re.match("[a-z]", name) else f"{default}_{name}"
    return name[:LONGEST_NAME].rstrip("_")


def unique(name: str, taken: Iterable[str]) -> str:
    known, number, found = set(taken), 2, name
    while found in known:
        found, number = f"{name}_{number}", number + 1
    return found


# --- the file ----------------------------------------------------------------------------------------------

_HEAD = f"""\
# yaml-language-server: $schema={SCHEMA_FILE}
#
# The gateway's configuration. Run it with `gateway serve`; `gateway check` prints every setting and its source, and
# `gateway routes` lists the routes in matching order. The gateway reloads this file when it changes.
#
# Any setting can be overridden without editing this file, by `.env` or the environment: the path to it, in capitals,
# joined by two underscores, such as GATEWAY_ROUTES__PRODUCT__TTL=3s or GATEWAY_MEMORY=1GiB.
# Durations are 250ms, 30s, 5m, 1h, 2d; sizes are 64KiB, 256MiB, 1GiB.

host: 127.0.0.1 # 0.0.0.0 for all interfaces
port: 8000

# The cache that all workers and replicas share. `embedded` is a Valkey that the gateway starts and stops; in production
# redis://host:6379/0, or rediss:// for TLS; `none` for memory only.
redis_url: embedded

# Size of the memory cache, for all workers together.
memory: 256MiB

# Metrics, health and the console (with GATEWAY_ADMIN_TOKEN set). Keep it private; `none` disables it.
admin_listen: 127.0.0.1:9000
"""

_NEXT = """\
  # A route with a ttl of its own, whatever the API says. Its windows: fresh for 30 s; for 60 s more it is served stale
  # at once and refreshed in the background; until 10 minutes after the ttl it is served stale if the API fails.
  #
  # product:
  #   path: /products/{{id}}
  #   upstream: {upstream}
  #   upstream_path: /items/{{id}} # default: the same path
  #   methods: [GET]
  #   ttl: 30s
  #   stale_while_revalidate: 60s
  #   stale_if_error: 10m
  #   query: [page] # the query parameters that are forwarded; default: all
  #   tags: ["product:{{id}}"] # gateway purge --tag product:7

  # One response joined from several: each part has its own cache entry, ttl and timeout. `gateway explain` of its URL
  # says what becomes of each.
  #
  # screen:
  #   path: /screen/{{id}}
  #   deadline: 2s
  #   parts:
  #     product:
  #       upstream: {upstream}
  #       path: /items/{{id}}
  #       ttl: 30s
  #     reviews:
  #       upstream: {other}
  #       path: /items/{{id}}/reviews
  #       ttl: 5m
  #       default: [] # the part may fail: this stands in for it
"""


def as_yaml_text(draft: Draft) -> str:
    """The file, with comments."""
    lines = [_HEAD, "# The APIs behind the gateway.", "upstreams:"]
    for upstream in draft.upstreams:
        lines += [
            f"  {upstream.name}:",
            f"    url: {_inline(upstream.url)}",
            "    timeout: 5s # for a complete response; then a stale one is served, or a 504",
        ]
    lines += ["", "# The most specific path wins, regardless of the order here.", "routes:"]
    for route in draft.routes:
        lines += [*_route(route), ""]
    names = [each.name for each in draft.upstreams]
    lines.append(_NEXT.format(upstream=names[0], other=names[-1]).rstrip())
    if draft.notes:
        lines += ["", "# Left out:", *(f"# - {one_line(note)}" for note in draft.notes)]
    return "\n".join(lines) + "\n"


def _route(route: RouteDraft) -> Iterator[str]:
    if route.why:
        yield f"  # {one_line(route.why)}"
    yield f"  {route.name}:"
    for setting, value in route.settings.items():
        reason = route.reasons.get(setting)
        yield f"    {setting}: {_inline(value)}" + (f" # {one_line(reason)}" if reason else "")


def one_line(text: str) -> str:
    """Without line breaks and control characters, which end a comment or steer a terminal."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())


def _inline(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def environment_example(draft: Draft) -> str:
    """`.env.example`: what differs between a developer's machine and production."""
    lines = [
        "# Copy to .env; the gateway reads it there. The environment overrides it.",
        "",
        "# The token of the console and of `gateway purge`, `ttl` and `explain`.",
        "#GATEWAY_ADMIN_TOKEN=",
        "",
        "# The Redis that all replicas share, and a secret of at least 16 characters that signs what is stored there.",
        "#GATEWAY_REDIS_URL=redis://localhost:6379/0",
        "#GATEWAY_REDIS_SECRET=",
        "",
        "# The number of CPU cores is a good choice.",
        "#GATEWAY_WORKERS=2",
        "",
        "# The APIs, where they are not those of gateway.yaml.",
        *(f"#GATEWAY_UPSTREAMS__{each.name.upper()}__URL={each.url}" for each in draft.upstreams),
    ]
    return "\n".join(lines) + "\n"
