"""How long `gateway serve` takes from the start of its process until `/readyz` says 200, with the demo's configuration.

    python -m benchmarks.ready [--runs 5] [--workers 1,2]

Each run is a new process on free ports, with the Valkey it starts itself. Told are the median, the least and the
greatest of the seconds, and the processor time that the gateway's processes had used by then: what a machine with
other work to do makes longer is the first, not the second.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

from benchmarks.machine import START_SECONDS, STOP_SECONDS, BenchmarkError, cpu_seconds, free_port

CONFIG = "gateway/demo/gateway.yaml"
_LOOK = 0.005
_ASK = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Started:
    """Until the gateway was ready: `seconds` on the clock, `cpu` seconds of all its processes."""

    seconds: float
    cpu: float


def start(workers: int) -> Started:
    """Start a gateway, see it ready, end it. Raises BenchmarkError where it does not get ready."""
    port = free_port()
    command = [sys.executable, "-m", "gateway", "serve", "-c", CONFIG, "--port", str(port), "--workers", str(workers)]
    environment = {**os.environ, "GATEWAY_ADMIN_LISTEN": f"127.0.0.1:{free_port()}"}
    began = time.monotonic()
    gateway = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not _is_ready(port):
            if gateway.poll() is not None or time.monotonic() > began + START_SECONDS:
                raise BenchmarkError(f"the gateway is not ready after {time.monotonic() - began:.1f} s")
            time.sleep(_LOOK)
        return Started(time.monotonic() - began, cpu_seconds(gateway.pid))
    finally:
        gateway.terminate()
        gateway.wait(STOP_SECONDS)


def _is_ready(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS) as asking:
        asking.sendall(_ASK)
        return asking.recv(64).startswith(b"HTTP/1.1 200")
    return False


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ready", description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--workers", default="1,2", help="numbers of workers, separated by commas")
    options = parser.parse_args()
    start(1)  # whose files are in the system's cache afterwards
    print("| workers | seconds | least | greatest | processor seconds |\n|---|---|---|---|---|")
    for workers in map(int, options.workers.split(",")):
        runs = [start(workers) for _ in range(options.runs)]
        seconds = [each.seconds for each in runs]
        cpu = statistics.median(each.cpu for each in runs)
        print(f"| {workers} | {statistics.median(seconds):.2f} | {min(seconds):.2f} | {max(seconds):.2f} | {cpu:.2f} |")


if __name__ == "__main__":
    main()
