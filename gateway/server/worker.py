"""A worker: one process that serves requests on its supervisor's sockets.

It gets its commands on its control socket: to start, to prepare the next generation and to switch to it, to report its
metrics, to stop. The only signal it handles is SIGTERM: it then stops gracefully, and its supervisor replaces it.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from itertools import count

import uvloop
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from gateway.admin.app import create_admin
from gateway.admin.operations import operations_of
from gateway.app.gateway import create_app
from gateway.app.generation import Generation
from gateway.app.generations import Generations
from gateway.cache.redis.errors import RedisState
from gateway.cache.redis.store import RedisStore
from gateway.cache.shared_store import NoShared, SharedStore
from gateway.clock import SystemClock
from gateway.config.loader import Loaded
from gateway.config.models import Config
from gateway.config.tls import TlsFileError
from gateway.edge.certificate import Certificate
from gateway.errors import ConfigError, ConfigProblem, GatewayError
from gateway.observability.log import LogFormat, Marked, log_to_stderr, state
from gateway.observability.open_files import raise_limit
from gateway.server.http_server import LINGER, SETTLE, Server
from gateway.server.ipc import (
    Abort,
    Adopt,
    Alive,
    Alone,
    Begin,
    Channel,
    CommandFailed,
    Commit,
    Logged,
    Order,
    Prepare,
    Problem,
    PurgeReported,
    Question,
    Release,
    ReloadPrepared,
    Retire,
    Stop,
    Tell,
    Totals,
    WorkerReady,
    Workers,
)
from gateway.server.metrics_totals import Family
from gateway.server.process import Garbage, be_called, die_with
from gateway.server.served_app import served_app
from gateway.streams.shared_stream import SPREAD

logger = logging.getLogger("gateway")
REPORT_EVERY = 1.0
"""Seconds between two regular reports: a killed worker loses its counts since the last one."""
ALIVE_EVERY = 0.2
"""Seconds between two signs of life: a fifth of the least `worker_unresponsive_after`."""
ANSWER_SECONDS = 2.0
Log = Callable[[LogFormat, Callable[[Marked], bool]], None]
MAX_SOCKETS = 250
"""Linux passes 253 at once."""


def main(control: int, parent: int) -> None:
    """Entry point of a spawned process: `control` is the descriptor of its control socket, `parent` the supervisor."""
    die_with(parent, signal.SIGKILL)
    raise_limit()
    be_called("gateway-spare")
    log_to_stderr()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # it writes the stacks to standard error
    channel = socket.socket(fileno=control)
    _, descriptors, _, _ = socket.recv_fds(channel, 1, MAX_SOCKETS)
    if not descriptors:
        sys.exit(0)  # the supervisor is gone, or has no use for it
    sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(work(channel, sockets, log_to_stderr)))


async def work(control: socket.socket, sockets: list[socket.socket], log: Log = lambda *_: None) -> int:
    """Start as the control socket commands, serve on `sockets` until stopped; returns the exit status. `log` sets up
    the log in the configured form, and where marked records go."""
    reader, writer = await asyncio.open_unix_connection(sock=control)
    channel = Channel(reader, writer, Order)
    begin = await channel.receive()
    if not isinstance(begin, Begin):
        return 0
    log(begin.log_format, _to_supervisor(channel))
    try:
        worker = Worker(channel, begin, sockets)
    except ConfigError as error:
        channel.send(CommandFailed(str(error), [Problem.of(each) for each in error.problems]))
    except GatewayError as error:
        channel.send(CommandFailed(str(error)))
    else:
        return await worker.run()
    await channel.close()
    return 2


def _to_supervisor(channel: Channel) -> Callable[[Marked], bool]:
    """Hands a marked record over, from any thread; not once the channel is closed."""
    loop = asyncio.get_running_loop()

    def hand_over(record: Marked) -> bool:
        if channel.is_closing or loop.is_closed():
            return False
        loop.call_soon_threadsafe(channel.send, Logged(record))
        return True

    return hand_over


class Worker:
    """Raises ConfigError where the app can't be made of the configuration."""

    def __init__(self, channel: Channel, begin: Begin, sockets: list[socket.socket]) -> None:
        loaded = begin.setup.loaded
        clock = SystemClock()
        self._channel = channel
        self._slots = dict(enumerate(sockets[: begin.slots]))
        self._sockets = [self._slots.pop(begin.slot), *sockets[begin.slots :]]
        self.generations = Generations(
            create_app(loaded, store=_store(loaded.config, begin.redis_url, clock), clock=clock)
            if loaded.app is None
            else served_app(loaded.app, begin.redis_url)
        )
        self._garbage = Garbage(
            lambda seconds: self.generations.current.metrics.collected(seconds),
            idle=lambda: not self.generations.current.engine.under_way,
        )
        self.operations = operations_of(self.generations, loaded)
        self._prepared: dict[int, tuple[Generation, Loaded]] = {}
        self._questions: dict[int, asyncio.Future[list[Family]]] = {}
        self._numbers = count()
        self._certificate = _certificate(loaded.config)
        if self._certificate is not None:
            self.generations.current.worker_state.show_certificate(self._certificate)
        self._servers = [Server(self.generations, lifespan=True, websockets=True, certificate=self._certificate)]
        if len(self._sockets) > 1:
            admin = create_admin(lambda: self.generations.current, loaded.admin_token, self.render, self.operations)
            self._servers.append(Server(admin, lifespan=False))
        self._ending: asyncio.Task[None] | None = None

    async def run(self) -> int:
        """Serve until stopped; returns the exit status."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._end, Retire(10.0))
        works = [self._garbage.run(), self._obey(), self._report_ready(), self._tell(), self._renew_certificates()]
        if self._certificate is not None:
            works.append(self._certificate.run())
        behind = [asyncio.ensure_future(each) for each in works]
        alive = asyncio.ensure_future(self._say_alive())
        await asyncio.gather(
            *(server.serve(sockets=[sock]) for server, sock in zip(self._servers, self._sockets, strict=True))
        )
        for task in behind:
            task.cancel()
        await self.operations.aclose()
        self._channel.send(PurgeReported(self.families()))
        alive.cancel()
        await self._channel.close()
        return 0

    async def _say_alive(self) -> None:
        while True:
            await asyncio.sleep(ALIVE_EVERY)
            self._channel.send(Alive())

    async def _report_ready(self) -> None:
        for server in self._servers:
            await server.up.wait()
        await self.operations.start()
        be_called("gateway-worker")
        self._channel.send(WorkerReady(redis_state(self.generations.current.shared)))

    async def _obey(self) -> None:
        while (order := await self._channel.receive()) is not None:
            match order:
                case Prepare(setup):
                    self._prepare(setup.number, order)
                case Commit(number):
                    self._commit(number)
                case Abort(number):
                    self._prepared.pop(number, None)
                case Adopt(slot):
                    if self._ending is None:
                        await self._servers[0].adopt(slot, self._slots[slot])
                case Release(slot):
                    self._servers[0].release(slot)
                case Tell():
                    self._channel.send(PurgeReported(self.families(), asked=True))
                case Totals(question, families):
                    if (future := self._questions.pop(question, None)) is not None and not future.done():
                        future.set_result(families)
                case Workers(answering, configured):
                    self.generations.current.worker_state.workers = (answering, configured)
                case Alone(alone):
                    self.generations.current.engine.alone(alone)
                case Stop() | Retire():
                    self._end(order)
        os._exit(1)  # the supervisor is gone, and its sockets with it

    def _prepare(self, number: int, order: Prepare) -> None:
        loaded = order.setup.loaded
        try:
            self._check_certificate(loaded.config)
            self._prepared[number] = self.generations.prepare(self.operations.on(loaded)), loaded
        except ConfigError as error:
            self._channel.send(ReloadPrepared(number, [Problem.of(problem) for problem in error.problems]))
        else:
            self._channel.send(ReloadPrepared(number))

    def _check_certificate(self, config: Config) -> None:
        """Raises ConfigError where other files than before can't be used; the same ones may be broken for a while."""
        if self._certificate is not None and config.listen.tls != self._certificate.config:
            _certificate(config)

    def _commit(self, number: int) -> None:
        prepared = self._prepared.pop(number, None)
        if prepared is not None:
            gateway, loaded = prepared
            self.operations.rebase(loaded)
            self.generations.switch(gateway)
            if self._certificate is not None and loaded.config.listen.tls is not None:
                self._certificate.configure(loaded.config.listen.tls)
            self._garbage.thaw_soon()

    async def _renew_certificates(self) -> None:
        """Look for changed certificates and keys of upstreams."""
        while True:
            upstreams = self.generations.current.config.upstreams.values()
            await asyncio.sleep(min((each.tls_reload.total_seconds() for each in upstreams), default=60.0))
            if self._prepared:
                continue  # a reload, which reads the files itself, is about to take over
            try:
                if self.generations.renew_certificates():
                    said = "new connections to upstreams use their changed certificates and keys"
                    logger.info(said, extra=state("certificates of upstreams", self.generations.tls_state))
            except ConfigError as error:
                said = "%s; the previous certificates and keys stay in use"
                logger.error(said, error, extra=state("certificates of upstreams", str(error)))

    def _end(self, order: Stop | Retire) -> None:
        if self._ending is None:
            self._ending = asyncio.ensure_future(self._drain(order))

    async def _drain(self, order: Stop | Retire) -> None:
        for sock in self._slots.values():
            sock.close()  # of those that were adopted the server has a copy
        self.operations.closing.set()
        guard = self.generations.guard
        if isinstance(order, Stop):
            self.generations.current.stopping = True
        delay, linger = (order.delay, SETTLE) if isinstance(order, Stop) else (0.0, LINGER)
        await asyncio.gather(
            self.generations.current.worker_state.streams.drain(min(SPREAD, order.timeout / 2)),
            *(each.drain(guard, delay=delay, linger=linger, timeout=order.timeout) for each in self._servers),
        )

    # --- metrics -------------------------------------------------------------------------------------------

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(REPORT_EVERY)
            self.generations.guard.files.look()
            self._channel.send(PurgeReported(self.families()))

    def families(self) -> list[Family]:
        """This worker's metrics as they are now."""
        return [
            Family(
                metric.name,
                metric.type,
                metric.documentation,
                [(each.name, tuple(sorted(each.labels.items())), each.value) for each in metric.samples],
            )
            for metric in self.generations.current.metrics.collect()
        ]

    async def render(self) -> bytes:
        """The metrics of all workers, in Prometheus's text format; those of this one alone where the supervisor does
        not answer."""
        number = next(self._numbers)
        future: asyncio.Future[list[Family]] = asyncio.get_running_loop().create_future()
        self._questions[number] = future
        self._channel.send(Question(number))
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                families = await future
        except TimeoutError:
            families = self.families()
        finally:
            self._questions.pop(number, None)
        return rendered(families)


