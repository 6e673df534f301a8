"""One request on its way through the engine, and what is billed for it.

What the engine was given it works on, and what it gave was made: both are billed, whoever hangs up, whatever runs out
and however the answer was asked for. Only an engine that refused, or failed before its first piece, is not billed.
The engine's pieces are taken as fast as they come, and wait here for a client that is slow.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing

from kvswap.core.limits import LIMITS
from kvswap.host.engine import EngineFailed, Piece
from kvswap.host.prompts import Asked
from kvswap.trust.hosting import SignedRead

Complete = Callable[[Callable[[], None]], AsyncIterator[Piece]]
"""Start the engine's answer; what it is given is called once the engine has the request."""

Record = Callable[[int, int, int | None], Awaitable[SignedRead]]
"""(tokens from the cache, tokens made, tokens for the quota where these differ) to the record that was kept."""


class Reading:
    """One request; its record is made once, when it ends."""

    def __init__(self, asked: Asked, reserved: int, complete: Complete, record: Record) -> None:
        self.asked = asked
        self.texts: list[str] = []
        self.ids: list[int] = []
        self.finish: str | None = None
        self._reserved, self._complete, self._keep = reserved, complete, record
        self._pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
        self._given = self._began = False
        self._spoken = 0  # pieces with text
        self._usage: tuple[int, int, int] | None = None
        self._settled: asyncio.Task[SignedRead] | None = None

    async def pieces(self) -> AsyncIterator[Piece]:
        """Give the engine's pieces.  Raises `UsageError` or `EngineFailed`.

        Closing it, at whatever moment, ends the engine's work; there is a record by then where there is a bill.
        """
        work = asyncio.create_task(self._run())
        try:
            while (piece := await self._pieces.get()) is not None:
                if piece.text or piece.ids or piece.finish:
                    yield piece
            await work
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            if self._given:
                await asyncio.shield(self._record())

    async def settle(self) -> SignedRead:
        """Return the record."""
        return await asyncio.shield(self._record())

    async def _run(self) -> None:
        try:
            async with aclosing(self._complete(self._sent)) as source:  # type: ignore[type-var]
                await self._take(source)
        except Exception:
            if not self._began:
                self._given = False
            raise
        finally:
            self._pieces.put_nowait(None)

    def _sent(self) -> None:
        self._given = True

    async def _take(self, source: AsyncIterator[Piece]) -> None:
        """Every piece has its time, and all of them together; an answer that is cut off there ends as too long."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LIMITS.host_seconds
        while True:
            patience = LIMITS.host_piece_seconds if self._began else LIMITS.host_first_seconds
            try:
                async with asyncio.timeout_at(min(deadline, loop.time() + patience)):
                    piece = await anext(source, None)
            except TimeoutError:
                if not self._began:
                    raise EngineFailed(f"the engine gave nothing within {patience:g} s") from None
                piece = Piece(finish="length")
                self._note(piece)
                return
            if piece is None:
                return
            self._began = True
            self._note(piece)

    def _note(self, piece: Piece) -> None:
        self.texts.append(piece.text)
        self.ids += piece.ids
        self._spoken += bool(piece.text)
        self.finish = piece.finish or self.finish
        self._usage = piece.usage or self._usage
        self._pieces.put_nowait(piece)

    def _record(self) -> asyncio.Task[SignedRead]:
        if self._settled is None:
            # Cut off before the engine has told: the document was in the cache, that is what is offered.
            _, cached, made = self._usage or (0, self.asked.document_tokens, max(len(self.ids), self._spoken))
            made = max(made, len(self.ids))
            # Cut off before its first piece: the engine may work on for a while, so what was reserved stays used.
            quota = None if self._began else self._reserved
            self._settled = asyncio.ensure_future(self._keep(cached, made, quota))
        return self._settled
