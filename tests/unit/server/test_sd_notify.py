"""What the service manager receives, on the real datagram socket that NOTIFY_SOCKET names."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.server.sd_notify import ServiceManager
from tests.support.processes import GatewayProcess


class Receiver:
    """A service manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.settimeout(60)

    def message(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self._socket.recv(4096).decode().splitlines())

    def message_with(self, name: str) -> dict[str, str]:
        while name not in (found := self.message()):
            pass
        return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def receiver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.chdir(tmp_path)  # the path of a socket has at most 107 bytes
    found = Receiver("notify")
    yield found
    found.close()


def test_readiness_has_a_status(receiver: Receiver, tmp_path: Path) -> None:
    ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "notify")}).ready("2 workers")
    assert receiver.message() == {"READY": "1", "STATUS": "2 workers"}


def test_an_abstract_socket_is_reached() -> None:
    name = f"gateway-{os.getpid()}-{time.monotonic_ns()}"
    receiver = Receiver(f"\0{name}")
    ServiceManager({"NOTIFY_SOCKET": f"@{name}"}).ready("on")
    assert receiver.message()["READY"] == "1"
    receiver.close()


def test_stopping_asks_for_the_time_that_it_takes(receiver: Receiver, tmp_path: Path) -> None:
    ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "notify")}).stopping(2.5)
    assert receiver.message() == {"STOPPING": "1", "STATUS": "stopping", "EXTEND_TIMEOUT_USEC": "2500000"}


async def test_a_reload_has_a_beginning_with_its_time_and_an_end(receiver: Receiver, tmp_path: Path) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    with contextlib.suppress(ValueError):
        async with ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "notify")}).reloading():
            begun = receiver.message()
            raise ValueError
    assert begun["RELOADING"] == "1"
    assert before <= int(begun["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert receiver.message() == {"READY": "1"}


async def test_the_watchdog_is_fed_twice_an_interval_while_the_event_loop_runs(
    receiver: Receiver, tmp_path: Path
) -> None:
    environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000", "WATCHDOG_PID": str(os.getpid())}
    task = asyncio.ensure_future(ServiceManager(environ).keep_alive())
    began = time.monotonic()
    times = []
    for _ in range(3):
        assert await asyncio.to_thread(receiver.message) == {"WATCHDOG": "1"}
        times.append(time.monotonic() - began)
    assert times[2] >= 0.35
    task.cancel()


@pytest.mark.parametrize(
    "environ",
    [{}, {"WATCHDOG_USEC": "400000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "0"}],
)
async def test_without_a_watchdog_of_this_process_none_is_fed(environ: dict[str, str]) -> None:
    async with asyncio.timeout(5):
        await ServiceManager(environ).keep_alive()


@pytest.mark.parametrize("name", ["", "vsock:2:1234"])
def test_without_a_unix_socket_nothing_is_sent(name: str, caplog: pytest.LogCaptureFixture) -> None:
    ServiceManager({"NOTIFY_SOCKET": name}).ready("on")
    assert not caplog.records


def test_a_service_manager_that_is_gone_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    manager.ready("on")
    manager.stopping(1)
    assert [record.message.partition(" at ")[0] for record in caplog.records] == ["the service manager"]


def test_its_state_is_shown() -> None:
    assert repr(ServiceManager({"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "1500000"})) == (
        "<ServiceManager '/run/n' watchdog=1.5s>"
    )


@pytest.mark.timeout(120)
def test_a_gateway_reports_readiness_reloads_life_and_its_end(receiver: Receiver, tmp_path: Path) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"}
    settings = {"shutdown_delay": "1s", "shutdown_timeout": "2s"}
    process = GatewayProcess(tmp_path, settings, environment=environment)
    try:
        assert receiver.message_with("READY")["STATUS"] == f"1 worker on {process.url}"
        assert receiver.message_with("WATCHDOG")
        process.signal(signal.SIGHUP)
        assert receiver.message_with("RELOADING")
        assert receiver.message_with("READY")
        process.signal(signal.SIGTERM)
        assert int(receiver.message_with("STOPPING")["EXTEND_TIMEOUT_USEC"]) > 3_000_000
        assert process.wait(30) == 0
    finally:
        process.end()
