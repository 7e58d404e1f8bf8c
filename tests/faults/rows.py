"""A row of `make torture`: what is promised, the figure demanded, the figure seen."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple


class Row(NamedTuple):
    promise: str
    demanded: str
    seen: str
    met: bool | None
    """None of a peer."""


Rows = AsyncIterator[Row]
