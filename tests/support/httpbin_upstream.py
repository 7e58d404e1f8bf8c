"""httpbin, an API that no one here wrote, on waitress: a real upstream in a process of its own.

python -m tests.support.httpbin_upstream
"""

from __future__ import annotations

import sys

import waitress
from httpbin import app


def main() -> None:
    # By default waitress accepts no more than 100 connections, which the users of one test and what is kept take up.
    server = waitress.create_server(app, host="127.0.0.1", port=0, threads=8, connection_limit=1000)
    print(f"listening on http://127.0.0.1:{server.effective_port}", file=sys.stderr, flush=True)
    server.run()


if __name__ == "__main__":
    main()
