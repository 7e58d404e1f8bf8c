"""open_files: the limit of open files is raised, and a shortage of descriptors is refused and logged once."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys

import httpx
import pytest

from gateway.observability import open_files
from gateway.observability.open_files import OpenFiles
from gateway.testing import StubUpstream, running
from gateway.upstreams import client as client_module
from tests.support.gateways import gateway, json_answer


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 500));"
        "from gateway.observability.open_files import raise_limit; print(raise_limit());"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split("\n")[:2] == ["(200, 500)", "(500, 500)"]


def test_an_eighth_is_kept_back() -> None:
    files = OpenFiles(1024)
    assert not files.is_too_many(895)
    assert files.is_too_many(896)
    assert not files.is_full(991)
    assert files.is_full(992)
    assert OpenFiles().limit == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_a_shortage_is_logged_once_and_its_end_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    now = 0.0
    monkeypatch.setattr(open_files.time, "monotonic", lambda: now)
    files = OpenFiles(1024)
    for _ in range(3):
        files.is_too_many(1000)
    files.look()
    assert files.short
    now = 6.0
    files.look()
    files.look()
    assert [each.levelname for each in caplog.records] == ["ERROR", "INFO"]
    assert "3 connections were refused" in caplog.messages[1]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
async def test_a_request_that_gets_no_descriptor_is_503_and_not_the_upstreams_failure(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_files(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no connection") from OSError(number, "Too many open files")

    monkeypatch.setattr(client_module, "FILES_PAUSE", 0.0)
    answers = [no_files] * 20 * (client_module.FILES_TRIES + 1)
    fine = json_answer()
    upstream = StubUpstream(lambda request: answers.pop()(request) if answers else fine(request))
    async with running(gateway(upstream)) as client:
        refused = [await client.get(f"/{each}") for each in range(20)]
        assert {each.status_code for each in refused} == {503}
        assert "file descriptor" in refused[0].json()["detail"]
        assert (await client.get("/after")).status_code == 200  # its breaker is closed


async def test_a_descriptor_that_comes_free_in_time_serves_the_request() -> None:
    answers: list[Exception] = [OSError(errno.EMFILE, "Too many open files")] * 3

    def short(request: httpx.Request) -> httpx.Response:
        if answers:
            raise httpx.ConnectError("no connection") from answers.pop()
        return httpx.Response(200, text="served")

    async with running(gateway(StubUpstream(short))) as client:
        assert (await client.get("/x")).text == "served"
