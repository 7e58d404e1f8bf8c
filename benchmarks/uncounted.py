"""The gateway without its advisor: nothing is sampled, nothing replayed. What is left of it are three additions a hit.

python -m benchmarks.uncounted CONFIG
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.filled import run
from gateway.advisor.ttl_ladder import Recorder, Sight
from gateway.app.gateway import create_app


class _Uncounted(Recorder):
    def seen(self, key: int, now: float) -> Sight:
        return self._unsampled

    def add(self, key: int, first: float, last: float, number: int) -> None:
        pass


def serve(config: Path, *, advised: bool) -> None:
    """With `advised` all is as it is: what the other is compared with."""
    app = create_app(config)
    if not advised:
        app.engine.traffic.recorders.default_factory = _Uncounted
    run(app)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), advised="advised" in sys.argv)
