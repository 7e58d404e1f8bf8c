"""What the edge knows of wholes that it may join, and of their parts.

What does not change from one join to the next is made once: of a part, its windows as the purges known by then leave
it (`AtHand`, shared by all wholes that it is in); of a whole, its names and keys, and the head of its answer (`Joint`),
by the functions that the app makes them by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from . import policy
from .answers import is_writable
from .epochs import Epochs, State, tag_name
from .exchange import Exchange, PartSaid
from .headers import Headers
from .ladder import Recorder
from .merge import WrongType, key_text
from .metrics import PartTally, Tally
from .middleware import server_timing
from .outcome import Outcome, Result, cache_status
from .policy import Rules
from .record import Stored
from .s3fifo import Node
from .tiers import Selection
from .traffic import key_hash
from .workshop import Recipe, Workshop

_CHANGING = (b"cache-control", b"etag", b"date", b"age", b"content-length")
"""The fields of a whole's head that differ from one join to the next, in their order."""
_ANY = Rules()
NOTHING: Node[Stored] = Node("", None, 0, main=False)
"""Where no node in memory tells that a response is still the same."""


@dataclass(frozen=True, slots=True)
class Ingredient:
    """A part of a whole: its constant text; or which stored response it is, under whose rules, and the names by whose
    purges it is judged.

    `unseen` are the request's fields that it does not see as they came: where its response varies on one of them, the
    app joins; None where it does not see them at all.
    """

    group: str
    constant: bytes = b""
    recipe: Recipe | None = None
    rules: Rules = _ANY
    primary: str = ""
    base: str = ""
    route: str = ""
    names: tuple[str, ...] = ()
    unseen: frozenset[str] | None = frozenset()


@dataclass(frozen=True, slots=True)
class Joinable:
    """How a whole is joined of parts that lie in memory. `asked` are those that somebody is asked for, in the order of
    their ingredients, `said` in the order in which they are told of; `vary` the request fields that all wholes of the
    route depend on."""

    ingredients: Sequence[Ingredient]
    asked: tuple[str, ...]
    said: tuple[str, ...]
    vary: frozenset[str]
    workshop: Workshop


class AtHand:
    """A part's stored response as the purges known at `version` leave it, and what it brings into a whole's life. It
    holds the headers, by whose identity it knows its response again, but not the body; where no header selects among
    its variants, also the node in memory, whose turn tells that it is still the same."""

    __slots__ = (
        *("as_is", "base", "born", "fresh", "hash", "headers", "index_turn", "ingredient", "initial_age", "node"),
        *("primary", "recipe", "recorder", "revalidate", "started", "told", "turn", "version"),
    )

    def __init__(self, ingredient: Ingredient, recorder: Recorder) -> None:
        """`recorder` gathers for the advice what is seen of the part's route."""
        assert ingredient.recipe is not None
        self.recorder = recorder
        self.hash = key_hash(ingredient.base)
        self.ingredient = ingredient
        self.recipe = ingredient.recipe
        self.primary, self.base = ingredient.primary, ingredient.base
        self.headers: Headers | None = None
        self.version = -1
        self.node = NOTHING
        self.turn = self.index_turn = 0
        self.fresh = self.revalidate = self.born = self.initial_age = self.started = 0.0
        self.as_is = False
        self.told: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    def age(self, now: float) -> float:
        return self.initial_age + max(0.0, now - self.born)

    def take(self, stored: Stored, epochs: Epochs, workshop: Workshop) -> bool:
        """Be of `stored` from now on; False where it can't be used as it lies."""
        self.headers = None
        names = (*self.ingredient.names, *map(tag_name, stored.tags))
        state, _ = epochs.judge(stored.stamp, stored.started, (*names, *stored.names))
        if state is not State.VALID or not 200 <= stored.status < 300:
            return False
        try:
            text = workshop.prepared(self.recipe, stored.key, stored.headers, stored.body).text
        except WrongType:
            return False
        rules = self.ingredient.rules
        self.as_is = text == stored.body
        windows = policy.windows(stored, rules)
        self.fresh, self.revalidate = windows.fresh, windows.revalidate
        self.born, self.started = stored.born, stored.started
        self.initial_age = stored.initial_age if rules.ttl is None else 0.0
        if self.told != (names, stored.vary):
            self.told = (names, stored.vary)
        self.version = epochs.version
        self.headers = stored.headers
        return True


