"""The serving end of a stream: read a request, call the handler, send the answer, until the stream ends.

Requests on one stream are answered in order.  A malformed request ends the stream; an error of the handler is an
answer.  A silent or greedy peer is kept cheap by a cap on streams, for each peer and for all; a token bucket of
requests, beyond which the peer waits; an idle time-out; and a small number of answers prepared ahead.  A peer that
keeps opening streams beyond the cap, leaves answers unread, or sends malformed requests is reported to the node, which
disconnects it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from kvswap.core.bounded import Table
from kvswap.core.errors import KvswapError, MalformedMessage, PeerBusy, PeerError
from kvswap.core.limits import LIMITS
from kvswap.net import messages
from kvswap.net.transport import Stream

_PREPARED_AHEAD = 2
_BUCKETS_KEPT = 4_096
_ONE_REQUEST_BYTES = 8 * 1024  # a larger one, with a long chain, counts as several: it costs as much to look up


@dataclass(slots=True)
class RemoteCaller:
    """A peer that sends requests on one stream; `ending` is closed when the stream ends, however it does."""

    peer: str
    ending: ExitStack = field(default_factory=ExitStack)
    token: str | None = None  # for the bulk channel: the last one issued on this stream
    token_until: float = 0.0  # until then it lasts long enough to be sent again (monotonic seconds)


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Held:
    """A response body with a reservation that ends once the body is sent or dropped.

    `release` ends the reservation.  `permit` is called right before sending; what it raises is sent instead.
    """

    body: Any
    release: Callable[[], None]
    permit: Callable[[], None] = _nothing


Answer = Callable[[RemoteCaller, messages.Request], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class _Prepared:
    frame: bytes
    release: Callable[[], None] = _nothing
    permit: Callable[[], None] = _nothing


class Buckets:
    """A token bucket for each peer, refilled at `rate` tokens a second.

    Its capacity is `at_once` tokens, by default as many as refill in two seconds.
    """

    def __init__(
        self,
        rate: float,
        at_once: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        name: str = "request rates",
    ) -> None:
        self._rate = rate
        self._ahead = (at_once if at_once is not None else 2 * rate) / rate  # seconds
        self._clock = clock
        self.table: Table[str, float] = Table(  # when the bucket will be full again
            name, entries=_BUCKETS_KEPT, size=lambda peer, due: 2 * len(peer)
        )

    def wait(self, peer: str, count: int = 1) -> float:
        """Take `count` tokens, and return the seconds to wait before using them."""
        now = self._clock()
        full_at = max(self.table.peek(peer) or now, now) + count / self._rate
        self.table.put(peer, full_at, peer)
        return max(0.0, full_at - now - self._ahead)

    def take(self, peer: str) -> bool:
        """Take one token and return True if it may be used at once; otherwise take none and return False."""
        now = self._clock()
        if max(self.table.peek(peer) or now, now) + 1 / self._rate - now > self._ahead + 1e-9:
            return False
        self.wait(peer)
        return True


class Server:
    """The handler of all incoming streams: an instance is called with each stream, and serves it until it ends."""

    def __init__(
        self,
        answer: Answer,
        refuse: Callable[[str], bool] = lambda peer: False,
        flooded: Callable[[str, str], None] = lambda peer, how: None,
    ) -> None:
        self._answer = answer
        self._refuse = refuse
        self._flooded = flooded
        self._offences = Buckets(LIMITS.offences_per_second, LIMITS.offences_at_once, name="offences")
        self._streams: Counter[str] = Counter()
        self._open: dict[str, dict[int, Stream]] = {}  # the oldest first
        self._buckets = Buckets(LIMITS.requests_per_second)
        self.tables = (self._offences.table, self._buckets.table)

    async def __call__(self, stream: Stream) -> None:
        """Serve the requests on one stream until it ends; refuse it if the peer or all peers have too many streams."""
        peer = stream.peer
        full = self._streams[peer] >= LIMITS.streams_per_peer
        if full or self._refuse(peer) or not await self._has_capacity_for(peer):
            if full:
                self._offence(peer, "opens streams beyond what one peer may")
            await stream.reset()
            return
        self._streams[peer] += 1
        self._open.setdefault(peer, {})[id(stream)] = stream
        caller = RemoteCaller(peer)
        try:
            await self._serve(stream, caller)
        except PeerError as error:
            if isinstance(error, MalformedMessage):
                self._offence(peer, "sends what is no request")
            await stream.reset()
        except BaseException:
            await stream.reset()
            raise
        else:
            await stream.close()
        finally:
            caller.ending.close()
            self._streams[peer] -= 1
            self._streams += Counter()
            if (mine := self._open.get(peer)) is not None:
                mine.pop(id(stream), None)
                if not mine:
                    del self._open[peer]

    async def _has_capacity_for(self, peer: str) -> bool:
        """Return True if there is a place for one more stream of this peer.

        When all are taken, the oldest stream of the peer that has most is reset for a peer that has fewer.
        """
        if self._streams.total() < LIMITS.streams:
            return True
        most, count = self._streams.most_common(1)[0]
        oldest = next(iter(self._open.get(most, {}).values()), None)
        if oldest is None or count <= self._streams[peer] + 1:
            return False
        self._open[most].pop(id(oldest))
        await oldest.reset()
        return self._streams.total() < LIMITS.streams + LIMITS.streams_per_peer  # it is still ending

    def _offence(self, peer: str, how: str) -> None:
        """Count an offence: one is an accident, many in a short time are a flood, which is reported."""
        if self._offences.wait(peer) > 0:
            self._flooded(peer, how)

    async def _serve(self, stream: Stream, caller: RemoteCaller) -> None:
        """Send the answers in order, while a few more are prepared ahead."""
        answers: asyncio.Queue[asyncio.Task[_Prepared] | None] = asyncio.Queue(_PREPARED_AHEAD)
        unsent: set[asyncio.Task[_Prepared]] = set()
        reader = asyncio.create_task(self._read(stream, caller, answers, unsent))
        try:
            while (prepared := await answers.get()) is not None:
                ready = await asyncio.shield(prepared)
                unsent.discard(prepared)
                try:
                    await stream.send(await self._checked(stream.peer, ready), LIMITS.chunk_seconds)
                except PeerError:
                    self._offence(stream.peer, "leaves answers unread")
                    raise
                finally:
                    ready.release()
            await reader
        finally:
            for task in (reader, *unsent):
                task.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            for done in await asyncio.gather(*unsent, return_exceptions=True):
                if isinstance(done, _Prepared):
                    done.release()

    async def _read(
        self,
        stream: Stream,
        caller: RemoteCaller,
        answers: asyncio.Queue[asyncio.Task[_Prepared] | None],
        unsent: set[asyncio.Task[_Prepared]],
    ) -> None:
        """Read requests and start preparing their answers.  Raises `MalformedMessage` for what is no request."""
        try:
            while True:
                try:
                    frame = await stream.receive(LIMITS.request_bytes, LIMITS.idle_stream_seconds)
                except PeerError:
                    break  # ended, or silent for too long
                request = messages.decode_request(frame)
                if (wait := self._buckets.wait(stream.peer, 1 + len(frame) // _ONE_REQUEST_BYTES)) > 0:
                    await asyncio.sleep(wait)  # nothing more is read from the peer meanwhile
                prepared = asyncio.create_task(self._respond(caller, request))
                unsent.add(prepared)
                await answers.put(prepared)
        except PeerError:
            await answers.put(None)
            raise
        await answers.put(None)

    async def _respond(self, caller: RemoteCaller, request: messages.Request) -> _Prepared:
        try:
            if self._refuse(caller.peer):
                raise PeerBusy("this node does not serve you")
            body = await self._answer(caller, request)
            if isinstance(body, Held):
                return _Prepared(messages.encode_ok(body.body), body.release, body.permit)
            return _Prepared(messages.encode_ok(body))
        except KvswapError as error:
            return _Prepared(messages.encode_error(error))

    async def _checked(self, peer: str, ready: _Prepared) -> bytes:
        """Return the frame to send: the prepared answer, or the error for why it must not go out any more."""
        try:
            if self._refuse(peer):
                raise PeerBusy("this node does not serve you")
            if ready.permit is not _nothing:
                await asyncio.to_thread(ready.permit)
        except KvswapError as error:
            return messages.encode_error(error)
        return ready.frame
