"""Open-loop load: requests leave at a fixed rate whether or not earlier ones were answered.

    python -m benchmarks.open_loop PORT RATE SECONDS SIZE PATH COUNT STEP

Latency counts from when a request was meant to leave. So a stall delays, in the figures too, all that should have left
during it, where a closed loop would hold them back and count one slow answer (coordinated omission). One process that
never sleeps; what it adds itself (some 20 µs, more as it nears its own limit of about 60,000 a second) it adds for all.
"""

from __future__ import annotations

import gc
import json
import random
import select
import socket
import sys
from array import array
from collections import deque
from dataclasses import asdict, dataclass
from time import perf_counter

from benchmarks.traffic import SIZES, request

CONNECTIONS = 64
LAST_ANSWERS_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Latencies:
    """In microseconds from the intended start. `wrong` answers had another status or length than they should."""

    p50: float
    p99: float
    p999: float
    requests: int
    wrong: int
    unanswered: int


class Connection:
    def __init__(self, port: int, length: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.intended = 0.0
        self._length = length
        self._received = b""

    def receive(self) -> bool:
        """Whether an answer is now complete."""
        self._received += self.socket.recv(2**18)
        end = self._received.find(b"\r\n\r\n")
        return end >= 0 and len(self._received) >= end + 4 + self._length

    def take(self) -> bool:
        """Whether the answer that is complete is right."""
        received, self._received = self._received, b""
        return received.startswith(b"HTTP/1.1 200 ") and received.endswith(b'"}')


def run(port: int, rate: float, seconds: float, *, length: int, paths: list[str]) -> Latencies:
    """Ask for `paths` in random order, `rate` a second; bodies have `length` bytes."""
    total = int(rate * seconds)
    requests = [request(random.choice(paths), number) for number in range(total)]
    connections = {each.socket.fileno(): each for each in (Connection(port, length) for _ in range(CONNECTIONS))}
    with select.epoll() as poll:
        for number in connections:
            poll.register(number, select.EPOLLIN)
        found = _drive(requests, 1 / rate, connections, poll)
    for connection in connections.values():
        connection.socket.close()
    return found


def _drive(requests: list[bytes], interval: float, connections: dict[int, Connection], poll: select.epoll) -> Latencies:
    idle = deque(connections.values())
    latencies, wrong, sent, total = array("d"), 0, 0, len(requests)
    start = perf_counter() + 0.01
    end = start + total * interval + LAST_ANSWERS_SECONDS
    while len(latencies) < total and (now := perf_counter()) < end:
        while idle and sent < total and start + sent * interval <= now:
            connection = idle.popleft()
            connection.intended = start + sent * interval
            connection.socket.send(requests[sent])
            sent += 1
        for number, _ in poll.poll(0):
            connection = connections[number]
            if connection.receive():
                latencies.append(perf_counter() - connection.intended)
                wrong += not connection.take()
                idle.append(connection)
    return _summary(latencies, wrong, total)


def _summary(latencies: array[float], wrong: int, total: int) -> Latencies:
    ordered = sorted(latencies)
    p50, p99, p999 = (1e6 * ordered[min(len(ordered) - 1, int(len(ordered) * part))] for part in (0.5, 0.99, 0.999))
    return Latencies(p50, p99, p999, total, wrong, total - len(ordered))


def main(port: str, rate: str, seconds: str, size: str, path: str, count: str, step: str) -> None:
    gc.disable()
    paths = [path] if count == "1" else [f"{path}{number * int(step)}" for number in range(int(count))]
    found = run(int(port), float(rate), float(seconds), length=SIZES[size], paths=paths)
    sys.stdout.write(json.dumps(asdict(found)) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
