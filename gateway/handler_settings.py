"""The settings of `@cached` handlers, as they were decorated, and where they are found on a handler."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from .asks import Route
from .config import DEFAULT_VARY
from .config_types import Duration, Model, Size, Ttl, check_field_names, check_tags, check_vary
from .handler_inputs import Inputs, label
from .handler_key import Key, key_of
from .identity_key import UNKEYED, IdentityKey
from .keys import Keying
from .mode_words import no_modes
from .policy import Rules
from .spelling import did_you_mean

MARK = "__gateway_cached__"
CACHED_AS = "__gateway_cached_as__"
"""The attribute of a handler that is the endpoint which `@cached` made of it."""
_RULES_OF_THEIR_OWN = frozenset(
    ("authorization", "cookie", "host", "content-length", "expect", "range", "if-range", "if-match")
) | frozenset(("if-none-match", "if-modified-since", "if-unmodified-since"))
"""Fields that a handler may declare, but whose place in the key is not in `vary`."""


@dataclass
class Cached:
    """The settings of one `@cached` handler, checked when it is decorated."""

    name: str
    rules: Rules
    vary: tuple[str, ...]
    query: frozenset[str] | None
    authorization: str
    cookies: tuple[str, ...] | None
    tags: tuple[str, ...]
    deadline: float
    max_body: int | None
    edge: bool = False
    key: Key | None = None

    @property
    def origin_name(self) -> str:
        return f"@{self.name}"

    def route(self, inputs: Inputs, max_body: int, identity_key: IdentityKey = UNKEYED) -> Route:
        """The route as the engine sees it, with what the handler declares to read in its key."""
        cookies = None if self.cookies is None else tuple(sorted({*self.cookies, *inputs.cookies}))
        declared = inputs.headers - _RULES_OF_THEIR_OWN
        vary = None if self.rules.ttl is None else tuple(sorted({*self.vary, *declared}))
        keying = Keying(
            vary=vary,
            authorization=self.authorization,
            cookies=cookies,
            identities=inputs.identities,
            identity_key=identity_key,
        )
        return Route(self.name, self.rules, keying, max_body if self.max_body is None else self.max_body, local=True)


class Marked(NamedTuple):
    """What `@cached` leaves at the endpoint that it makes. `injected` is the name of the Request parameter that it
    added for itself; `passed` is a parameter that decorators above have to pass on."""

    settings: Cached
    injected: str | None
    passed: str
    endpoint: Callable[..., Any]


def cached_settings(endpoint: Any) -> Marked | None:
    """What `@cached` left at a route's endpoint, also where a decorator stands above that names what it wraps."""
    while isinstance(endpoint, partial):
        endpoint = endpoint.func
    marked = getattr(endpoint, MARK, None)
    return marked if isinstance(marked, Marked) else None


# --- arguments ---------------------------------------------------------------------------------------------


def _listed(value: object) -> object:
    if isinstance(value, str):
        raise ValueError(f"must be a list, as [{value!r}]")
    if isinstance(value, set | frozenset):
        return sorted(value)
    return list(value) if isinstance(value, Sequence) else value


def _authorization(value: object) -> object:
    allowed = ("pass", "ignore", "key")
    if value not in allowed:
        raise ValueError(f"may be 'pass', 'ignore' or 'key'{did_you_mean(str(value), allowed)}")
    return value


def _cookies(value: object) -> object:
    if value in ("pass", "ignore"):
        return value
    if isinstance(value, str):
        hint = did_you_mean(value, ("pass", "ignore"))
        raise ValueError(f"may be 'pass', 'ignore' or a list of names, as [{value!r}]{hint}")
    return _listed(value)


def _names(names: list[str]) -> list[str]:
    for name in names:
        if not name or any(char in name for char in ' ,;="\t\n\r'):
            raise ValueError(f"{name!r} is no name; write the names that count, or leave it out")
    return names


