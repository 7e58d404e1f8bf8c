"""How often an address may do something in a minute: guess a token, change what all see."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limits.strategies import FixedWindowRateLimiter


class Attempts:
    """At most `most` a minute from each address, counted in fixed windows in this process.

    The library and its thread are there from the first attempt on: few gateways ever see a wrong token, and its import
    would make every start longer.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._limiter: FixedWindowRateLimiter | None = None

    def __repr__(self) -> str:
        return f"<Attempts {self._most} a minute>"

    def count(self, address: str) -> bool:
        """Count one; whether it is within the bound."""
        from limits import RateLimitItemPerMinute

        return self._counting().hit(RateLimitItemPerMinute(self._most), address)

    def are_left(self, address: str) -> bool:
        """Whether another one would be within the bound."""
        if self._limiter is None:
            return True
        from limits import RateLimitItemPerMinute

        return self._limiter.test(RateLimitItemPerMinute(self._most), address)

    def _counting(self) -> FixedWindowRateLimiter:
        if self._limiter is None:
            from limits.storage import MemoryStorage
            from limits.strategies import FixedWindowRateLimiter

            self._limiter = FixedWindowRateLimiter(MemoryStorage())
        return self._limiter
