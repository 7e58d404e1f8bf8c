"""The edge's state for aggregates that it may splice, and for their parts.

Decides what does not change from one splice to the next, and so is made once: a part's windows after the known purges
(`CachedPart`, shared by all aggregates with the part), and an aggregate's names, keys and head (`Splice`). It must not
know whether a splice is possible (`splice`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from gateway.advisor.ttl_ladder import Recorder
from gateway.aggregates.lifetime import Joining, whole_headers
from gateway.aggregates.merge import BodyCache, WrongType
from gateway.aggregates.splice_plan import SplicePart, SplicePlan, frame_of
from gateway.cache.memory import Node
from gateway.cache.request import Route
from gateway.cache.store import Selection
from gateway.context import Outcome, PartState, RequestContext, Result
from gateway.edge.head_template import Ending
from gateway.http.headers import Headers, without
from gateway.observability.metrics import PartTally, Tally
from gateway.policy import freshness
from gateway.policy.entry import Entry
from gateway.policy.epochs import Epochs, PurgeState, tag_name
from gateway.policy.keys import key_hash

CHANGING = (b"cache-control", b"etag", b"date", b"age", b"content-length")
"""The fields of a whole's head that differ from one join to the next, in their order."""
NOTHING: Node[Entry] = Node("", None, 0, main=False)
"""Used if no node in memory shows that a response is still the same."""


class CachedPart:
    """A part's stored response after the purges known at `version`, and its contribution to the aggregate's life. It
    holds the headers, by whose identity it recognises its response, but not the body; if no header selects among its
    variants, also the node in memory, whose turn shows that it is still the same."""

    __slots__ = (
        *("as_is", "base", "born", "fresh", "hash", "headers", "index_turn", "splice_part", "initial_age", "node"),
        *("primary", "transform", "recorder", "revalidate", "started", "told", "turn", "version"),
    )

    def __init__(self, splice_part: SplicePart, recorder: Recorder) -> None:
        """`recorder` records the accesses of the part's route for the advisor."""
        assert splice_part.transform is not None
        self.recorder = recorder
        self.hash = key_hash(splice_part.base)
        self.splice_part = splice_part
        self.transform = splice_part.transform
        self.primary, self.base = splice_part.primary, splice_part.base
        self.headers: Headers | None = None
        self.version = -1
        self.node = NOTHING
        self.turn = self.index_turn = 0
        self.fresh = self.revalidate = self.born = self.initial_age = self.started = 0.0
        self.as_is = False
        self.told: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    def age(self, now: float) -> float:
        return self.initial_age + max(0.0, now - self.born)

    def take(self, stored: Entry, epochs: Epochs, body_cache: BodyCache) -> bool:
        """Switch to `stored`; False if it can't be used as it is."""
        self.headers = None
        names = (*self.splice_part.names, *map(tag_name, stored.tags))
        state, _ = epochs.judge(stored.stamp, stored.started, (*names, *stored.names))
        if state is not PurgeState.VALID or not 200 <= stored.status < 300:
            return False
        try:
            text = body_cache.prepared(self.transform, stored.key, stored.headers, stored.body).text
        except WrongType:
            return False
        rules = self.splice_part.rules
        self.as_is = text == stored.body
        windows = freshness.windows(stored, rules)
        self.fresh, self.revalidate = windows.fresh, windows.revalidate
        self.born, self.started = stored.born, stored.started
        self.initial_age = stored.initial_age if rules.ttl is None else 0.0
        if self.told != (names, stored.vary):
            self.told = (names, stored.vary)
        self.version = epochs.version
        self.headers = stored.headers
        return True


class Splice:
    """An aggregate that is joined repeatedly: for one request line and equal keyed inputs."""

    __slots__ = (
        *("asked", "base", "downstream", "ending", "first", "fixed", "frame", "hash", "heads", "index_turn"),
        *("names", "node", "places", "private", "rest", "retold", "said", "sides", "tallies", "told", "turn"),
        *("until", "vary", "vary_always", "wanted", "body_cache"),
    )

    def __init__(
        self, route: Route, joinable: SplicePlan, wanted: Selection, sides: list[CachedPart], tallies: list[PartTally]
    ) -> None:
        self.downstream = route.downstream
        self.body_cache = joinable.body_cache
        self.asked, self.said = joinable.asked, joinable.said
        self.base = wanted.plan.base
        # Where the last joined response is stored, and until when it is fresh: the next one replaces it.
        self.node = NOTHING
        self.turn = self.index_turn = self.retold = -1
        self.until = math.inf
        self.hash = key_hash(self.base)
        self.sides = sides
        self.frame, self.places = frame_of(joinable.splice_parts)
        self.wanted = wanted
        self.tallies = tallies
        self.told: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
        self.names: tuple[str, ...] = ()
        self.vary: tuple[str, ...] = ()
        self.vary_always = joinable.vary
        self.fixed = 0
        self.heads: dict[bytes, tuple[bytes, Tally]] = {}
        # The fields of the stored whole: before `Cache-Control` and `ETag`, and between these and `Date`.
        self.first: tuple[bytes, bytes] = (b"", b"")
        self.rest: tuple[tuple[bytes, bytes], ...] = ()
        self.private = False
        self.ending = ending_of(route.name, joinable.said)

    def settle(self) -> None:
        """Apply the names and fields that the parts have now."""
        self.told = [side.told for side in self.sides]
        self.names = tuple(dict.fromkeys(name for names, _ in self.told for name in names))
        self.vary = tuple(sorted({*(name for _, fields in self.told for name in fields), *self.vary_always}))
        parts = ", ".join(f"{name}=hit" for name in self.said)
        fields = whole_headers(b"", Joining(b"", 0.0, self.vary, None), parts, complete=True)
        self.first, _, _, *rest = without(fields, b"content-length", b"age")
        self.rest = tuple(rest)
        self.private = self.downstream.holds_identity(self.vary)
        self.fixed = 0
        self.heads.clear()

    def values(self, stored: Entry, age: bytes) -> tuple[bytes, bytes, bytes, bytes, bytes]:
        """The values in a head that replace `CHANGING`."""
        fields = stored.headers
        promise, tag, date = fields[1][1], fields[2][1], fields[-1][1]
        return (b"private, " + promise if self.private else promise), tag, date, age, b"%d" % len(stored.body)


def ending_of(route: str, said: Sequence[str]) -> Ending:
    """The end of the head of a whole of these parts that was joined just now."""
    parts = tuple(PartState(name, "hit", 0.0) for name in said)
    outcome = Outcome(Result.HIT, ttl=0, detail="joined")
    return Ending(RequestContext("", 0.0, "", "", "", route=route, outcome=outcome, parts=parts))
