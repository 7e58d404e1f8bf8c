"""The supervisor: the process that owns the sockets, the embedded Valkey and the workers, and serves no requests
itself.

Each worker slot has its own listening socket, which the supervisor keeps open: connections in its backlog are served by
the next worker when one is replaced. SIGHUP reloads the configuration, SIGUSR2 replaces the workers one by one, SIGTERM
and SIGINT stop all gracefully, a second one at once.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from gateway.config.loader import Loaded
from gateway.config.names import counted
from gateway.errors import ConfigError, GatewayError
from gateway.observability.log import Unrepeated, log_to_stderr
from gateway.observability.open_files import raise_limit
from gateway.server.embedded_redis import Embedded, EmbeddedError, embedded_server, without_embedded
from gateway.server.ipc import Abort, Adopt, Begin, Commit, Prepare, Release, Retire, Setup, Stop, Totals, Workers
from gateway.server.listener import forget, listen_admin, listen_for_each, url_of
from gateway.server.metrics_totals import Family, lasting, supervisor_families, total
from gateway.server.process import Spawned, spawn
from gateway.server.reload import Code, Files, difference, merged
from gateway.server.sd_notify import ServiceManager
from gateway.server.start_message import NO_SERVER, start_message
from gateway.server.worker_handle import Member, Slot, either

logger = logging.getLogger("gateway")
SHORT_LIFE = 1.0
PREPARE_SECONDS = 30.0
READY_SECONDS = 60.0
SPARE_SECONDS = 60.0
"""How long after a death a process stands by that has imported all a worker needs: who dies once may die again, and
then is replaced in a tenth of the time."""
GROUP_SECONDS = 0.2
LOOK_EVERY = 0.1
PAUSED_SECONDS = 1.0
"""How late the supervisor itself may be: if later, the machine or all of the gateway was paused."""
MARGIN = 3.0
"""Seconds beyond its time-out that a worker gets to end, before it is killed."""


class StartError(GatewayError):
    """A worker did not start; the message is the reason."""


class Supervisor:
    """`reread` reads the configuration anew; `spare` is a worker process that was started while it was first read;
    a change of `watched` files reloads.

    Raises ListenError.
    """

    def __init__(
        self,
        loaded: Loaded,
        reread: Callable[[], Loaded],
        spare: Spawned | None = None,
        watched: Sequence[Files] = (),
    ) -> None:
        config = loaded.config
        self.loaded = loaded
        self._reread = reread
        self._watched = watched
        self._spare = spare
        self._spare_ends: asyncio.TimerHandle | None = None
        self._number = 1
        self._lock = asyncio.Lock()
        self._starting: asyncio.Task[None] | None = None
        self._stopping = False
        self._reviving = False
        self._ended = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._members: set[Member] = set()
        self._departed: list[Family] = []
        self._unrepeated = Unrepeated()
        self._counts = {"deaths": 0, "unresponsive": 0, "reloads": 0, "refused": 0, "valkey": 0}
        self._slots = [
            Slot(number, sock) for number, sock in enumerate(listen_for_each(config.workers, config.host, config.port))
        ]
        self._admin = listen_admin(config.admin_listen)
        self._valkey: Embedded | None = None
        self._manager = ServiceManager()
        if config.redis_url == "embedded" and embedded_server(config.workers) is None:
            logger.warning(NO_SERVER)
        elif config.redis_url == "embedded":
            self._valkey = Embedded(maxmemory=config.redis_memory, data=config.redis_dir)

    def __repr__(self) -> str:
        return f"<Supervisor {len(self._slots)} workers, generation {self._number}>"

    async def run(self, early: Sequence[int] = ()) -> None:
        """Have all run until a signal ends it; `early` has those that came before the event loop. Raises GatewayError
        where the first workers do not start."""
        self._listen_to_signals()
        try:
            if early:
                self._stop(0.0)
            self._starting = asyncio.ensure_future(self._start())
            self._spawn(self._manager.keep_alive())
            await either(self._starting, self._ended)
            if not self._stopping:
                self._starting.result()
                self._tell_what_is_served()
            for files in self._watched:
                if isinstance(files, Code) or self.loaded.config.watch:
                    self._spawn(self._watch(files))
            await self._ended.wait()
        finally:
            asked_to = self._stopping
            self._stopping = True
            await self._cancel_start()
            for member in self._members:
                member.kill()
            for member in list(self._members):
                await member.gone.wait()
            for sock in (slot.socket for slot in self._slots):
                sock.close()
            if self._admin is not None:
                forget(self._admin)
            if self._valkey is not None:
                self._valkey.stop()
            self._drop_spare()
            for task in self._tasks:
                task.cancel()
            if asked_to:
                logger.info("ended")

    def _tell_what_is_served(self) -> None:
        state = next((slot.member.redis for slot in self._slots if slot.member is not None), "")
        url = url_of(self._slots[0].socket, "http" if self.loaded.config.listen.tls is None else "https")
        for line in start_message(self.loaded, url, len(self._slots), state):
            logger.info("%s", line)
        self._manager.ready(f"{counted(len(self._slots), 'worker')} on {url}")

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop, self.loaded.config.shutdown_delay.total_seconds())
        loop.add_signal_handler(signal.SIGINT, self._stop, 0.0)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self._reload()))
        loop.add_signal_handler(signal.SIGUSR2, lambda: self._spawn(self._roll()))
        loop.add_signal_handler(signal.SIGCHLD, self._child_ended)

    def _spawn(self, work: Coroutine[Any, Any, object]) -> None:
        self._tasks.add(task := asyncio.ensure_future(work))
        task.add_done_callback(self._tasks.discard)

    # --- starting and replacing ----------------------------------------------------------------------------

    async def _start(self) -> None:
        """The first workers, at once. Raises GatewayError: that of the first to fail."""
        try:
            await self._start_workers()
        except GatewayError:
            # A signal to all processes of a group or container may have ended the others before this one reads it.
            with suppress(TimeoutError):
                async with asyncio.timeout(GROUP_SECONDS):
                    await self._ended.wait()
            raise

    async def _start_workers(self) -> None:
        if self._valkey is not None:
            self._valkey.launch()
        begun = await asyncio.gather(*map(self._begin, self._slots), return_exceptions=True)
        for slot, member in zip(self._slots, begun, strict=True):
            if isinstance(member, BaseException):
                raise member
            slot.member = member
            await member.settled.wait()
            if not member.answers:
                raise await _failure(member)
        for slot in self._slots:
            self._spawn(self._keep(slot))
        self._spawn(self._watch_workers())

    async def _cancel_start(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait((self._starting,))

    async def _begin(self, slot: Slot) -> Member:
        """A new worker on a slot's socket, commanded to start."""
        spawned, self._spare = self._spare, None
        if spawned is None or spawned.process.poll() is not None:
            spawned = spawn()
        sockets = [each.socket for each in self._slots] + ([] if self._admin is None else [self._admin])
        member = Member(spawned, self._number, self._questioned, self._unrepeated)
        try:
            spawned.hand_over(sockets)
            if self._valkey is not None and not self._reviving:
                await self._valkey.ready()
            url = self._valkey.url if self._valkey is not None else without_embedded(self.loaded.config.redis_url)
            setup = Setup.of(member.number, self.loaded)
            await member.begin(Begin(setup, url, slot.number, len(self._slots), self.loaded.config.log_format))
        except BaseException:
            spawned.abandon()
            raise
        self._members.add(member)
        self._tell_if_alone()  # from now on none is alone, long before the new one serves
        self._spawn(self._bury(member))
        return member

    async def _bury(self, member: Member) -> None:
        """Once it is gone, keep of its figures what still counts."""
        await member.gone.wait()
        self._members.discard(member)
        self._departed = total([self._departed, lasting(member.families)])
        self._tell_if_alone()
        self._cover()

    def _cover(self) -> None:
        """Make a ready worker accept for each slot without one: connections there need not wait for the next worker to
        start."""
        if self._stopping:
            return
        number = sum(slot.member is not None and slot.member.answers for slot in self._slots)
        for member in self._members:
            member.send(Workers(number, len(self._slots)))
        for slot in self._slots:
            if slot.member is not None and slot.member.answers:
                if slot.adopter is not None:
                    slot.adopter.send(Release(slot.number))
                    slot.adopter = None
            elif slot.adopter is None or not slot.adopter.answers:
                answering = (each.member for each in self._slots if each.member is not None and each.member.answers)
                slot.adopter = next(answering, None)
                if slot.adopter is not None:
                    slot.adopter.send(Adopt(slot.number))

    def _tell_if_alone(self) -> None:
        for member in self._members:
            member.tell_if_alone(self._valkey is not None and len(self._members) == 1)

    async def _keep(self, slot: Slot) -> None:
        """Have a worker in the slot, whatever becomes of them."""
        while not self._stopping:
            member = slot.member
            assert member is not None
            await either(member.gone, slot.changed)
            if slot.replacing:
                slot.changed.clear()
                await slot.changed.wait()
            slot.changed.clear()
            if self._stopping or slot.member is not member or not member.gone.is_set():
                continue
            self._counts["deaths"] += 1
            short = member.failure is not None or member.lived < SHORT_LIFE
            slot.failures = slot.failures + 1 if short else 0
            what = member.failure.message if member.failure is not None else member.how_it_ended
            logger.warning("worker %d ended (%s); starting another", member.pid, what)
            await asyncio.sleep(slot.pause())
            slot.member = await self._begin(slot)
            self._spawn(self._bring_up_to_date(slot.member))

    async def _watch_workers(self) -> None:
        """Replace workers whose event loop does not run: a stopped process keeps its listening socket, and with it its
        share of new connections. Another accepts from that socket until the next worker does."""
        while not self._stopping:
            due = time.monotonic() + LOOK_EVERY
            await asyncio.sleep(LOOK_EVERY)
            limit = self.loaded.config.worker_unresponsive_after.total_seconds()
            paused = time.monotonic() - due > PAUSED_SECONDS
            for member in list(self._members):
                if paused:
                    member.excuse()
                elif member.silent > limit:
                    self._spawn(self._end_unresponsive(member, limit))
                elif member.silent > limit / 2:
                    self._stand_by()

    async def _end_unresponsive(self, member: Member, limit: float) -> None:
        self._counts["unresponsive"] += 1
        logger.error(
            "the worker %d is unresponsive: its event loop has not run for %g s (`worker_unresponsive_after`); another "
            "accepts its connections, and it is killed and replaced. If a handler blocks, the stacks below show where",
            member.pid,
            limit,
        )
        member.unresponsive = True
        self._cover()
        await member.end_unresponsive()

    def _stand_by(self) -> None:
        """Have a spare process for a while."""
        if self._stopping:
            return
        if self._spare is None:
            self._spare = spawn()
        if self._spare_ends is not None:
            self._spare_ends.cancel()
        self._spare_ends = asyncio.get_running_loop().call_later(SPARE_SECONDS, self._drop_spare)

    def _drop_spare(self) -> None:
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.abandon()

    async def _bring_up_to_date(self, member: Member) -> None:
        """Send the newest configuration to a worker that started with an older one."""
        await member.settled.wait()
        self._cover()
        self._stand_by()
        async with self._lock:
            if member.answers and member.number < self._number:
                member.send(Prepare(Setup.of(self._number, self.loaded)))
                member.send(Commit(self._number))
                member.number = self._number

    async def _roll(self) -> None:
        """Replace the workers one by one; each new one is ready before the old one is stopped."""
        async with self._lock:
            for slot in self._slots:
                if self._stopping or not await self._replace(slot):
                    return
            logger.info("all %d workers were replaced", len(self._slots))

    async def _replace(self, slot: Slot) -> bool:
        old = slot.member
        slot.replacing = True
        try:
            fresh = await self._begin(slot)
            with suppress(TimeoutError):
                async with asyncio.timeout(READY_SECONDS):
                    await fresh.settled.wait()
            if not fresh.answers:
                fresh.kill()
                await fresh.gone.wait()
                logger.error("replacing the workers stopped: %s", await _failure(fresh))
                return False
            slot.member = fresh
        finally:
            slot.replacing = False
            slot.changed.set()
        if old is not None:
            await self._retire(old)
        return True

    async def _retire(self, member: Member) -> None:
        timeout = self.loaded.config.shutdown_timeout.total_seconds()
        for slot in self._slots:
            if slot.adopter is member:
                slot.adopter = None
        self._cover()
        member.send(Retire(timeout))
        await self._gone(member, timeout + MARGIN)

    async def _gone(self, member: Member, seconds: float) -> None:
        """Wait for a worker's end, and kill it where that takes longer."""
        try:
            async with asyncio.timeout(seconds):
                await member.gone.wait()
        except TimeoutError:
            logger.warning("worker %d did not end within %.0f s: killing it", member.pid, seconds)
            member.kill()
            await member.gone.wait()

    def _child_ended(self) -> None:
        if self._valkey is not None and self._valkey.died and not self._reviving:
            self._reviving = True
            self._spawn(self._revive(self._valkey))

    async def _revive(self, valkey: Embedded) -> None:
        """Start the embedded Valkey again, until it runs."""
        try:
            while valkey.died and not self._stopping:
                self._counts["valkey"] += 1
                logger.warning("the embedded Valkey ended (%s); restarting it", valkey.how_it_ended)
                try:
                    await valkey.again()
                except EmbeddedError as error:
                    logger.warning("%s", error)
        finally:
            self._reviving = False

    # --- ending --------------------------------------------------------------------------------------------

    def _stop(self, delay: float) -> None:
        if self._stopping:
            self._ended.set()  # the second time: at once
            return
        self._stopping = True
        timeout = self.loaded.config.shutdown_timeout.total_seconds()
        logger.info("stopping: accepting connections for %g s more; requests in flight have %g s", delay, timeout)
        self._manager.stopping(delay + timeout + 2 * MARGIN)
        self._spawn(self._stop_in_order(delay, timeout))

    async def _stop_in_order(self, delay: float, timeout: float) -> None:
        await self._cancel_start()
        for member in self._members:
            if not member.settled.is_set() and not any(slot.adopter is not None for slot in self._slots):
                member.kill()  # the first start: no client is connected to it
        for slot in self._slots:
            slot.socket.close()  # the workers' own stay open for as long as they accept
        for member in self._members:
            member.send(Stop(delay, timeout))
        await asyncio.gather(*(self._gone(member, delay + timeout + MARGIN) for member in list(self._members)))
        self._ended.set()

    # --- reloading -----------------------------------------------------------------------------------------

    async def _watch(self, files: Files) -> None:
        async for _ in files.changes():
            code = isinstance(files, Code)
            logger.info("the %s changed", "app's code has" if code else "configuration files have")
            if await self._reload() and code:
                await self._roll()

    async def _reload(self) -> bool:
        """Read the configuration again and apply it in all workers, or in none; whether they have it now."""
        async with self._lock, self._manager.reloading():
            try:
                after = await asyncio.to_thread(self._reread)
            except ConfigError as error:
                for warning in error.warnings:
                    logger.warning(warning)
                self._refused(error.problems)
                return False
            for warning in after.warnings:
                logger.warning(warning)
            changes = difference(self.loaded, after)
            prepare = Prepare(Setup.of(self._number + 1, merged(self.loaded, after)))
            members = [member for member in self._members if member.answers]
            answers = await asyncio.gather(*(member.prepare(prepare, PREPARE_SECONDS) for member in members))
            if problems := next((found for found in answers if found), None):
                for member in members:
                    member.send(Abort(prepare.setup.number))
                self._refused([each.problem for each in problems])
                return False
            self._number = prepare.setup.number
            self.loaded = merged(self.loaded, after)
            for member in members:
                member.send(Commit(self._number))
                member.number = self._number
        self._counts["reloads"] += 1
        logger.info(
            "configuration reloaded, %s",
            "1 change:" if len(changes) == 1 else f"{len(changes)} changes:" if changes else "nothing changed",
        )
        for change in changes:
            logger.log(logging.WARNING if change.requires_restart else logging.INFO, "  %s", change)
        return True

    def _refused(self, problems: list[Any]) -> None:
        self._counts["refused"] += 1
        logger.error("the new configuration is invalid; the previous one stays in force:")
        for problem in problems:
            logger.error("  %s", problem)

    # --- metrics -------------------------------------------------------------------------------------------

    def _questioned(self, member: Member, question: int) -> None:
        self._spawn(self._answer(member, question))

    async def _answer(self, member: Member, question: int) -> None:
        await asyncio.gather(*(each.tell() for each in self._members if each.answers))
        living = [each.families for each in self._members]
        own = supervisor_families(self._counts, sum(member.answers for member in self._members))
        member.send(Totals(question, total([self._departed, *living, own])))


async def _failure(member: Member) -> GatewayError:
    """Why a worker does not answer."""
    failure = member.failure
    if failure is None:
        await member.gone.wait()
        return StartError(f"the worker {member.pid} ended as it started ({member.how_it_ended})")
    if failure.problems:
        return ConfigError([problem.problem for problem in failure.problems])
    return StartError(failure.message)


def supervise(
    loaded: Loaded, reread: Callable[[], Loaded], spare: Spawned | None = None, watched: Sequence[Files] = ()
) -> None:
    """Run the gateway until SIGINT or SIGTERM. Raises ListenError, EmbeddedError, ConfigError, StartError."""
    early: list[int] = []
    log_to_stderr(loaded.config.log_format)
    before, limit = raise_limit()
    if limit != before:
        logger.info("open files: the limit was raised from %d to %d", before, limit)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: early.append(number))

    async def run() -> None:
        await Supervisor(loaded, reread, spare, watched).run(early)

    try:
        asyncio.run(run())
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):  # it ends already
            signal.signal(number, signal.SIG_IGN)
