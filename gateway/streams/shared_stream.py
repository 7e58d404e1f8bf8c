"""One event stream from an upstream for all clients of a key, in each worker (`stream: share`).

Decides which requests share a stream, what a new client gets first, and when a client is cut. A client that was away
gets what it missed from a ring, by its `Last-Event-ID`; the upstream gets that field when its own stream ends, so that
nothing is lost or doubled where its events have ids. A client that is cut gets a random delay first, as `retry`. It
must not know what waits for a client (`shared_body`), how a response is written (`edge.passthrough`), or which requests
have one key (`policy.keys`).

`Last-Event-ID` is not part of the key, so no client's decides what others get: a stream that is requested by it is for
the clients that sent the same one. As soon as its last event is one of the key's own stream, they move over.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from gateway.errors import UpstreamError
from gateway.http.headers import CacheControl, Headers, first, has
from gateway.streams.events import Event, EventParser, EventTooLarge, Ring
from gateway.streams.shared_body import LAGGED, SharedBody, chunk
from gateway.upstreams.response import Fetched

logger = logging.getLogger("gateway")
EVENT_STREAM = "text/event-stream"
LAST_EVENT_ID = b"last-event-id"
AT_ONCE = 16 * 1024
"""Bytes of events that are handed on in one piece."""
PING_EVERY = 15.0
"""Seconds without an event, after which clients get a comment: proxies between close idle connections."""
PING = b": ping\n\n"
LINGER = 5.0
"""Seconds that a stream is kept without clients: they may come back."""
RETRY = 1.0
"""Seconds before a stream that ended is requested again, unless the upstream names others (`retry`)."""
SHORTEST_RETRY, LONGEST_RETRY = 0.1, 30.0
GIVE_UP = 60.0
"""Seconds without the upstream's stream, after which its clients are cut: they get the upstream's error."""
SPREAD = 5.0
"""Seconds over which clients that are sent away come back."""
ALONE = 5.0
"""Seconds for which requests of a key have streams of their own, after one that can't be shared."""
ENDED, DRAINED, FAILED = "ended", "drained", "failed"
REASONS = (ENDED, LAGGED, DRAINED, FAILED)
"""Why clients are cut."""

Key = tuple[str, bytes | None]
Open = Callable[[bytes | None], Awaitable[Fetched]]
"""Requests the stream, behind the event of that id. Raises UpstreamError."""


def may_be_shared(fetched: Fetched, *, keyed: bool) -> bool:
    """Whether a response is an event stream for all who have its key; `keyed` is whether that identifies the user."""
    kind = (first(fetched.headers, b"content-type") or "").partition(";")[0].strip().lower()
    personal = has(fetched.headers, b"set-cookie") or ("private" in CacheControl.of(fetched.headers) and not keyed)
    return fetched.status == 200 and kind == EVENT_STREAM and not personal and not _is_coded(fetched.headers)


def _is_coded(headers: Headers) -> bool:
    return (first(headers, b"content-encoding") or "identity").lower() != "identity"


@dataclass
class StreamCounts:
    """`cut` counts clients by reason."""

    opened: int = 0
    reopened: int = 0
    cut: Counter[str] = field(default_factory=Counter)


