"""The retry budget of an upstream: how many requests may be retried.

The client decides which requests are safe to retry.
"""

from __future__ import annotations


class RetryBudget:
    """How many requests may be retried: at most `share` of all requests, and `reserve` at once.

    A token bucket, as in Finagle and Envoy: each request adds `share` of a token, each retry takes one, so that a
    failing upstream gets at most 1 + `share` times the clients' requests.
    """

    __slots__ = ("_reserve", "_share", "_tokens", "denied", "spent")

    def __init__(self, share: float, reserve: float = 10.0) -> None:
        self.spent = 0
        self.denied = 0
        self._share = share
        self._reserve = reserve
        self._tokens = reserve if share else 0.0

    def __repr__(self) -> str:
        return f"<RetryBudget {self._tokens:.1f} left, {self.spent} spent, {self.denied} denied>"

    def asked(self) -> None:
        self._tokens = min(self._reserve, self._tokens + self._share)

    def take(self) -> bool:
        """Whether a request may be repeated now."""
        if self._tokens < 1:
            self.denied += 1
            return False
        self._tokens -= 1
        self.spent += 1
        return True
