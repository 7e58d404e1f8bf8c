"""How much the tests do whose length is a choice, by `--scale`: what each size is at each scale stands in `SIZES`."""

from __future__ import annotations

from typing import NamedTuple


class Size(NamedTuple):
    ci: int
    """What each change can bear: `make test` takes 15 minutes on two idle cores, all of CI 18 of its 20."""
    full: int
    """What is run before an issue is closed (`.ci/full`); the figures in README.md and docs/ are of this length."""


SIZES = {
    "aggregate_seconds": Size(3, 60),  # of load while a part's upstream is down, or its tag purged
    "aggregate_stories": Size(150, 3_000),  # lived through by a gateway with the edge and by one without
    "attack_stories": Size(100, 5_000),  # of users who send all they can at once, to one gateway
    "counted_requests": Size(3_000, 100_000),  # counted by the client and by the metrics
    "cut_off_seconds": Size(0, 10),  # that a gateway can't reach Redis while an override is set
    "edge_stories": Size(250, 20_000),  # lived through by a gateway with the edge and by one without
    "expression_values": Size(15, 50),  # for each expression of an aggregate; with 50 every one
    "front_crowd": Size(1_500, 3_000),  # requests of a crowd at two workers
    "front_requests": Size(20, 50),  # of each of two users behind a shared cache, for each row of docs/keys.md
    "handler_key_pairs": Size(60, 100),  # of requests to a handler, for each configuration
    "handler_stories": Size(150, 5_000),  # of handlers, with the edge and without
    "idle_websockets": Size(200, 500),  # whose memory is measured
    "key_pairs": Size(40, 100),  # of requests to a declared route, for each configuration
    "kill_seconds": Size(10, 60),  # of load while a worker is killed every two seconds
    "limit_asks": Size(60, 2_000),  # of a meter in Redis, beside those of its model
    "limit_seconds": Size(12, 60),  # of requests to a fleet at ten times its limit
    "limit_subjects": Size(8_000, 1_000_000),  # of one worker
    "openapi_requests": Size(15, 100),  # of each operation, of each kind
    "identity_stories": Size(60, 20_000),  # of some five requests, by a gateway with the edge and by one without
    "overload_seconds": Size(2, 20),  # of two gateways with Redis, without it, and after its return
    "override_workers": Size(2, 4),  # of each of two gateways
    "protocol_stories": Size(150, 5_000),  # of request lines and header blocks that are remembered
    "personal_stories": Size(40, 2_000),  # of aggregates with identity, of users who ask and leave
    "purge_fleets": Size(40, 400),  # of the model of the purge stream
    "purges": Size(200, 1_000),  # under load, while Redis is killed three times
    "reload_answers": Size(20, 60),  # awaited between two reloads
    "reloads": Size(20, 200),  # under load
    "revocations": Size(60, 1_000),  # under load, while Redis is killed three times
    "stream_clients": Size(60, 1_000),  # of one shared stream
    "user_requests": Size(720, 200_000),  # to two workers, half of them through another cache
    "unknown_keys": Size(200, 10_000),  # named by tokens, at two gateways
    "users": Size(300, 100_000),  # who make them
    "sent_key_pairs": Size(60, 100),  # of requests whose key holds what was sent
}
FULL_TIMEOUT = 3600.0
"""Seconds for one test at full scale; at the other the timeout is pytest's own setting."""
current = "ci"
"""The scale of this run."""


def size(name: str) -> int:
    """How much a test does at the scale of this run."""
    return int(getattr(SIZES[name], current))
