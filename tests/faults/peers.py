"""nginx and Varnish, as one would set them up for the same promises, and the gateway as it is run: each a server to be
measured from outside.

They stand before the same upstream, keep what it allows, answer stale where it fails, and fetch once for all who ask
for the same. Whatever is not installed is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import Child, GatewayProcess, free_port

_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
_NGINX = """
daemon off;
worker_processes 2;
pid {directory}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    proxy_cache_path {directory}/cache keys_zone=cache:16m;
    upstream origin {{ server {origin}; keepalive 64; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://origin;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_read_timeout 2s;
            proxy_cache cache;
            proxy_cache_lock on;
            proxy_cache_background_update on;
            proxy_cache_use_stale updating error timeout invalid_header http_500 http_502 http_503 http_504;
        }}
    }}
}}
"""
_VCL = """
vcl 4.1;
backend origin {{ .host = "127.0.0.1"; .port = "{port}"; .first_byte_timeout = 2s; }}
sub vcl_backend_response {{
    set beresp.grace = 1h;
    if (beresp.status >= 500 && bereq.is_bgfetch) {{ return (abandon); }}
}}
"""


@dataclass(frozen=True, slots=True)
class Server:
    name: str
    url: str
    reload: Callable[[], None] | None = None
    replace: Callable[[], None] | None = None
    """Has the workers replaced one by one."""
    kill: Callable[[], None] | None = None
    """Kills one worker by -9."""

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


@contextlib.asynccontextmanager
async def gateway(directory: Path, origin: str, redis_url: str) -> AsyncIterator[Server]:
    settings = {
        "workers": 2,
        "redis_url": redis_url,
        "access_log": False,
        "upstreams": {"api": {"url": origin, "timeout": "2s", "breaker_failures": 0}},
        "routes": {"rest": {"path": "/{path:path}", "upstream": "api", "stale_while_revalidate": "1h"}},
    }
    settings["routes"]["rest"]["stale_if_error"] = "1h"  # type: ignore[index]
    process = await asyncio.to_thread(GatewayProcess, directory, settings)
    try:
        yield Server(
            "gateway",
            process.url,
            reload=lambda: process.signal(signal.SIGHUP),
            replace=lambda: process.signal(signal.SIGUSR2),
            kill=lambda: _kill_one(process.workers),
        )
    finally:
        await asyncio.to_thread(process.end)


def _kill_one(workers: list[int]) -> None:
    """The oldest, which has most connections; none where they are all still starting."""
    if workers:
        os.kill(workers[0], signal.SIGKILL)


def _title(pid: int) -> str:
    """What a process calls itself: of nginx `nginx: worker process`, beside those that manage its cache."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


@contextlib.asynccontextmanager
async def nginx(directory: Path, origin: str, redis_url: str) -> AsyncIterator[Server]:
    port, file = free_port(), directory / "nginx.conf"
    file.write_text(_NGINX.format(directory=directory, port=port, origin=origin.removeprefix("http://")))
    as_root = ["-g", "user root;"] if os.geteuid() == 0 else []
    child = Child(
        [_program("nginx"), "-p", str(directory), "-c", str(file), *as_root],
        output=directory / "nginx.out",
        cwd=directory,
    )
    async with _running(child, port):
        yield Server(
            "nginx",
            f"http://127.0.0.1:{port}",
            reload=lambda: child.signal(signal.SIGHUP),
            kill=lambda: _kill_one([pid for pid in child.children if "worker" in _title(pid)]),
        )


@contextlib.asynccontextmanager
async def varnish(directory: Path, origin: str, redis_url: str) -> AsyncIterator[Server]:
    port, file = free_port(), directory / "default.vcl"
    file.write_text(_VCL.format(port=origin.rpartition(":")[2]))
    listen = ["-a", f"127.0.0.1:{port}", "-f", str(file), "-n", str(directory / "varnish")]
    child = Child(
        [_program("varnishd"), "-F", "-j", "none", *listen, "-s", "malloc,64M"],
        output=directory / "varnish.out",
        cwd=directory,
    )
    async with _running(child, port):
        yield Server("Varnish", f"http://127.0.0.1:{port}")


def installed() -> list[Callable[[Path, str, str], contextlib.AbstractAsyncContextManager[Server]]]:
    """The gateway, and those of its peers that are there."""
    programs = (("nginx", nginx), ("varnishd", varnish))
    return [gateway, *(start for name, start in programs if shutil.which(name, path=_PATH))]


def _program(name: str) -> str:
    found = shutil.which(name, path=_PATH)
    assert found is not None
    return found


@contextlib.asynccontextmanager
async def _running(child: Child, port: int) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                await asyncio.sleep(0.05)
        yield
    finally:
        await asyncio.to_thread(child.end)
