"""An app of ten routes with the cache, in each of the ways that docs/library.md has: what is changed of it, its own
tests, and the servers that run it."""

from __future__ import annotations

import difflib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.support.processes import Child, clean_environment, command_of, free_port

HERE = Path(__file__).parent / "ten_routes"
BIN = Path(sys.executable).parent
WAYS = ("existing", "gateway")


def changed(way: str) -> int:
    """Lines that are added or replaced to get from the plain app to that of a way, blank ones left out."""
    plain, ours = ((HERE / name / "main.py").read_text().splitlines() for name in ("plain", way))
    return sum(line.startswith("+ ") and line.strip() != "+" for line in difflib.ndiff(plain, ours))


@contextmanager
def child(arguments: list[str], folder: Path, directory: Path, ready: str) -> Iterator[Child]:
    path = os.pathsep.join([str(folder), str(Path.cwd())])
    environment = {"PYTHONPATH": path, "GATEWAY_ADMIN_LISTEN": "none"}
    started = Child(arguments, output=directory / "out.log", cwd=folder, environment=environment)
    try:
        started.said(ready)
        yield started
    finally:
        started.end()


def served(way: str, directory: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "gateway", "serve", "main:app", "--port", "0", *options]


def seconds_of(client: httpx.Client, target: str, **headers: str) -> float:
    """The least `X-Process-Time` of many hits."""
    found = []
    for _ in range(100):
        response = client.get(target, headers=headers)
        assert response.headers["cache-status"].startswith("gateway; hit"), response.headers
        found.append(float(response.headers["x-process-time"]))
    return min(found)


