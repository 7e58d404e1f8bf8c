"""Running the gateway: the public listener, the admin listener and the embedded Valkey, in one process."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import Iterator

import uvicorn
import uvloop

from .admin import create_admin
from .app import create_app
from .clock import SystemClock
from .config import Config
from .edge import GatewayProtocol
from .embedded import Embedded
from .errors import GatewayError
from .shared import RedisStore, SharedStore

logger = logging.getLogger("gateway")
GRACE = 10.0
BACKLOG = 2048


class ListenError(GatewayError):
    """An address cannot be listened on; the message says which, and what to do."""


def serve(config: Config, *, admin_token: str | None = None) -> None:
    """Run the gateway until SIGINT or SIGTERM; who changes something by the admin listener must know `admin_token`.

    Raises ListenError, EmbeddedError.
    """
    public = listen(config.host, config.port, "port")
    admin = None if config.admin_listen == "none" else _listen_admin(config.admin_listen)
    with contextlib.ExitStack() as stack:
        url = config.redis_url
        if url == "embedded":
            url = stack.enter_context(Embedded(maxmemory=config.redis_memory)).url
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(config, url, public, admin, admin_token))


class _Server(uvicorn.Server):
    """A server among several in one process: the signals are the process's, not its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _run(
    config: Config, redis_url: str, public: socket.socket, admin: socket.socket | None, admin_token: str | None
) -> None:
    clock = SystemClock()
    app = create_app(config, store=_store(config, redis_url, clock), clock=clock)
    _freeze()
    servers = [(_server(app, http=GatewayProtocol), public)]
    if admin is not None:
        servers.append((_server(create_admin(app, admin_token), http=GatewayProtocol, lifespan="off"), admin))
    with _signals([server for server, _ in servers]):
        host, port = public.getsockname()[:2]
        logger.info("listening on http://%s:%s", f"[{host}]" if ":" in host else host, port)
        await asyncio.gather(*(server.serve(sockets=[sock]) for server, sock in servers))


def _freeze() -> None:
    """Keep what was made at start out of the garbage collector's full rounds: walking its hundred thousand objects
    takes 80 ms, in which nobody is answered."""
    gc.collect()
    gc.freeze()


def _store(config: Config, url: str, clock: SystemClock) -> SharedStore | None:
    if url == "none":
        return None
    return RedisStore(url, prefix=config.redis_prefix, budget=config.redis_budget.total_seconds(), clock=clock)


def _server(app: object, *, http: type | str = "auto", lifespan: str = "on") -> uvicorn.Server:
    return _Server(
        uvicorn.Config(
            app,  # type: ignore[arg-type]
            http=http,
            lifespan=lifespan,  # type: ignore[arg-type]
            ws="none",
            log_config=None,
            access_log=False,
            date_header=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=int(GRACE),
        )
    )


@contextlib.contextmanager
def _signals(servers: list[uvicorn.Server]) -> Iterator[None]:
    """The first SIGINT or SIGTERM ends in order, the second at once."""

    def stop() -> None:
        for server in servers:
            server.force_exit = server.should_exit
            server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def listen(host: str, port: int, setting: str) -> socket.socket:
    """A listening socket. Raises ListenError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ListenError(
            f"cannot listen on {host}:{port}: {error.strerror}; set another by `{setting}` in the configuration, or "
            f"GATEWAY_{setting.upper()}"
        ) from None
    return sock


def _listen_admin(address: str) -> socket.socket:
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        with contextlib.suppress(FileNotFoundError):
            _remove_stale(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(path)
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            raise ListenError(f"cannot listen on {path}: {error.strerror}; set another `admin_listen`") from None
        return sock
    host, _, port = address.rpartition(":")
    return listen(host.strip("[]"), int(port), "admin_listen")


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody listens on any more."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.connect(path)
    except ConnectionRefusedError:
        os.unlink(path)
    finally:
        probe.close()
