"""Where a worker process begins: what makes its imports, nine tenths of the time until it answers, as short as can be.

It does two things before it imports the rest, which takes 0.7 s of processor time:

- The garbage collector waits. It would walk all that was imported so far again and again, and find next to nothing
  (0.3 of 85 MiB). `garbage` lets it begin, with what was made at start left out of its rounds.
- httpx's own command line stays out. `import httpx` brings it along, and with it rich, click and pygments, 0.1 s,
  unless they are not installed: that is how httpx is told here.
"""

from __future__ import annotations

import gc
import os
import signal
import sys

LEFT_OUT = ("httpx._main",)


def main(control: int, parent: int) -> None:
    """What a spawned process runs: `control` is the descriptor of its control socket, `parent` the supervisor."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # until the worker takes it, nothing is under way
    gc.disable()
    for name in LEFT_OUT:
        sys.modules[name] = None  # type: ignore[assignment]  # importing it is an ImportError, as the language has it
    from gateway.server.worker import main

    main(control, parent)
