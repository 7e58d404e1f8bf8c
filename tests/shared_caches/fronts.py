"""Shared caches of others in front of a gateway: nginx and Varnish, each as it comes, and the gateway itself.

Varnish passes requests with a cookie or Authorization by its cache unless told otherwise. Here it is told otherwise: it
looks at what the response says alone, as nginx does and as many a CDN is set.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.processes import Child, GatewayProcess, free_port

_SYSTEM = "/usr/local/sbin:/usr/sbin:/sbin"

_NGINX = """
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr notice;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    proxy_cache_path {directory}/cache levels=1:2 keys_zone=cache:8m use_temp_path=off;
    upstream gateway {{ server 127.0.0.1:{behind}; keepalive 16; }}
    server {{
        listen 127.0.0.1:{port};
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        # The client's host reaches the gateway and is in the key, as in every setup for more than one name.
        proxy_set_header Host $http_host;
        proxy_cache_key $http_host$request_uri;
        location / {{
            proxy_pass http://gateway;
            proxy_cache cache;
            add_header X-Front $upstream_cache_status always;
        }}
    }}
}}
"""

_VARNISH = """
vcl 4.1;
backend gateway {{ .host = "127.0.0.1"; .port = "{behind}"; }}
sub vcl_recv {{
    return (hash);
}}
sub vcl_deliver {{
    if (obj.hits > 0) {{ set resp.http.X-Front = "HIT"; }} else {{ set resp.http.X-Front = "MISS"; }}
}}
"""


def program(name: str) -> str | None:
    """The path of an installed program; None where it is not installed."""
    return shutil.which(name) or shutil.which(name, path=_SYSTEM)


@contextmanager
def nginx(directory: Path, behind: int) -> Iterator[str]:
    """nginx's proxy_cache in front of a port; gives its URL."""
    port, file = free_port(), directory / "nginx.conf"
    file.write_text(_NGINX.format(directory=directory, port=port, behind=behind))
    user = ["-g", "user root;"] if os.geteuid() == 0 else []
    child = Child(
        [program("nginx") or "nginx", "-e", "stderr", "-p", str(directory), "-c", str(file), *user],
        output=directory / "nginx.out",
        cwd=directory,
    )
    try:
        child.said("start worker process ")
        yield f"http://127.0.0.1:{port}"
    finally:
        child.end()


@contextmanager
def varnish(directory: Path, behind: int) -> Iterator[str]:
    """Varnish in front of a port; gives its URL."""
    port, file = free_port(), directory / "default.vcl"
    file.write_text(_VARNISH.format(behind=behind))
    work = ["-n", str(directory / "work"), "-s", "malloc,64M", "-j", "none"]
    command = [program("varnishd") or "varnishd", "-F", *work, "-a", f"127.0.0.1:{port}", "-f", str(file)]
    # It tells of its start on standard output or error, by its version.
    child = Child(["/bin/sh", "-c", 'exec "$@" 1>&2', "sh", *command], output=directory / "varnish.out", cwd=directory)
    try:
        child.said("Child launched OK")
        _wait_for_listener(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        child.end()


def _wait_for_listener(port: int) -> None:
    """Varnish says that its child is there before that child listens, and says no more."""
    for _ in range(1000):
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 5):
            return
        time.sleep(0.01)
    raise AssertionError(f"nothing listens at port {port}")


@contextmanager
def gateway(directory: Path, behind: int) -> Iterator[str]:
    """Another gateway, whose one route follows its upstream's headers; gives its URL."""
    front = GatewayProcess(
        directory,
        {
            "access_log": False,
            "upstreams": {"behind": {"url": f"http://127.0.0.1:{behind}"}},
            "routes": {"all": {"path": "/{path:path}", "upstream": "behind"}},
        },
        name="front",
    )
    try:
        yield front.url
    finally:
        front.end()


FRONTS: dict[str, Callable[..., object]] = {"nginx": nginx, "varnishd": varnish, "gateway": gateway}
