"""The settings of `@cached` handlers, as they were decorated, and where they are found on a handler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .asks import Route
from .handler_inputs import Inputs
from .identity_key import UNKEYED, IdentityKey
from .keys import Keying
from .policy import Rules

MARK = "__gateway_cached__"


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

    @property
    def origin_name(self) -> str:
        return f"@{self.name}"

    def route(self, inputs: Inputs, max_body: int, identity_key: IdentityKey = UNKEYED) -> Route:
        """The route as the engine sees it, with what the handler declares to read in its key."""
        cookies = None if self.cookies is None else tuple(sorted({*self.cookies, *inputs.cookies}))
        vary = None if self.rules.ttl is None else tuple(sorted({*self.vary, *inputs.headers}))
        keying = Keying(vary=vary, authorization=self.authorization, cookies=cookies, identity_key=identity_key)
        return Route(self.name, self.rules, keying, max_body if self.max_body is None else self.max_body, local=True)


def cached_settings(endpoint: Any) -> tuple[Cached, str | None] | None:
    """The settings of a handler that `@cached` wraps, and the name of the Request parameter it added."""
    marked = getattr(endpoint, MARK, None)
    return marked if isinstance(marked, tuple) else None