def wait_until(holds: Callable[[], bool], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_few_lines_change() -> None:
    assert changed("existing") == 3
    assert changed("gateway") == 3


@pytest.mark.parametrize("way", ["plain", *WAYS])
def test_its_own_tests_pass_unchanged(way: str) -> None:
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "-p", "no:cacheprovider", "-p", "no:asyncio"),
            *("--rootdir", str(HERE), str(HERE / "own_tests.py")),
        ],
        env=clean_environment({"PYTHONPATH": os.pathsep.join([str(HERE / way), str(Path.cwd())])}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    assert "15 passed" in run.stdout


@pytest.mark.parametrize("way", ["plain", *WAYS])
def test_gateway_serve_runs_it_with_workers_and_a_shared_cache(way: str, tmp_path: Path) -> None:
    arguments = served(way, tmp_path, "--workers", "2")
    with child(arguments, HERE / way, tmp_path, r"listening on http://") as gateway:
        url = gateway.said(r"listening on (http://\S+)")[1]
        assert sum(command_of(pid) == "gateway-worker" for pid in gateway.children) == 2
        assert any("valkey" in command_of(pid) for pid in gateway.children)
        with httpx.Client(base_url=url) as client:
            assert client.get("/books/1").json() == {"id": 1, "title": "Emma"}
            assert client.get("/books/9").json() == {"detail": "no such book"}
            assert client.get("/books/3").json() == {"reason": "out of print"}
            assert client.get("/greeting").json() == "Good day"
            assert client.get("/static/books.css").text == "body { color: black }\n"
            assert client.get("/reviews/of/1").json() == {"self": f"{url}/reviews/of/1"}
            assert client.post("/basket/1").json() == [1]
            assert client.get("/basket").json() == [1]
            client.cookies.clear()
            with connect(url.replace("http", "ws") + "/talk") as socket:
                socket.send("emma")
                assert socket.recv() == "EMMA"
            if way == "plain":
                return
            at_the_edge = seconds_of(client, "/books/1")
            by_the_app = seconds_of(client, "/books/1", origin="https://books.example")
            assert at_the_edge < by_the_app / 2
            assert "etag" in client.head("/books/1").headers


def test_a_websocket_ends_with_its_client_and_with_the_gateway(tmp_path: Path) -> None:
    with child(served("existing", tmp_path), HERE / "existing", tmp_path, r"listening on http://") as gateway:
        url = gateway.said(r"listening on (http://\S+)")[1].replace("http", "ws") + "/talk"
        for _ in range(3):
            with connect(url) as socket:
                socket.send("a")
                assert socket.recv() == "A"
        with connect(url) as socket:
            socket.send("b" * 200_000)
            assert socket.recv() == "B" * 200_000
            gateway.signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv(30)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001
            assert gateway.wait(30) == 0


@pytest.mark.alone
def test_reload_replaces_the_workers_by_the_new_code_and_keeps_the_old_ones_where_it_is_wrong(tmp_path: Path) -> None:
    folder = tmp_path / "app"
    shutil.copytree(HERE / "existing", folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(HERE / "plain", tmp_path / "plain")
    main = folder / "main.py"
    arguments = served("existing", tmp_path, "--reload")
    with child(arguments, folder, tmp_path, r"listening on http://") as gateway:
        url = gateway.said(r"listening on (http://\S+)")[1]
        with httpx.Client(base_url=url) as client:
            assert client.get("/greeting").json() == "Good day"
            main.write_text(main.read_text().replace("Good day", "Good night"))
            gateway.said("workers were replaced")
            wait_until(lambda: client.get("/greeting").json() == "Good night")
            main.write_text(main.read_text() + "\nraise RuntimeError('unfinished')\n")
            assert "main.py:" in gateway.said(r"RuntimeError: unfinished").string
            assert client.get("/greeting").json() == "Good night"


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("main", r"module:attribute"),
        ("nowhere:app", r"there is no module 'nowhere'"),
        ("main:ap", r"main has no 'ap'; did you mean app\?"),
        ("main:SECRET", r"is a bytes; expected a FastAPI"),
    ],
)
def test_what_is_no_app_is_refused_at_start(place: str, told: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "gateway", "serve", place, "--port", "0"],
        cwd=HERE / "plain",
        env=clean_environment({"PYTHONPATH": str(Path.cwd()), "GATEWAY_ADMIN_LISTEN": "none"}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert re.search(told, run.stderr), run.stderr


SERVERS = {
    "uvicorn": ([str(BIN / "uvicorn"), "main:app", "--port"], r"running on http"),
    "uvicorn with our protocol": (
        [str(BIN / "uvicorn"), "main:app", "--http", "gateway.edge:GatewayProtocol", "--port"],
        r"running on http",
    ),
    "gunicorn": ([str(BIN / "gunicorn"), "main:app", "-k", "uvicorn_worker.UvicornWorker", "-b"], r"startup complete"),
    "hypercorn": ([str(BIN / "hypercorn"), "main:app", "--bind"], r"Running on http"),
    "granian": (
        [str(BIN / "granian"), "main:app", "--interface", "asgi", "--log-level", "info", "--port"],
        r"Started worker-1 runtime|Listening at",
    ),
    "fastapi dev": ([str(BIN / "fastapi"), "dev", "main.py", "--no-reload", "--port"], r"startup complete"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("server", SERVERS)
def test_other_servers_run_it(way: str, server: str, tmp_path: Path) -> None:
    command, ready = SERVERS[server]
    port = free_port()
    address = f"127.0.0.1:{port}" if command[-1] in ("-b", "--bind") else str(port)
    # Some of them say on standard output that they are ready.
    arguments = ["/bin/sh", "-c", 'exec "$@" 1>&2', "sh", *command, address]
    with (
        child(arguments, HERE / way, tmp_path, ready) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        wait_until(lambda: _answers(client))
        assert client.get("/greeting").json() == "Good day"
        assert client.get("/books/1").json() == {"id": 1, "title": "Emma"}
        assert client.get("/books/1").headers["cache-status"].startswith("gateway; hit")
        assert client.get("/books/9").json() == {"detail": "no such book"}
        with connect(f"ws://127.0.0.1:{port}/talk") as socket:
            socket.send("emma")
            assert socket.recv() == "EMMA"
        if server == "uvicorn with our protocol":
            before = process.errors.count("/books/2")
            for _ in range(5):
                assert client.get("/books/2").json()["title"] == "Persuasion"
            client.get("/books/2?end")
            process.said(r"/books/2\?end")
            assert process.errors.count("/books/2 ") - before == 1  # uvicorn logs what reaches the app
        # Not by SIGINT: gunicorn's worker does not heed what the arbiter then sends, with any app, and is waited for.
        process.signal(signal.SIGTERM)
        process.wait(60)


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/greeting").status_code == 200
    except httpx.TransportError:
        return False
