"""What the check of a rate limit costs a hit, by processor time.

python -m benchmarks.limits
"""

from __future__ import annotations

import asyncio
import time

from gateway.clock import SystemClock
from gateway.config.rate_limits import RateLimitConfig
from gateway.limits.limiter import Limiter
from gateway.limits.route_limits import Limit, RouteLimits
from gateway.policy.identity_key import UNKEYED

ROUNDS = 15
CHECKS = 20_000


async def check() -> float:
    """Nanoseconds of one check of a route's limit, the best of all rounds: it is done for each hit at the edge."""
    limit = Limit.of("user", RateLimitConfig(by="client", rate="1000000/s"))
    clock = SystemClock()
    limits = RouteLimits(Limiter(clock, UNKEYED), of_all=(limit,))
    best = float("inf")
    for _ in range(ROUNDS):
        for _ in range(30):
            await limits.limiter.acquire(*limit.counted(None, "192.0.2.1"))
        began = time.thread_time()
        now = clock.now()
        passed = sum(limits.admits_hit(None, "192.0.2.1", now) for _ in range(CHECKS))
        spent = (time.thread_time() - began) / CHECKS * 1e9
        best = min(best, spent) if passed == CHECKS else best
    return best


if __name__ == "__main__":
    print(f"the check of a rate limit: {asyncio.run(check()):.0f} ns")
