"""The cores that servers and load are pinned to, child processes, and a description of the machine."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

START_SECONDS = 30.0
STOP_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1


class BenchmarkError(Exception):
    """A figure cannot be had, or could not be believed; the message says why."""


def cores() -> tuple[int, int]:
    """The core of the server under test, and the core of everything else: load, upstream, Redis."""
    available = sorted(os.sched_getaffinity(0))
    if len(available) < 2:
        raise BenchmarkError("two cores are needed: one for the server, the other for the load")
    return available[0], available[1]


def describe() -> str:
    """The machine in general words: a figure means something only beside them."""
    model = "unknown processor"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return f"{len(os.sched_getaffinity(0))} cores ({model}), {platform.system()}, {_interpreter()}"


def _interpreter() -> str:
    """The version, and how it was built where that takes speed: a Python from source lacks profile-guided optimisation.

    That of a distribution is not asked: Debian's does not list the option, though it is as fast.
    """
    version = f"CPython {platform.python_version()}"
    if sys.base_prefix == "/usr":
        return f"{version} of the distribution"
    optimised = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    return version if optimised else f"{version} built without --enable-optimizations"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(
    command: Sequence[str],
    *,
    cores: Collection[int],
    port: int,
    log: Path,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A child pinned to `cores` that accepts connections on `port`. It ends with this process, whatever happens.

    Raises BenchmarkError where it doesn't start; the message ends with what it said.
    """
    with log.open("wb") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=directory,
            env={**os.environ, **(environment or {})},
            preexec_fn=lambda: _as_child(cores),
        )
    try:
        _wait_for(port, child, log)
        yield child
    finally:
        child.terminate()
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _as_child(cores: Collection[int]) -> None:
    os.sched_setaffinity(0, cores)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait_for(port: int, child: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if child.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace")[-1500:]
            raise BenchmarkError(f"{child.args!r} does not listen on {port}:\n{said}")
        time.sleep(0.02)


def cpu_seconds(pid: int) -> float:
    """The processor time that `pid`, its threads and its living children have used."""
    ticks = os.sysconf("SC_CLK_TCK")
    own = 0.0
    for process in [pid, *_children(pid)]:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        own += (int(fields[11]) + int(fields[12])) / ticks
    return own


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *_children(int(child))]
    return found
