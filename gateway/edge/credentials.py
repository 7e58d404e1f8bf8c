"""Credentials at the edge: header blocks without them, and requests that are let in without the app.

Decides which block a request with a credential has: those of all clients that send the same fields besides it are
judged once. And by which fields a route selects its response (`Credentials.view`): those after admission, made of the
principal that a provider remembers, or verifies without a wait (`identity.admission`), as long as that holds. It must
not refuse anything; the app does.

Blocks with a credential are in the process's memory alone, at most so many and so large; a repeated request compares
two numbers more than one without a credential (`response_memos`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from gateway.edge.entries import NOT_PLAIN, HeaderBlock, KnownRoute, KnownTarget
from gateway.edge.header_block import REMEMBERED
from gateway.http.headers import HOP_BY_HOP, Headers
from gateway.identity.admission import Admitted, Epoch
from gateway.policy.identity_key import IdentityKey
from gateway.policy.vary import Suffixes

LONGEST_CREDENTIAL = 8 * 1024 + 64
"""Bytes of a field with a credential that is taken out of its block: the longest token, and its scheme."""
BLOCK_BYTES = 6 * 1024
"""Approximate size of a block, and of its views and the fields in them, beside its credential."""
_BEGINNING = 24
"""Bytes by which a credential is looked for in its block: a long text takes as many bytes again to prepare for."""
_JUDGED = NOT_PLAIN | HOP_BY_HOP | {b"host", b"origin", b"accept-encoding", b"if-none-match", b"if-modified-since"}
_OPEN = Epoch()

Selecting = tuple[dict[KnownRoute, str | None], Suffixes]
"""`bases` and `vary` of a block: by what its fields select a response."""


class Credentials:
    """The blocks of an edge whose fields have a credential of one of `sources` (as a provider names them). `judged`
    makes a block of its text and its fields. `most` is how many are remembered, `room` their size in bytes,
    approximately."""

    def __init__(
        self,
        sources: Iterable[str],
        judged: Callable[[bytes, list[tuple[bytes, bytes]]], HeaderBlock],
        identity_key: IdentityKey,
        *,
        most: int,
        room: int,
    ) -> None:
        self._fields = frozenset(
            name for name in map(_field_of, sources) if name not in _JUDGED and not name.startswith(_FORWARDING)
        )
        self._judged = judged
        self._identity_key = identity_key
        self._most, self._room = most, room
        self._blocks: dict[tuple[bytes, bytes], HeaderBlock] = {}
        self._size = 0
        self._selecting: dict[tuple[KnownRoute, tuple[tuple[bytes, bytes], ...]], Selecting] = {}
        """By a route and the fields after admission to it."""

    def __len__(self) -> int:
        return len(self._blocks)

    def __repr__(self) -> str:
        return f"<Credentials {len(self)} blocks, {self._size} bytes>"

    def forget(self) -> None:
        self._blocks.clear()
        self._selecting.clear()
        self._size = 0

    def block(self, text: bytes, headers: Headers, templates: dict[bytes, HeaderBlock]) -> HeaderBlock | None:
        """The block of `headers`, whose bytes are `text`; None if they have no credential that is taken out of them.
        `templates` are the blocks without one that are remembered."""
        at = next((at for at, (name, value) in enumerate(headers) if name in self._fields and value), None)
        if at is None or len(value := headers[at][1]) > LONGEST_CREDENTIAL:
            return None
        start = text.find(value[:_BEGINNING])
        start = start if text.startswith(value, start) else text.find(value)
        return self._block(text[:start], value, text[start + len(value) :], at, headers, templates)

    def renewed(
        self, block: HeaderBlock, before: bytes, value: bytes, after: bytes, templates: dict[bytes, HeaderBlock]
    ) -> HeaderBlock | None:
        """The block whose text is that of `block` but for its credential, which is `value`, between `before` and
        `after`."""
        at, headers = block.credential, block.headers
        if at is None or len(value) > LONGEST_CREDENTIAL:
            return None
        fields = [*headers[:at], (headers[at][0], value), *headers[at + 1 :]]
        return self._block(before, value, after, at, fields, templates)

    def _block(
        self,
        before: bytes,
        value: bytes,
        after: bytes,
        at: int,
        headers: Headers,
        templates: dict[bytes, HeaderBlock],
    ) -> HeaderBlock | None:
        # No text has a NUL: whichever of its occurrences is replaced, the two together are this text and no other.
        # A template is judged without the field at `at`, so that is a part of its name: a client may write another
        # field such that this value is found there first, and then two texts have one rest but not the same fields.
        rest = b"%d%b\0%b" % (at, before, after)
        known = self._blocks.get((rest, value))
        if known is not None:
            return known
        if len(rest) > REMEMBERED:
            return None
        template = templates.get(rest) or self._judged(rest, [*headers[:at], (headers[at][0], b""), *headers[at + 1 :]])
        block = template.with_headers([*headers], self._identity_key)
        block.credential = at
        self._keep((rest, value), block)
        return block

    def _keep(self, key: tuple[bytes, bytes], block: HeaderBlock) -> None:
        while self._blocks and (len(self._blocks) >= self._most or self._size > self._room):
            oldest = next(iter(self._blocks))
            del self._blocks[oldest]
            self._size -= _size_of(oldest)
        self._blocks[key] = block
        self._size += _size_of(key)

    def view(self, known_target: KnownTarget, block: HeaderBlock, now: float) -> HeaderBlock | None:
        """The block by which a guarded route answers: of the fields after admission. None if nothing that was admitted
        before still holds."""
        view = block.views.get(known_target.known)
        return view if view is not None and view.admitted is not None and view.admitted.holds(now) else None

    def admitted(self, known_target: KnownTarget, block: HeaderBlock, *, verify: bool) -> HeaderBlock | None:
        """The same, made; None if the app must decide. `verify` allows for a credential that was not verified
        before."""
        admission = known_target.recall.admission
        if admission is None:
            admitted: Admitted | None = Admitted([*block.headers], None, _OPEN, math.inf)
        else:
            admitted = admission.known(block.headers, self._identity_key, verify=verify)
        if admitted is None:
            block.views.pop(known_target.known, None)
            return None
        view = block.with_headers(admitted.fields, self._identity_key)
        view.admitted, view.memos = admitted, block.memos
        if block.credential is not None:
            self._share(view, known_target.known)
        block.views[known_target.known] = view
        return view

    def _share(self, view: HeaderBlock, known: KnownRoute) -> None:
        """Have a view select responses by what was worked out for another one with the same fields, such as that of the
        user's last token: it took a third of the time of a hit whose token is new (measured)."""
        key = known, tuple(view.headers)
        selecting = self._selecting.get(key)
        if selecting is not None:
            view.bases, view.vary = selecting
        elif sum(len(value) for _, value in view.headers) <= REMEMBERED:
            if len(self._selecting) * 16 >= self._most:
                del self._selecting[next(iter(self._selecting))]
            self._selecting[key] = view.bases, view.vary


_FORWARDING = (b"x-forwarded-", b"forwarded", b"trace")


def _field_of(source: str) -> bytes:
    return b"cookie" if source.startswith("cookie:") else source.encode("latin-1")


def _size_of(key: tuple[bytes, bytes]) -> int:
    return len(key[0]) + len(key[1]) + BLOCK_BYTES