class SharedStream:
    """An upstream's stream and its clients. `of` is what it was requested by: the upstream and the route's settings.
    `key` is the clients' key, and the `Last-Event-ID` behind which it began; None for that of all others, which is
    `main` of the streams behind an id."""

    def __init__(
        self,
        key: Key,
        of: tuple[object, object],
        main: SharedStream | None,
        request: Open,
        *,
        counts: StreamCounts,
        ended: Callable[[SharedStream], None],
        chance: Callable[[], float],
    ) -> None:
        self.key, self.of = key, of
        self.headers: Headers = ()
        self.opened: asyncio.Future[Fetched | None] = asyncio.get_running_loop().create_future()
        """The response if it can't be shared; None if it is."""
        self._request = request
        self._counts, self._ended, self._chance = counts, ended, chance
        self._ring = Ring(key[1])
        self._behind: set[SharedStream] = set()
        """Streams that began behind an id, and are not merged yet."""
        self._main: SharedStream | None = None
        self._closed = False
        if main is not None:
            self.follow(main)
        self._bodies: dict[SharedBody, None] = {}
        self._retry = RETRY
        self._resumes = False
        self._timer: asyncio.TimerHandle | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<SharedStream clients={len(self._bodies)} {self._ring!r}>"

    def __len__(self) -> int:
        """Clients now."""
        return len(self._bodies)

    # --- clients -------------------------------------------------------------------------------------------

    def has(self, last_id: bytes) -> bool:
        """Whether a client that has seen this event can have all behind it."""
        return self._ring.after(last_id) is not None

    def join(self, last_id: bytes | None, *, waited: bool) -> SharedBody | None:
        """The body for a client that has seen the event `last_id`; None if it can't have all behind that. Without one a
        client that `waited` for the stream has all of it, others what comes from now on."""
        missed = self._ring.after(last_id) if last_id is not None else self._ring.all() if waited else []
        if missed is None or self._closed:
            return None
        body = SharedBody(self, [self._retry_line(), *(event.text for event in missed)])
        self._bodies[body] = None
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        return body

    def leave(self, body: SharedBody) -> None:
        self._bodies.pop(body, None)
        self._linger()

    def follow(self, main: SharedStream) -> None:
        """Move the clients to `main` as soon as both have the same event."""
        self._main = main
        main._behind.add(self)

    def _linger(self) -> None:
        """End after a while without clients; of one behind an id nobody else would be a client."""
        if self._idle is None and self._task is not None and not self._bodies and not self._behind:
            wait = LINGER if self._main is None else 0.0
            self._idle = asyncio.get_running_loop().call_later(wait, self._close_if_unused)

    def _close_if_unused(self) -> None:
        self._idle = None
        if not self._bodies and not self._behind:
            self.close()

    def _merge(self, other: SharedStream) -> None:
        """Take over the clients of a stream behind an id, once both have the same event."""
        at = other._ring.position if len(other._ring) else None
        missed = None if at is None else self._ring.after(at)
        if missed is None or self._closed:
            return
        bodies, other._bodies = other._bodies, {}
        self._bodies.update(bodies)
        for body in bodies:
            body.move(self, missed)
        other.close()

    def _merge_all(self) -> None:
        for behind in tuple(self._behind):
            self._merge(behind)
        if self._main is not None:
            self._main._merge(self)

    def cut(self, body: SharedBody, reason: str) -> None:
        """End a client's response, and tell it when to come back."""
        if body in self._bodies:
            self._counts.cut[reason] += 1
            body.end(self._retry_line(), lagged=reason == LAGGED)
            self.leave(body)

    def _retry_line(self) -> bytes:
        return b"retry: %d\n\n" % (500 + int(self._chance() * SPREAD * 1000))

    def _hand_on(self, text: bytes) -> None:
        chunked = chunk(text)
        for body in tuple(self._bodies):
            body.push(text, chunked)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(PING_EVERY, self._hand_on, PING)

    async def drain(self, seconds: float) -> None:
        """Send the clients away, one after the other within so many seconds."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        for body, at in sorted(((body, self._chance()) for body in self._bodies), key=lambda each: each[1]):
            await asyncio.sleep(max(0.0, began + at * seconds - loop.time()))
            self.cut(body, DRAINED)
        self.close()

    # --- the upstream --------------------------------------------------------------------------------------

    async def open(self, fits: Callable[[Fetched], bool]) -> None:
        """Request the stream; `opened` tells what came of it."""
        try:
            fetched = await self._request(self._ring.last_id)
        except BaseException as error:
            self._ended(self)
            if not self.opened.done():
                self.opened.set_exception(error)
                self.opened.exception()  # each waiting request has it; there may be none
            if not isinstance(error, UpstreamError):
                raise
            return
        if fits(fetched):
            self.headers = fetched.headers
            self._counts.opened += 1
            self._hand_on(PING)
            self._task = asyncio.ensure_future(self._run(fetched, fits))
            self.opened.set_result(None)
            self._idle = asyncio.get_running_loop().call_later(LINGER, self._close_if_unused)
        else:
            self._ended(self)
            self.opened.set_result(fetched)

    async def _run(self, fetched: Fetched | None, fits: Callable[[Fetched], bool]) -> None:
        reason = ENDED
        try:
            while fetched is not None:
                reason = await self._read(fetched)
                fetched = None if reason == FAILED or self._closed else await self._again(fits)
        finally:
            self._ended(self)
            for body in tuple(self._bodies):
                self.cut(body, reason)
            self.close()

    async def _read(self, fetched: Fetched) -> str:
        """Hand on the events of a response; why it ended."""
        parser = EventParser()
        try:
            async for piece in fetched.body.chunks():
                await self._take(event for event in parser.feed(piece) if self._is_new(event))
                if self._closed:  # its clients have moved
                    break
        except UpstreamError as error:
            logger.info("a shared stream broke off and is requested again: %s", error)
        except EventTooLarge as error:
            logger.warning("a shared stream is given up, its clients are cut: %s", error)
            return FAILED
        finally:
            await fetched.body.aclose()
            self._retry = (
                RETRY if parser.retry is None else min(max(parser.retry / 1000, SHORTEST_RETRY), LONGEST_RETRY)
            )
        return ENDED

    async def _take(self, events: Iterator[Event]) -> None:
        """Hand events on, many of them in parts, so that a client which reads is not behind because of their number."""
        batch: list[Event] = []
        size = 0
        try:
            for event in events:
                if size + len(event.text) > AT_ONCE and batch:
                    self._publish(batch)
                    batch, size = [], 0
                    await asyncio.sleep(0)
                batch.append(event)
                size += len(event.text)
        finally:
            if batch:
                self._publish(batch)

    def _publish(self, events: list[Event]) -> None:
        """Keep events and hand them on, both at once: who joins meanwhile gets each from one of the two."""
        for event in events:
            self._ring.add(event)
        self._hand_on(b"".join(event.text for event in events))
        self._merge_all()

    def _is_new(self, event: Event) -> bool:
        """Whether an event was not sent again after a break."""
        if self._resumes and event.id is not None:
            if self._ring.has(event.id):
                return False
            self._resumes = False
        return True

    async def _again(self, fits: Callable[[Fetched], bool]) -> Fetched | None:
        """The stream requested again, behind its last event; None if that is given up."""
        loop = asyncio.get_running_loop()
        until, pause = loop.time() + GIVE_UP, self._retry
        while loop.time() < until:
            await asyncio.sleep(pause * (0.5 + self._chance()))
            pause = min(pause * 2, LONGEST_RETRY)
            try:
                fetched = await self._request(self._ring.last_id)
            except UpstreamError:
                continue
            if fits(fetched):
                self._resumes = True
                self._counts.reopened += 1
                return fetched
            await fetched.body.aclose()
            if fetched.status < 429:  # a 204 forbids to ask again
                return None
        return None

    def close(self) -> None:
        """End it, whatever its clients do."""
        self._closed = True
        if self._main is not None:
            self._main._behind.discard(self)
            self._main._linger()
        for timer in (self._timer, self._idle):
            if timer is not None:
                timer.cancel()
        self._timer = self._idle = None
        self._ended(self)
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()


class SharedStreams:
    """The shared streams of one worker. `chance` returns fractions in [0, 1)."""

    def __init__(self, *, chance: Callable[[], float] = random.random) -> None:
        self.counts = StreamCounts()
        self._chance = chance
        self._streams: dict[Key, SharedStream] = {}
        self._alone: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving: set[SharedStream] = set()

    def __repr__(self) -> str:
        return f"<SharedStreams {len(self._streams)} streams, {self.clients} clients>"

    def __len__(self) -> int:
        """Streams from upstreams now."""
        return len(self._streams) + len(self._leaving)

    @property
    def clients(self) -> int:
        return sum(map(len, (*self._streams.values(), *self._leaving)))

    async def join(
        self,
        key: str,
        of: tuple[object, object],
        last_id: bytes | None,
        request: Open,
        fits: Callable[[Fetched], bool],
    ) -> tuple[SharedBody, Headers, bool] | Fetched | None:
        """A client's body, the fields of the upstream's response, and whether the stream was there already; or the
        response, for this client alone; None if it must request one itself. Raises UpstreamError."""
        now = asyncio.get_running_loop().time()
        if self._alone.get(key, 0.0) > now:
            return None
        stream, known = self._stream((key, None), of, None, request, fits)
        if last_id and not stream.has(last_id):
            main = stream
            if not known:  # nobody waits for it
                main.opened.add_done_callback(self._discard)
            stream, known = self._stream((key, last_id), of, main, request, fits)
        waited = not stream.opened.done()
        try:
            unshared = await asyncio.shield(stream.opened)
        except asyncio.CancelledError:
            if not known:
                stream.opened.add_done_callback(self._discard)
            raise
        if unshared is not None:
            if stream.key[1] is None:
                self._keep_alone(key, now + ALONE)
            return None if known else unshared
        body = stream.join(last_id or None, waited=waited)
        return None if body is None else (body, stream.headers, known)

    def _stream(
        self,
        key: Key,
        of: tuple[object, object],
        main: SharedStream | None,
        request: Open,
        fits: Callable[[Fetched], bool],
    ) -> tuple[SharedStream, bool]:
        """The stream, and whether it was there already."""
        stream = self._streams.get(key)
        if stream is not None:
            return stream, True
        stream = SharedStream(*(key, of, main, request), counts=self.counts, ended=self._ended, chance=self._chance)
        self._streams[key] = stream
        if key[1] is None:
            for each in self._streams.values():
                if each.key[0] == key[0] and each is not stream:
                    each.follow(stream)
        self._spawn(stream.open(fits))
        return stream, False

    def _discard(self, opened: asyncio.Future[Fetched | None]) -> None:
        """Close a response that can't be shared, and whose client has left."""
        if not opened.cancelled() and opened.exception() is None and (fetched := opened.result()) is not None:
            self._spawn(fetched.body.aclose())

    def _keep_alone(self, key: str, until: float) -> None:
        if len(self._alone) >= 1024:
            self._alone.clear()
        self._alone[key] = until

    def _ended(self, stream: SharedStream) -> None:
        if self._streams.get(stream.key) is stream:
            del self._streams[stream.key]
        self._leaving.discard(stream)

    def _spawn(self, work: Awaitable[None]) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def retire(self, keeps: Callable[[tuple[object, object]], bool]) -> None:
        """After a reload: send the clients of streams away that are not as they would be requested now."""
        for stream in [each for each in self._streams.values() if not keeps(each.of)]:
            del self._streams[stream.key]
            self._leaving.add(stream)
            self._spawn(stream.drain(SPREAD))

    async def drain(self, seconds: float) -> None:
        """Send all clients away within so many seconds: they come back to another worker."""
        await asyncio.gather(*(each.drain(seconds) for each in (*self._streams.values(), *self._leaving)))

    async def aclose(self) -> None:
        for stream in (*self._streams.values(), *self._leaving):
            stream.close()
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))
