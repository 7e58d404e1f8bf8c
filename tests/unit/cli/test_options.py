"""Where commands find the configuration and the admin listener, and what they say when it doesn't answer."""

from __future__ import annotations

import asyncio
import threading
import time
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import typer
import uvicorn

from gateway.admin.app import create_admin
from gateway.app.gateway import create_app
from gateway.cache.purge_log import PurgeReport
from gateway.cli.options import WHAT_TO_DO, AdminError, admin_address, folded, request_admin, show_report
from gateway.config.loader import Loaded
from gateway.config.models import Config
from gateway.errors import ConfigError, OrderError
from gateway.routing.declared import report_of
from tests.support.commands import CONFIG, run, told
from tests.support.gateways import served


@pytest.mark.parametrize(
    ("body", "said"), [(b"<html>", "the response isn't JSON"), (b"[1]", "isn't a gateway's admin listener")]
)
async def test_what_is_no_admin_listener_is_said_to_be_none(
    body: bytes, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def other(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async with served(other) as url:
        monkeypatch.setenv("GATEWAY_ADMIN_URL", url)
        with pytest.raises(AdminError, match=said):
            await asyncio.to_thread(request_admin, "/audit")


def test_where_no_gateway_answers_the_setting_is_named_and_there_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GATEWAY_ADMIN_URL", "http://127.0.0.1:9")
    said = told(monkeypatch, capsys, "audit")
    assert said.startswith("can't connect to http://127.0.0.1:9")
    assert "set GATEWAY_ADMIN_URL" in said


def test_commands_find_the_admin_listener_as_serve_does(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert admin_address().url == "http://127.0.0.1:9000"
    (folder / "gateway.yaml").write_text('admin_listen: "0.0.0.0:9001"\n')
    (folder / ".env").write_text("GATEWAY_ADMIN_TOKEN=secret\n")
    found = admin_address()
    assert (found.url, found.source, found.token) == (
        "http://127.0.0.1:9001",
        "admin_listen, gateway.yaml line 1",
        "secret",
    )
    (folder / "other.yaml").write_text("admin_listen: unix:/run/admin.sock\nport: no port\n")
    assert admin_address(Path("other.yaml")).socket == "/run/admin.sock"
    (folder / ".env").write_text("GATEWAY_ADMIN_LISTEN='[::]:9002'\n")
    assert admin_address().url == "http://[::1]:9002"
    (folder / ".env").write_text("GATEWAY_ADMIN_URL=http://admin.internal:1/\n")
    assert admin_address(Path("other.yaml")).url == "http://admin.internal:1"
    monkeypatch.setenv("GATEWAY_ADMIN_URL", "unix:/run/other.sock")
    assert admin_address().socket == "/run/other.sock"
    assert admin_address(url="localhost:9003").url == "http://localhost:9003"


def test_commands_read_the_token_of_a_file_and_say_why_they_can_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "token").write_text("secret\n")
    monkeypatch.setenv("GATEWAY_ADMIN_TOKEN_FILE", "token")
    assert admin_address().token == "secret"
    (folder / "token").unlink()
    with pytest.raises(OrderError, match="GATEWAY_ADMIN_TOKEN_FILE names token, which can't be read"):
        admin_address()


def test_a_broken_file_hinders_no_command_unless_it_was_named(folder: Path) -> None:
    (folder / "gateway.yaml").write_text("a: [")
    assert admin_address().url == "http://127.0.0.1:9000"
    with pytest.raises(ConfigError):
        admin_address(Path("gateway.yaml"))


def test_without_an_admin_listener_the_setting_is_named(folder: Path) -> None:
    (folder / "gateway.yaml").write_text("admin_listen: none\n")
    with pytest.raises(AdminError, match=r"admin_listen is none \(gateway.yaml line 1\)"):
        admin_address()


def test_a_report_that_is_not_complete_ends_with_its_reason_and_status_3(capsys: pytest.CaptureFixture[str]) -> None:
    silenced = PurgeReport(2, 2, 0.01, settled=False)
    with pytest.raises(typer.Exit) as ended:
        show_report(report_of(silenced))
    assert ended.value.exit_code == 3
    assert tuple(capsys.readouterr()) == ("2 of 2 workers have confirmed, in 10 ms.\n", f"{silenced.detail}\n")
    show_report(report_of(PurgeReport(1, 1, 0.002)), err=True)
    assert tuple(capsys.readouterr()) == ("", "1 of 1 worker has confirmed, in 2 ms.\n")


def test_a_listener_on_a_unix_socket_is_asked(folder: Path) -> None:
    loaded = Loaded(Config.model_validate(CONFIG), {}, ())
    path = str(folder / "admin.sock")
    app = create_admin(create_app(loaded), "secret")
    server = uvicorn.Server(uvicorn.Config(app, uds=path, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until = time.monotonic() + 10
        while not server.started and time.monotonic() < until:
            thread.join(0.01)
        (folder / "gateway.yaml").write_text(f"admin_listen: unix:{path}\n")
        (folder / ".env").write_text("GATEWAY_ADMIN_TOKEN=secret\n")
        assert run("purge", "--all").output.startswith("Purged: everything.\n1 of 1 worker has confirmed")
        (folder / "gateway.yaml").unlink()
        assert run("purge", "--all", "--admin-url", f"unix:{path}").exit_code == 0
    finally:
        server.should_exit = True
        thread.join(10)


async def test_the_public_port_in_place_of_the_admin_listener_is_explained(folder: Path) -> None:
    app = create_app({**CONFIG, "routes": {}})
    async with served(app) as url:
        for order in (("purge", "--all"), ("audit",), ("ttl", "reset", "item"), ("check", "--running")):
            result = await asyncio.to_thread(run, *order, "--admin-url", url)
            assert "isn't an admin listener; is it the public port?" in str(result.exception)


def test_a_message_with_lines_of_its_own_keeps_them_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", TerminalOutput())
    assert folded(WHAT_TO_DO) == WHAT_TO_DO
    assert "\n" in folded("  a problem " * 20)


class TerminalOutput(StringIO):
    def isatty(self) -> bool:
        return True