Names = Annotated[list[str], BeforeValidator(_listed)]
Flag = Annotated[bool, Field(strict=True)]


class Arguments(Model):
    """What `@cached` may be given; the same values mean the same in the configuration of a route."""

    ttl: Ttl
    stale_while_revalidate: Duration | None = None
    stale_if_error: Duration | None = None
    negative_ttl: Duration = timedelta(seconds=5)
    client_ttl: Duration | None = None
    tags: Annotated[Names, AfterValidator(check_tags), AfterValidator(no_modes("tags"))] = Field(default_factory=list)
    vary: Annotated[Names, AfterValidator(check_field_names), AfterValidator(check_vary)] | None = None
    query: Annotated[Names, AfterValidator(_names), AfterValidator(no_modes("query"))] | None = None
    authorization: Annotated[Literal["pass", "ignore", "key"], BeforeValidator(_authorization)] = "pass"
    cookies: Annotated[
        Literal["pass", "ignore"] | Annotated[list[str], AfterValidator(_names), AfterValidator(no_modes("cookies"))],
        BeforeValidator(_cookies),
    ] = "pass"
    deadline: Duration = timedelta(seconds=30)
    max_body: Size | None = None
    edge: Flag = False
    cache: Flag = True

    def settings(self, name: str, key: Key | None) -> Cached:
        """Raises ValueError where they contradict each other."""
        cookies = {"pass": None, "ignore": ()}[self.cookies] if isinstance(self.cookies, str) else tuple(self.cookies)
        if self.ttl == "origin" and self.vary is not None:
            raise ValueError("vary goes with a ttl of its own; with ttl='origin' what the handler reads decides")
        if self.ttl == "origin" and self.client_ttl is not None:
            raise ValueError("client_ttl goes with a ttl of its own; with ttl='origin' the handler decides")
        if self.edge and key is not None:
            raise ValueError("key needs what dependencies made, and with edge=True none is solved: leave one out")
        return Cached(
            name=name,
            rules=Rules(
                ttl=None if isinstance(self.ttl, str) else self.ttl.total_seconds(),
                stale_while_revalidate=_seconds(self.stale_while_revalidate),
                stale_if_error=_seconds(self.stale_if_error),
                negative_ttl=self.negative_ttl.total_seconds(),
                client_ttl=_seconds(self.client_ttl),
                cache=self.cache,
                authorization_keyed=self.authorization != "pass",
            ),
            vary=tuple(self.vary if self.vary is not None else DEFAULT_VARY),
            query=frozenset(self.query) if self.query is not None else None,
            authorization=self.authorization,
            cookies=cookies,
            tags=tuple(self.tags),
            deadline=self.deadline.total_seconds(),
            max_body=self.max_body,
            edge=self.edge,
            key=key,
        )


def _seconds(value: timedelta | None) -> float | None:
    return None if value is None else value.total_seconds()


def settings_of(function: Callable[..., Any], key: Any, given: Mapping[str, Any]) -> Cached:
    """The settings of `@cached` on a function. Raises ValueError, which names the handler, the argument, what it was
    given and what is allowed."""
    name = label(function)
    try:
        arguments = Arguments.model_validate(given)
    except ValidationError as error:
        raise ValueError(_told(name, error)) from None
    try:
        made = None if key is None else key_of(key, inspect.signature(function).parameters)
    except ValueError as error:
        raise ValueError(f"@cached on {name}: key={key!r} {error}") from None
    try:
        return arguments.settings(name, made)
    except ValueError as error:
        raise ValueError(f"@cached on {name}: {error}") from None


def _told(name: str, error: ValidationError) -> str:
    lines = []
    found = error.errors()
    for each in [each for each in found if each["type"] != "literal_error"] or found:
        argument = str(each["loc"][0])
        message = each["msg"].removeprefix("Value error, ")
        lines.append(f"@cached on {name}: {argument}={each['input']!r} {message[:1].lower()}{message[1:]}")
    return "\n".join(dict.fromkeys(lines))
