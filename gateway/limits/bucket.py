"""What one worker knows of one subject under one policy: its credit, and until when the limit is reached."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from gateway.limits.meter import QuotaPolicy

Subject = tuple[str, bytes]
"""A policy's text, and who is counted."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a request passes under `policy`. `remaining` more would now; `reset` is in how many seconds the whole
    burst is there again; `wait` in how many a refused request passes."""

    policy: QuotaPolicy
    admitted: bool
    remaining: int
    reset: float
    wait: float = 0.0


class Bucket:
    """What a worker knows of a subject. Times are of the clock, in seconds."""

    __slots__ = (
        "asked_at", "asking", "credit", "debt", "due", "ends", "free", "from_share", "key", "lent", "low", "policy",
        "refill", "refused_until", "share_from", "spent", "spent_at", "until", "waiting", "want",
    )  # fmt: skip

    def __init__(self, policy: QuotaPolicy, key: bytes, now: float, share: int) -> None:
        self.policy = policy
        self.key = key
        self.ends = policy.ends(now)
        self.credit = self.lent = share
        self.free = share > 0
        """Whether the credit is the share, of which the meter knows nothing."""
        self.low = share - 1
        self.until = self.ends if share else now
        self.debt = 0
        self.want = 0
        self.asked_at = float("-inf")
        self.refused_until = now
        self.spent = 0.0
        self.spent_at = now
        self.share_from = float("-inf")
        self.from_share = 0
        self.asking = self.due = self.refill = False
        self.waiting: deque[asyncio.Future[Verdict]] = deque()

    def __repr__(self) -> str:
        return f"<Bucket {self.policy.name} credit={self.credit} debt={self.debt} spent={self.spent:.1f}>"

    def spent_now(self, now: float) -> float:
        interval = self.policy.interval
        return max(0.0, self.spent - (now - self.spent_at) / interval) if interval else self.spent

    def verdict(self, now: float, *, wait: float | None = None) -> Verdict:
        """That of a request that passes, or is to wait so long."""
        policy, spent = self.policy, self.spent_now(now) + self.debt
        left = max(0, int(policy.burst - spent + 1e-6)) + (self.credit if now < self.until else 0)
        reset = self.ends - now if policy.calendar else spent * policy.interval
        return Verdict(policy, wait is None, 0 if wait is not None else min(left, policy.burst), reset, wait or 0.0)