class Joint:
    """A whole as it is joined again and again: by one request line, for requests whose counted inputs are the same."""

    __slots__ = (
        *("asked", "base", "end", "fixed", "frame", "hash", "heads", "index_turn", "names", "node", "places"),
        *("rest", "retold", "said", "sides", "tallies", "told", "turn", "until", "vary", "vary_always", "wanted"),
        "workshop",
    )

    def __init__(self, joinable: Joinable, wanted: Selection, sides: list[AtHand], tallies: list[PartTally]) -> None:
        self.workshop = joinable.workshop
        self.asked, self.said = joinable.asked, joinable.said
        self.base = wanted.plan.base
        # Where the whole that was joined last lies, and until when it is fresh: for the next to take its place.
        self.node = NOTHING
        self.turn = self.index_turn = self.retold = -1
        self.until = math.inf
        self.hash = key_hash(self.base)
        self.sides = sides
        self.frame, self.places = frame_of(joinable.ingredients)
        self.wanted = wanted
        self.tallies = tallies
        self.told: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
        self.names: tuple[str, ...] = ()
        self.vary: tuple[str, ...] = ()
        self.vary_always = joinable.vary
        self.fixed = 0
        self.heads: dict[bytes, tuple[bytes, Tally]] = {}
        parts = ", ".join(f"{name}=hit" for name in joinable.said).encode("ascii")
        self.rest: tuple[tuple[bytes, bytes], ...] = ((b"gateway-parts", parts), (b"gateway-complete", b"?1"))
        self.end = end_of(joinable.said)

    def settle(self) -> None:
        """Take over the names and fields that the parts are told of by now."""
        self.told = [side.told for side in self.sides]
        self.names = tuple(dict.fromkeys(name for names, _ in self.told for name in names))
        self.vary = tuple(sorted({*(name for _, fields in self.told for name in fields), *self.vary_always}))
        self.rest = (*self.rest[:2], *([(b"vary", ", ".join(self.vary).encode("ascii"))] if self.vary else []))
        self.fixed = 0
        self.heads.clear()


def frame_of(ingredients: Sequence[Ingredient]) -> tuple[list[bytes], list[int]]:
    """The body's pieces, and at which of them the parts that are asked for stand; as `merge.joined` has them."""
    pieces: list[bytes] = [b"{"]
    places = []
    for number, each in enumerate(ingredients):
        pieces[-1] += (b"," if number else b"") + key_text(each.group)
        if each.recipe is None:
            pieces[-1] += each.constant
        else:
            places.append(len(pieces))
            pieces += [b"", b""]
    pieces[-1] += b"}"
    return pieces, places


@dataclass(frozen=True, slots=True)
class End:
    """What follows the request id: the pieces between which the time that each part took stands, and what follows the
    time in all up to the ttl."""

    timing: tuple[bytes, ...]
    status: bytes

    def told(self, elapsed: float, share: float, ttl: int) -> bytes:
        """`elapsed`, in all, and `share`, each part's, are seconds."""
        ticks = int(elapsed * 1_000_000 + 0.5)
        seconds = _SECONDS[ticks] if ticks < _TICKS else b"%.6f" % elapsed
        whole = _MILLISECONDS[ticks] if ticks < _TICKS else b"%.3f" % (elapsed * 1000)
        part = int(share * 1_000_000 + 0.5)
        each = _MILLISECONDS[part] if part < _TICKS else b"%.3f" % (share * 1000)
        return b"".join((_PROCESS, seconds, each.join(self.timing), whole, self.status, b"%d" % ttl, _JOINED))


def end_of(said: Sequence[str]) -> End:
    """The end of a whole of these parts."""
    outcome = Outcome(Result.HIT, ttl=0, detail="joined")
    parts = tuple(PartSaid(name, "hit", 0.0) for name in said)
    timing = server_timing(Exchange("", 0.0, "", "", "", outcome=outcome, parts=parts), 0.0)
    pieces = (b"\r\nserver-timing: " + timing).split(b"0.000")
    status = b"\r\ncache-status: " + cache_status(outcome)
    return End(tuple(pieces[:-1]), pieces[-1] + status.partition(b"0; ")[0])


_TICKS = 1000
"""For how many microseconds the texts of a time are made beforehand."""
_SECONDS = [b"%.6f" % (ticks / 1_000_000) for ticks in range(_TICKS)]
_MILLISECONDS = [b"%.3f" % (ticks / 1000) for ticks in range(_TICKS)]
_PROCESS = b"\r\nx-process-time: "
_JOINED = b"; detail=joined\r\n\r\n"


def template_of(headers: list[tuple[bytes, bytes]]) -> bytes | None:
    """The head of a 200 as a template, which takes the values of `_CHANGING`; None where it has another form."""
    if tuple(name for name, _ in headers if name in _CHANGING) != _CHANGING or not is_writable(200, headers):
        return None
    marks = {b"content-length": b"%d"}
    lines = [
        name + b": " + (marks.get(name, b"%b") if name in _CHANGING else value.replace(b"%", b"%%")) + b"\r\n"
        for name, value in headers
    ]
    return STATUS_LINE[200] + b"".join(lines) + b"x-request-id: "
