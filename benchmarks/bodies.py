"""Hits of a POST that is a read beside hits of a GET, by wrk in turn on one worker.

    python -m benchmarks.bodies [--seconds 4] [--turns 3]

The response is the same, 1 KiB; the requests have a phone's fields and a body of 60 bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import statistics
import subprocess
import tempfile
import urllib.request
from pathlib import Path

from benchmarks.streams import child, free_port
from benchmarks.traffic import PHONE

CONFIGURATION = """\
port: {port}
redis_url: none
workers: 1
admin_listen: none
access_log: false
upstreams: {{origin: {{url: "http://127.0.0.1:{origin}"}}}}
routes:
  search:
    path: /cached/1KiB/0
    upstream: origin
    ttl: 1h
    methods: [GET, POST]
    reads: [POST]
    body: {{normalise: json}}
"""
SCRIPT = """\
local n, method, content = 0, "{method}", [[{content}]]
local head = " /cached/1KiB/0 HTTP/1.1\\r\\nHost: a\\r\\n{fields}X-Request-ID: 5f0c2f6e-8b1d-4c3e-9a55-"
function request()
  n = n + 1
  return method .. head .. (100000000000 + n) .. "\\r\\n\\r\\n" .. content
end
"""
BODY = '{"q":"shoes","filters":{"size":[42,43],"colour":"black"}}   '


def lua(method: str) -> str:
    content = BODY if method == "POST" else ""
    fields = [line for line in PHONE if not line.lower().startswith("host:")]
    if content:
        fields += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    return SCRIPT.format(method=method, content=content, fields="".join(f"{line}\\r\\n" for line in fields))


def rate(port: int, script: Path, seconds: int) -> float:
    """Requests a second; raises ValueError where one failed."""
    command = ["wrk", "-t1", "-c32", f"-d{seconds}s", "-s", str(script), f"http://127.0.0.1:{port}/"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Requests/sec:\s+([0-9.]+)", text)
    if found is None or "Non-2xx" in text or "Socket errors" in text:
        raise ValueError(text)
    return float(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    origin, port = free_port(), free_port()
    found: dict[str, list[float]] = {"GET": [], "POST": []}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        file = Path(folder) / "gateway.yaml"
        file.write_text(CONFIGURATION.format(port=port, origin=origin))
        for method in found:
            (Path(folder) / f"{method}.lua").write_text(lua(method))
        stack.enter_context(child("benchmarks.origin", str(origin), port=origin))
        stack.enter_context(child("gateway", "serve", "--config", str(file), port=port))
        urllib.request.urlopen(f"http://127.0.0.1:{port}/cached/1KiB/0", timeout=60).close()  # a worker is ready
        for _ in range(given.turns):
            for method, rates in found.items():
                rates.append(rate(port, Path(folder) / f"{method}.lua", given.seconds))
                print(f"{method}: {rates[-1]:,.0f} hits a second", flush=True)
    ratio = statistics.median(found["POST"]) / statistics.median(found["GET"])
    print(f"a POST hit: {ratio:.2f} of the rate of a GET hit (goal: at least 0.6)")


if __name__ == "__main__":
    main()
