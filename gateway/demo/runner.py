"""`gateway demo`: a slow shop and the gateway in front of it, as two real processes, and what to try.

The children run in sessions of their own, so that Ctrl-C reaches this process alone, which then ends them in
order: the gateway before the shop that it asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory

from gateway.config.loader import load
from gateway.config.models import Config
from gateway.errors import ConfigError
from gateway.upstreams.httpx_api import httpx

CONFIG = Path(__file__).with_name("gateway.yaml")
IDENTITY = Path(__file__).with_name("identity.yaml")
SHOP_HOST, SHOP_PORT = "127.0.0.1", 9100
ISSUER_PORT = 9200
SHOP_DELAY = "400ms"
ADMIN_URL = "http://127.0.0.1:9000/"
"""Where the command line looks for the admin listener by itself."""
START_SECONDS = 30.0
STOP_SECONDS = 15.0
"""The gateway lets requests in flight end within 10 s."""
_PR_SET_PDEATHSIG = 1

WELCOME = """
  The shop, an API that takes 400 ms an answer:   {shop}
  The gateway in front of it:                     {gateway}

  1. Ask twice for a product:

       curl -i {gateway}/products/7

     Cache-Status goes from `fwd=miss; stored` to `hit; ttl=…`, X-Process-Time from 0.4 s to next to nothing.
     X-Shop-Request, the shop's own count, stays as it was: the second request never reached it.

  2. Let the shop fail, and ask again once the 30 s of the ttl are over:

       curl -X POST '{shop}/_demo?fail=1'

     The old answer is given at once, its ttl below zero in Cache-Status; `?fail=0` mends the shop.

  3. Fetch a whole screen, joined from five answers of three upstreams:

       curl -i {gateway}/mobile/home/7
       curl -X POST '{shop}/_demo?fail=1&only=/offers'

     Gateway-Parts says what became of each part. With the offers failing, their old copy is used, and then their
     default; Gateway-Complete says that something is missing.

  4. See what has reached the shop:

       curl {shop}/_demo

  5. Watch it, ask why, and try another TTL while it runs:

       {console}       (its token: {token})
       {admin}GATEWAY_ADMIN_TOKEN={token} {command} explain GET /products/7
       {admin}GATEWAY_ADMIN_TOKEN={token} {command} ttl set product 3s --for 10m

{identity}  The API's documentation is at {gateway}/docs, the configuration in {config}.
  Another TTL, with nothing edited:  GATEWAY_ROUTES__PRODUCT__TTL=3s {command} demo
  A configuration for APIs of yours:  {command} init http://127.0.0.1:9100
  Ctrl-C ends it all. What follows are the gateway's log lines.
"""


OF_IDENTITY = """  6. Get a token of the demo's issuer, {issuer}, and ask for a screen of your own:

       TOKEN=$(curl -s {issuer}/token -d sub=anna)
       curl -i -H "Authorization: Bearer $TOKEN" {gateway}/mobile/mine

     Another token of anna's is a hit; with `-d sub=berta` one of the three parts is fetched.

"""


class DemoError(Exception):
    """The demo can't go on; the message says why. `status` is what to exit with."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class Child:
    """A process of the demo. It is ended with its parent, even where that is killed (on Linux)."""

    def __init__(self, name: str, process: Process) -> None:
        self._name = name
        self._process = process

    async def answers(self, url: str) -> None:
        """Return once `url` answers with success. Raises DemoError."""
        async with httpx.AsyncClient(trust_env=False, timeout=START_SECONDS) as client:
            try:
                async with asyncio.timeout(START_SECONDS):
                    while not await _is_success(client, url):
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(self.died(), timeout=0.05)
            except TimeoutError:
                message = f"The {self._name} did not answer {url} within {START_SECONDS:.0f} s."
                raise DemoError(message) from None

    async def died(self) -> None:
        """Wait until it has ended by itself. Raises DemoError, always."""
        code = await self._process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
        raise DemoError(f"The {self._name} ended by itself, with {how}.", 128 - code if code < 0 else code or 1)

    async def end(self) -> None:
        """Stop it gracefully; kill it if that takes too long, or on a second signal."""
        if self._process.returncode is None:
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
        except (TimeoutError, asyncio.CancelledError):
            self._process.kill()
            await self._process.wait()


async def _is_success(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(url)).is_success
    except httpx.TransportError:
        return False


