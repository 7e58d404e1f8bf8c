"""One request on its way through the gateway: what the layers tell each other about it. Pure.

The outermost layer makes it and puts it in the scope; the engine sets its outcome; headers, metrics and log are
made of it at the end, so that they cannot disagree.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

from .downstream import NOTHING, Downstream
from .headers import Headers
from .outcome import LOCAL, Outcome
from .record import Stored
from .targets import Target

SCOPE_KEY = "gateway.exchange"
INTERIM_KEY = "gateway.interim"
"""The ASGI extension by which the protocol class passes interim responses (1xx) on."""
LOOKED_KEY = "gateway.looked"
"""Where the protocol class says that it asked the shared tier for this request just now, and that had nothing."""


@dataclass(frozen=True, slots=True)
class PartSaid:
    """What became of a part: `text` as `Gateway-Parts` has it (`stale;age=31`), `seconds` what it took."""

    name: str
    text: str
    seconds: float


@dataclass(slots=True)
class Exchange:
    """`began` is on the performance counter. `spent` holds seconds by what they were spent on."""

    request_id: str
    began: float
    method: str
    client: str
    scheme: str
    host: str = ""
    target: Target | None = None
    headers: Headers = ()
    outcome: Outcome = LOCAL
    route: str = ""
    downstream: Downstream = field(default=NOTHING, repr=False)
    """What the answer says to the caches behind the gateway."""
    spent: dict[str, float] = field(default_factory=dict)
    forwarded_for: str = ""
    looked: bool = False
    """Whether the shared tier was asked already, and had nothing."""
    leading: bool = False
    """Whether a fetch that others may wait for is made in this request's task, which must then not be cancelled."""
    key: int = 0
    """The hash of the cache key; 0 where the cache was not asked."""
    changed: bool | None = None
    """Whether a fetch brought other content than was stored; None where nothing could be compared."""
    recall: object | None = None
    """How a declared route answered, for the edge to remember; a `hits.Recall`."""
    stored: Stored | None = field(default=None, repr=False)
    """The stored response that answered."""
    parts: tuple[PartSaid, ...] = ()
    """What became of an aggregate's parts, where they were joined for this request."""
    scope: dict[str, Any] = field(default_factory=dict, repr=False)
    """The request's scope as the routes first saw it, from which a refresh behind replays it."""

    def spend(self, what: str, seconds: float) -> None:
        self.spent[what] = self.spent.get(what, 0.0) + seconds


def exchange_of(scope: MutableMapping[str, Any]) -> Exchange | None:
    exchange = scope.get(SCOPE_KEY)
    return exchange if isinstance(exchange, Exchange) else None
