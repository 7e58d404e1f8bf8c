"""A worker's handle in the supervisor: its process, its messages, whether it is ready."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from gateway.observability.log import Unrepeated
from gateway.server.ipc import (
    Alive,
    Alone,
    Begin,
    Channel,
    CommandFailed,
    Logged,
    Prepare,
    Problem,
    PurgeReported,
    Question,
    ReloadPrepared,
    Report,
    Retire,
    Stop,
    Tell,
    WorkerReady,
)
from gateway.server.metrics_totals import Family
from gateway.server.process import Spawned, how_it_ended

logger = logging.getLogger("gateway")
REPORT_SECONDS = 1.0
STACK_SECONDS = 0.2
"""How long a worker that is killed gets to write its stacks."""


FIRST_PAUSE = 0.1
LONGEST_PAUSE = 10.0


class Member:
    """`number` is the generation it has. `questioned` is called with the number of a question of its; `unrepeated`
    is what all workers have said."""

    def __init__(
        self,
        spawned: Spawned,
        number: int,
        questioned: Callable[[Member, int], None],
        unrepeated: Unrepeated | None = None,
    ) -> None:
        self.number = number
        self.failure: CommandFailed | None = None
        self.families: list[Family] = []
        self.settled = asyncio.Event()
        """It answers, or has ended without ever answering."""
        self.gone = asyncio.Event()
        """Its process has ended, and all its messages were read."""
        self.began = time.monotonic()
        self.unresponsive = False
        self.redis = ""
        self.ending = False
        """It was commanded to stop."""
        self._last_report = self.began
        self._spawned = spawned
        self._questioned = questioned
        self._unrepeated = unrepeated or Unrepeated()
        self._ready = False
        self._told = asyncio.Event()
        self._prepared: asyncio.Future[list[Problem]] | None = None
        self._channel: Channel | None = None
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Member pid={self.pid} {'answers' if self.answers else 'does not answer'}>"

    @property
    def pid(self) -> int:
        return self._spawned.process.pid

    @property
    def answers(self) -> bool:
        return self._ready and not self.unresponsive and not self.gone.is_set()

    @property
    def silent(self) -> float:
        """Seconds since its event loop last ran, as far as is known; 0 where it need not: before it answers, while it
        makes the next generation, and once it ends."""
        excused = not self.answers or self.ending or self._prepared is not None
        return 0.0 if excused else time.monotonic() - self._last_report

    def excuse(self) -> None:
        """Count its silence from now on."""
        self._last_report = time.monotonic()

    @property
    def lived(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began

    @property
    def how_it_ended(self) -> str:
        return how_it_ended(self._spawned.process.wait())

    async def begin(self, begin: Begin) -> None:
        """Send it a command; it got its sockets before."""
        reader, writer = await asyncio.open_unix_connection(sock=self._spawned.control)
        self._channel = Channel(reader, writer, Report)
        self._task = asyncio.ensure_future(self._listen(self._channel))
        self._channel.send(begin)

    def tell_if_alone(self, alone: bool) -> None:
        self.send(Alone(alone))

    def send(self, message: object) -> None:
        self.ending = self.ending or isinstance(message, Stop | Retire)
        if self._channel is not None:
            self._channel.send(message)  # type: ignore[arg-type]

    async def _listen(self, channel: Channel) -> None:
        while (report := await channel.receive()) is not None:
            self._last_report = time.monotonic()
            match report:
                case Alive():
                    pass
                case WorkerReady(redis):
                    self.redis = redis
                    self._ready = True
                    self.settled.set()
                case CommandFailed():
                    self.failure = report
                case PurgeReported(families, asked):
                    self.families = families
                    if asked:
                        self._told.set()
                case ReloadPrepared(_, problems):
                    if self._prepared is not None and not self._prepared.done():
                        self._prepared.set_result(problems)
                case Question(question):
                    self._questioned(self, question)
                case Logged(record):
                    if self._unrepeated.is_news(self, record.mark):
                        logger.log(record.level, "%s", record.message)
        await channel.close()
        while self._spawned.process.poll() is None:  # noqa: ASYNC110 - it has closed its control socket: it ends now
            await asyncio.sleep(0.005)
        self._unrepeated.forget(self)
        self.gone.set()
        self.settled.set()
        self._told.set()
        if self._prepared is not None and not self._prepared.done():
            self._prepared.set_result([])

    async def tell(self) -> None:
        """Request its metrics; the last report stays if it does not respond in time."""
        self._told.clear()
        self.send(Tell())
        with suppress(TimeoutError):
            async with asyncio.timeout(REPORT_SECONDS):
                await self._told.wait()

    async def prepare(self, prepare: Prepare, timeout: float) -> list[Problem]:
        """Its problems with a configuration. A worker that ends meanwhile has none."""
        self._prepared = asyncio.get_running_loop().create_future()
        self.send(prepare)
        try:
            async with asyncio.timeout(timeout):
                return await self._prepared
        except TimeoutError:
            return [Problem("", "", f"the worker {self.pid} did not confirm the configuration within {timeout:.0f} s")]
        finally:
            self._prepared = None
            self.excuse()

    async def end_unresponsive(self) -> None:
        """Kill it, and let it write its stacks before, where it can: a stopped process can't."""
        self._spawned.process.send_signal(signal.SIGUSR1)
        with suppress(TimeoutError):
            async with asyncio.timeout(STACK_SECONDS):
                await self.gone.wait()
        self.kill()

    def kill(self) -> None:
        if not self.gone.is_set():
            self._spawned.process.kill()


class Slot:
    """A place for one worker, with its socket."""

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number = number
        self.socket = sock
        self.adopter: Member | None = None
        self.member: Member | None = None
        self.failures = 0
        self.replacing = False
        self.changed = asyncio.Event()

    def pause(self) -> float:
        """Seconds to wait before the next worker begins: none, unless they die as they begin."""
        return min(FIRST_PAUSE * 2.0 ** (self.failures - 1), LONGEST_PAUSE) if self.failures else 0.0


async def either(first: asyncio.Event | asyncio.Task[None], second: asyncio.Event) -> None:
    """Wait until one of them is set, or done."""
    events = [asyncio.ensure_future(each.wait()) for each in (first, second) if isinstance(each, asyncio.Event)]
    tasks = [first] if isinstance(first, asyncio.Task) else []
    try:
        await asyncio.wait([*events, *tasks], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in events:
            each.cancel()