@contextlib.asynccontextmanager
async def child(name: str, *arguments: str, environ: dict[str, str] | None = None) -> AsyncIterator[Child]:
    """`python -m arguments…`, running."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *arguments,
        env=environ,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )
    started = Child(name, process)
    try:
        yield started
    finally:
        await started.end()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


async def run(config: Config, host: str, port: int, token: str) -> None:
    """Both processes, until one dies (raises DemoError) or a signal comes (raises CancelledError)."""
    _cancel_on_signals()
    shop_port = free_port(SHOP_HOST) if why_not_free(SHOP_HOST, SHOP_PORT) else SHOP_PORT
    shop_url = f"http://{SHOP_HOST}:{shop_port}"
    gateway_url = f"http://{_reachable(host)}:{port}"
    shop_command = ("gateway.demo.shop", "--host", SHOP_HOST, "--port", str(shop_port), "--delay", SHOP_DELAY)
    admin_listen = free_admin(config.admin_listen)
    environ = {
        **os.environ,
        "GATEWAY_ADMIN_TOKEN": token,
        "GATEWAY_ADMIN_LISTEN": admin_listen,
        **upstream_variables(config, shop_url),
    }
    console = console_of(admin_listen)
    admin = "" if console.startswith(ADMIN_URL) else f"GATEWAY_ADMIN_URL={console.removesuffix('/console')} "
    places = {
        "shop": shop_url,
        "gateway": gateway_url,
        "config": _shown(CONFIG),
        "command": _command(),
        "console": console,
        "token": token,
        "admin": admin,
    }
    async with child("shop", *shop_command) as shop, _issuer() as issuer:
        await shop.answers(f"{shop_url}/_demo")
        with configuration(issuer) as file:
            command = ("gateway", "serve", "--config", str(file), "--host", host, "--port", str(port))
            async with child("gateway", *command, environ=environ) as gateway:
                await gateway.answers(f"{gateway_url}/readyz")
                more = OF_IDENTITY.format(issuer=issuer, gateway=gateway_url) if issuer else ""
                print(WELCOME.format(**places, identity=more), flush=True)
                await asyncio.gather(shop.died(), gateway.died())


@contextlib.asynccontextmanager
async def _issuer() -> AsyncIterator[str]:
    """The URL of the issuer, running; empty where what it signs with is not installed."""
    if find_spec("joserfc") is None:
        yield ""
        return
    port = free_port(SHOP_HOST) if why_not_free(SHOP_HOST, ISSUER_PORT) else ISSUER_PORT
    url = f"http://{SHOP_HOST}:{port}"
    async with child("issuer", "gateway.demo.issuer", "--host", SHOP_HOST, "--port", str(port)) as issuer:
        await issuer.answers(f"{url}/jwks")
        yield url


@contextlib.contextmanager
def configuration(issuer: str) -> Iterator[Path]:
    """The demo's file of settings; with an issuer, another one that has what is in `identity.yaml` as well."""
    if not issuer:
        yield CONFIG
        return
    own, _, routes = IDENTITY.read_text("utf-8").partition("\nroutes:\n")
    own = own.replace(f"http://{SHOP_HOST}:{ISSUER_PORT}", issuer)
    with TemporaryDirectory() as directory:
        file = Path(directory) / CONFIG.name
        text = CONFIG.read_text("utf-8").replace("\nroutes:\n", f"\n{own}\nroutes:\n{routes}", 1)
        file.write_text(text, "utf-8")
        yield file


def free_admin(listen: str) -> str:
    """`admin_listen`, with another port where that one is taken."""
    if listen == "none" or listen.startswith("unix:"):
        return listen
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    return listen if why_not_free(host, int(port)) is None else f"127.0.0.1:{free_port('127.0.0.1')}"


def console_of(admin_listen: str) -> str:
    """Where a browser finds the console."""
    if admin_listen == "none" or admin_listen.startswith("unix:"):
        return f"the console is at admin_listen, which is {admin_listen}"
    host, _, port = admin_listen.rpartition(":")
    return f"http://{_reachable(host)}:{port}/console"


def upstream_variables(config: Config, shop_url: str) -> dict[str, str]:
    """What moves the upstreams that the configuration has at the shop's usual address to `shop_url`."""
    usual = f"http://{SHOP_HOST}:{SHOP_PORT}"
    if shop_url == usual:
        return {}
    at_shop = [name for name, upstream in config.upstreams.items() if upstream.url == usual]
    return {f"GATEWAY_UPSTREAMS__{name.upper()}__URL": shop_url for name in at_shop}


def _cancel_on_signals() -> None:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)


def why_not_free(host: str, port: int) -> str | None:
    """Why `host:port` cannot be listened on; None where it can."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror
        except OverflowError:
            return "ports are 0 to 65535"
        return None


def free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _reachable(host: str) -> str:
    """How this machine reaches what listens on `host`, as a URL has it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def _shown(path: Path) -> str:
    """Relative to the current folder where it is below it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _command() -> str:
    """How the user's shell starts this installation's `gateway`."""
    installed = Path(sys.executable).with_name("gateway")
    found = shutil.which("gateway")
    return "gateway" if found is not None and Path(found) == installed else _shown(installed)


def demo(host: str | None = None, port: int | None = None) -> int:
    """Run the demo until Ctrl-C. `host` and `port` override the configuration's; port 0 takes a free one.

    The exit status: 0 after Ctrl-C, that of a child that died, or 2 where the user can mend something.
    """
    try:
        loaded = load(CONFIG)
    except ConfigError:
        # The gateway says best what is wrong with it.
        return subprocess.run([sys.executable, "-m", "gateway", "check", "--config", str(CONFIG)]).returncode
    config = loaded.config
    host = host or config.host
    port = (config.port if port is None else port) or free_port(host)
    if reason := why_not_free(host, port):
        print(
            f"The gateway can't listen on {host}:{port}: {reason}.\n"
            f"Stop what listens there, or take another port:\n\n  {_command()} demo --port 8001",
            file=sys.stderr,
        )
        return 2
    try:
        asyncio.run(run(config, host, port, loaded.admin_token or token_hex(8)))
    except asyncio.CancelledError:
        print("Ended.", file=sys.stderr)
    except DemoError as error:
        print(error, file=sys.stderr)
        return error.status
    return 0
