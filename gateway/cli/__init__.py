"""The `gateway` command."""

from __future__ import annotations


def main() -> None:
    """Runs the command line; imported late, so that the package itself costs nothing."""
    import os
    import signal
    import sys

    def end(*_: object) -> None:
        # Until the supervisor takes the signals nothing is served, and there is nothing to end but a worker that ends
        # with this process. An exception could be lost in whatever is being imported.
        os._exit(0)

    if "serve" in sys.argv[1:]:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
    from gateway.cli.commands import main as run

    run()