def rendered(families: Iterable[Family]) -> bytes:
    registry = CollectorRegistry()
    registry.register(_Collected(families))
    return generate_latest(registry)


class _Collected(Collector):
    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        for family in self._families:
            metric = Metric(family.name, family.text, family.kind)
            for name, labels, value in family.samples:
                metric.add_sample(name, dict(labels), value)
            yield metric


def redis_state(shared: SharedStore) -> str:
    """Whether Redis is used, and why not; empty if there is none."""
    if isinstance(shared, NoShared):
        return ""
    state: RedisState | None = getattr(shared, "state", None)  # a store of another kind has none
    why = state.why if state is not None else None
    return "in use" if shared.available else f"not used: {why or 'no answer yet'}"


def _certificate(config: Config) -> Certificate | None:
    """The public listener's certificate; None if it speaks plain HTTP. Raises ConfigError."""
    if config.listen.tls is None:
        return None
    try:
        return Certificate(config.listen.tls)
    except TlsFileError as error:
        raise ConfigError([ConfigProblem("", f"listen.tls.{error.setting}", str(error))]) from None


def _store(config: Config, url: str, clock: SystemClock) -> SharedStore | None:
    if url == "none":
        return None
    return RedisStore(url, prefix=config.redis_prefix, budget=config.redis_budget.total_seconds(), clock=clock)
