"""Memos: repeat the last response to a request line and header block while nothing that it depends on has changed.

Decides whether the last response is still valid, by comparing a few numbers instead of looking the entry up again: the
turns of its nodes in memory (the same response is there, no other may be selected, its compressed body is there), the
version of the purges, and the instant up to which its head is valid, which is never later than its freshness. On a
guarded route two more: until when the principal is known, and the epoch of who verified it. If any
differs, `hits` looks the entry up and leaves another memo. It must not know how an entry is selected or a response is
made.

A hit by a memo takes half the time of one by a lookup (docs/performance.md).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from gateway.advisor.ttl_ladder import Sight
from gateway.cache.engine import Engine
from gateway.cache.memory import MOST_USES, Node
from gateway.edge.entries import JOINED, HeaderBlock, KnownTarget, Memo, PreparedResponse, ResponseForm
from gateway.edge.head_template import TICKS
from gateway.http.forwarding import Trusted
from gateway.observability.metrics import SECONDS
from gateway.policy.entry import Entry

Note = Callable[[KnownTarget, HeaderBlock, PreparedResponse, ResponseForm, bytes, float, str, float, float], None]
"""Writes a hit's line in the access log."""


class Memos:
    """Makes memos, at most `most`, keeps them with their blocks, and answers by them. `note` writes the access log,
    `trusted` knows clients' addresses."""

    def __init__(self, engine: Engine, *, most: int, note: Note | None, trusted: Trusted) -> None:
        self._memory = engine.memory
        self._purges = engine.tiers.purges
        self._epochs = engine.tiers.purges.epochs
        self._clock = engine.clock
        self._most = most
        self._note = note
        self._trusted = trusted
        self._behind_proxies = bool(trusted)
        self._order: deque[tuple[dict[bytes, Memo], bytes]] = deque()

    def __len__(self) -> int:
        return len(self._order)

    def forget(self) -> None:
        for memos, _ in self._order:
            memos.clear()
        self._order.clear()

    def keep(
        self,
        known_target: KnownTarget,
        block: HeaderBlock,
        stored: Entry,
        ready: PreparedResponse,
        shape: ResponseForm,
        sight: Sight,
    ) -> None:
        """Remember that `stored`, which is fresh in memory, was the response."""
        node = self._memory.node(stored.key)
        source = self._memory.node(shape.coded) if shape.coded else node
        if node is None or source is None or node.value is not stored or block.close or not known_target.modern:
            return
        selector, admitted = self._memory.selector(known_target.primary), block.admitted
        if known_target.line not in block.memos:
            self._order.append((block.memos, known_target.line))
            if len(self._order) > self._most:
                memos, line = self._order.popleft()
                memos.pop(line, None)
        block.memos[known_target.line] = Memo(
            *(node, node.turn, selector, selector.turn, source, source.turn, ready.version),
            *(shape, sight, known_target.known.recorder, ready, known_target),
            None if admitted is None else (*admitted.terms, known_target.recall.admit),
        )

    def answer(
        self, memo: Memo, transport: asyncio.Transport, peer: str, block: HeaderBlock, request_id: bytes, began: float
    ) -> bool:
        """Serve the last response again, if nothing has changed since; False if that must be looked up. `began` is a
        value of the performance counter."""
        node, source, shape = memo.node, memo.source, memo.shape
        stored = source.value
        if (
            stored is None
            or node.turn != memo.turn
            or source.turn != memo.source_turn
            or memo.selector.turn != memo.selector_turn
            or self._epochs.version != memo.version
        ):
            return False
        now = self._clock.when(began)
        if now >= shape.until and not self._renewed(memo, now):
            return False
        guard = memo.guard
        if guard is not None:
            until, epoch, version, principal, admit = guard
            if now >= until or epoch.version != version:
                return False
            if admit is not None:
                client = self._trusted.client(peer, block.headers) if self._behind_proxies else peer
                if not admit(principal, client, now):
                    return False
        if source.uses < MOST_USES or node.uses < MOST_USES:
            _use(node, source)
        elapsed = time.perf_counter() - began
        ticks = int(elapsed * 1_000_000 + 0.5)
        timing = shape.timing[ticks] if ticks < TICKS else shape.ending.plain.timing(elapsed)
        body = stored.body if shape.length else b""
        if shape.length <= JOINED:
            transport.write(b"".join((shape.head, request_id, timing, shape.end, body)))
        else:
            transport.writelines((b"".join((shape.head, request_id, timing, shape.end)), body))
        sight, tally = memo.sight, shape.tally
        if now < sight.until:
            sight.count += 1
            sight.last = now
            memo.recorder.requests += 1
        else:
            memo.sight = memo.recorder.seen(memo.ready.key, now)
        tally.count += 1
        tally.seconds += elapsed
        if elapsed > SECONDS[0]:
            tally.add_slow(elapsed)
        if self._note is not None:
            if guard is not None:
                block = block.views.get(memo.known_target.known, block)
            self._note(memo.known_target, block, memo.ready, shape, request_id, began, peer, now, elapsed)
        return True

    def _renewed(self, memo: Memo, now: float) -> bool:
        """Rewrite the head for `now`; False if more may have changed than the age and the remaining freshness."""
        ready, stored = memo.ready, memo.node.value
        if memo.shape.volatile or now >= ready.fresh or stored is None:
            return False
        if now > self._purges.trusted_until:
            return False
        memo.shape.render(stored, ready, memo.known_target.known.route.rules, now, self._purges.trusted_until)
        return True


def _use(node: Node[Entry], source: Node[Entry]) -> None:
    """Count the use of both, as looking them up does."""
    if node.uses < MOST_USES:
        node.uses += 1
    if source is not node and source.uses < MOST_USES:
        source.uses += 1
