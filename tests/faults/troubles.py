"""What can be wrong with Redis, each as what is done to the proxy before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.support.proxy import FaultProxy, flipped


async def refused(proxy: FaultProxy) -> None:
    await proxy.refuse()


def late(proxy: FaultProxy) -> None:
    proxy.down.delay = 0.02


def very_late(proxy: FaultProxy) -> None:
    proxy.down.delay = 0.5


def starved(proxy: FaultProxy) -> None:
    proxy.down.bandwidth = 2000


def cut(proxy: FaultProxy) -> None:
    proxy.down.cut_after = 40


def half_closed(proxy: FaultProxy) -> None:
    proxy.down.close_after = 40


def truncated(proxy: FaultProxy) -> None:
    proxy.down.truncate_after = 40


def black_hole(proxy: FaultProxy) -> None:
    proxy.up.blackhole = True


def stalled(proxy: FaultProxy) -> None:
    proxy.stall()


def sliced(proxy: FaultProxy) -> None:
    proxy.down.slices = 1


def spoiled(proxy: FaultProxy) -> None:
    proxy.down.corrupt = flipped(0.3, seed=3)


def added(proxy: FaultProxy) -> None:
    proxy.down.extra = b"$5\r\nextra\r\n"


TROUBLES: list[Callable[[FaultProxy], Any]] = [
    *(refused, late, very_late, starved, cut, half_closed, truncated, black_hole, stalled, sliced, spoiled, added)
]
