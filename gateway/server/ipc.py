"""The messages between the supervisor and its workers, over a socket pair for each worker.

Messages are length-prefixed msgpack. The listening sockets are sent first, separately, as ancillary data. When the
supervisor is gone the worker reads the end of the stream, on every platform; on Linux the kernel has killed it before.
"""

from __future__ import annotations

import asyncio
import json
import struct
from typing import Any, TypeVar

import msgspec

from gateway.config.environment import SettingSource
from gateway.config.loader import AppSource, Loaded, rebuilt
from gateway.errors import ConfigProblem
from gateway.observability.log import LogFormat, Marked
from gateway.server.metrics_totals import Family

_LENGTH = struct.Struct("!I")
MAX_MESSAGE = 256 * 1024 * 1024


class Problem(msgspec.Struct, array_like=True):
    source: str
    key: str
    message: str

    @classmethod
    def of(cls, problem: ConfigProblem) -> Problem:
        return cls(problem.source, problem.key, problem.message)

    @property
    def problem(self) -> ConfigProblem:
        return ConfigProblem(self.source, self.key, self.message)


class Setup(msgspec.Struct):
    """A valid configuration in a message: its values as they were read, as JSON, which has integers of any size; and
    their sources."""

    number: int
    tree: str
    sources: list[tuple[tuple[str, ...], tuple[SettingSource, ...]]]
    admin_token: str | None
    app: AppSource | None = None

    @classmethod
    def of(cls, number: int, loaded: Loaded) -> Setup:
        return cls(number, json.dumps(loaded.tree), list(loaded.sources.items()), loaded.admin_token, loaded.app)

    @property
    def loaded(self) -> Loaded:
        return rebuilt(json.loads(self.tree), dict(self.sources), self.admin_token, self.app)


class Begin(msgspec.Struct, tag=True):
    """The first message: answer by this configuration, with this Redis. Of the sockets handed over, the one at `slot`
    is this worker's, those after the `slots` first are the admin listener's."""

    setup: Setup
    redis_url: str
    slot: int
    slots: int
    log_format: LogFormat = "text"


class Prepare(msgspec.Struct, tag=True):
    """Prepare the next generation, and report whether that succeeded."""

    setup: Setup


class Commit(msgspec.Struct, tag=True):
    number: int


class Abort(msgspec.Struct, tag=True):
    number: int


class Adopt(msgspec.Struct, tag=True):
    """Accept on another slot's socket too: it has no worker now."""

    slot: int


class Release(msgspec.Struct, tag=True):
    """That slot has a worker again."""

    slot: int


class Tell(msgspec.Struct, tag=True):
    """Report your metrics."""


class Totals(msgspec.Struct, tag=True):
    """The metrics of all workers, to the question of that number."""

    question: int
    families: list[Family]


class Stop(msgspec.Struct, tag=True):
    """The gateway stops: report it on /readyz, accept for `delay` seconds more, let requests in flight finish within
    `timeout`."""

    delay: float
    timeout: float


class Retire(msgspec.Struct, tag=True):
    """Another worker has taken over: stop accepting, and let requests in flight finish within `timeout` seconds."""

    timeout: float


class Workers(msgspec.Struct, tag=True):
    """How many of the configured workers are ready."""

    answering: int
    configured: int


class Alone(msgspec.Struct, tag=True):
    """Whether no other process, not even one that is starting or ending, uses this worker's Redis."""

    alone: bool


Order = Begin | Prepare | Commit | Abort | Adopt | Release | Tell | Totals | Stop | Retire | Workers | Alone


class WorkerReady(msgspec.Struct, tag=True):
    """Connections are accepted. `redis` is the state of Redis, and why it is not used; empty if there is none."""

    redis: str = ""


class CommandFailed(msgspec.Struct, tag=True):
    """It can't start."""

    message: str
    problems: list[Problem] = []


class ReloadPrepared(msgspec.Struct, tag=True):
    number: int
    problems: list[Problem] = []


class Alive(msgspec.Struct, tag=True):
    """The event loop runs."""


class PurgeReported(msgspec.Struct, tag=True):
    families: list[Family]
    asked: bool = False


class Question(msgspec.Struct, tag=True):
    """What are the metrics of all workers?"""

    question: int


class Logged(msgspec.Struct, tag=True):
    """A record for the gateway's log, which has it once, whichever of the workers send it."""

    record: Marked


Report = WorkerReady | CommandFailed | ReloadPrepared | PurgeReported | Question | Alive | Logged
M = TypeVar("M")


class Channel:
    """One end: `kind` is the union of what the other end sends."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kind: Any) -> None:
        self._reader = reader
        self._writer = writer
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(kind)

    @property
    def is_closing(self) -> bool:
        return self._writer.is_closing()

    def send(self, message: msgspec.Struct) -> None:
        """A peer that is gone is skipped: its end is detected elsewhere."""
        if not self.is_closing:
            data = self._encoder.encode(message)
            self._writer.write(_LENGTH.pack(len(data)) + data)

    async def receive(self) -> Any:
        """The next message; None if the other end is gone."""
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            if length > MAX_MESSAGE:
                return None
            return self._decoder.decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, OSError):
            return None

    async def close(self) -> None:
        """Let what was sent arrive, then end."""
        try:
            await self._writer.drain()
            self._writer.close()
            await self._writer.wait_closed()
        except OSError:
            return
