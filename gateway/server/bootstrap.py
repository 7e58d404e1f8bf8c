"""The entry point of a worker process: keeps its imports, nine tenths of its start-up time, short.

It does three things before it imports the rest, which takes 0.7 s of processor time:

- The garbage collector is disabled. It would traverse all imported objects again and again, and find next to nothing
  (0.3 of 85 MiB). `process.Garbage` starts it, with start-up objects excluded from its collections.
- httpx's own command line is not imported. `import httpx` imports it, and with it rich, click and pygments, 0.1 s,
  unless they are not installed: that is how httpx is made to skip it.
- structlog is imported without rich, for the same reason. An app may import rich later.
"""

from __future__ import annotations

import gc
import os
import signal
import sys


def leave_out() -> None:
    """Have httpx and structlog skip what a worker doesn't use."""
    for name in ("httpx._main", "rich"):
        sys.modules[name] = None  # type: ignore[assignment]  # importing it is an ImportError, as the language has it
    import gateway.observability.log  # noqa: F401

    del sys.modules["rich"]


def main(control: int, parent: int) -> None:
    """What a spawned process runs: `control` is the descriptor of its control socket, `parent` the supervisor."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # until the worker takes it, nothing is under way
    gc.disable()
    leave_out()
    try:
        from gateway.server.worker import main
    except ImportError as error:
        from gateway.internals import explained

        if (text := explained(error)) is None:
            raise
        sys.exit(text)

    main(control, parent)
