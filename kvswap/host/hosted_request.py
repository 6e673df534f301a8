"""One hosted request on its way through the engine, and what is billed for it.

The engine computes whatever it was given, so both the prompt and all generated tokens are billed, even if the client
disconnects or a limit ends the answer. Only an engine that refused, or failed before its first piece, is not billed.
The engine's pieces are received as fast as they come, and queue here for a client that is slow.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing

from kvswap.core.limits import LIMITS
from kvswap.host.engine import EngineFailed, Piece
from kvswap.host.prompts import ParsedPrompt
from kvswap.trust.hosting import SignedReceipt

Complete = Callable[[Callable[[], None]], AsyncIterator[Piece]]
"""Starts the engine's answer; its argument is called once the engine has the request."""

Record = Callable[[int, int, int | None], Awaitable[SignedReceipt]]
"""Stores the usage record of (tokens from the cache, tokens generated, tokens for the quota if these differ)."""


class HostedRequest:
    """One hosted request; its usage record is written once, when it ends."""

    def __init__(self, asked: ParsedPrompt, reserved: int, complete: Complete, record: Record) -> None:
        self.asked = asked
        self.texts: list[str] = []
        self.ids: list[int] = []
        self.finish: str | None = None
        self._reserved, self._complete, self._keep = reserved, complete, record
        self._pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
        self._given = self._began = False
        self._text_pieces = 0  # number of pieces with text
        self._usage: tuple[int, int, int] | None = None
        self._receipt: asyncio.Task[SignedReceipt] | None = None
        self._closing: asyncio.Task[None] | None = None  # held, as the event loop alone would not keep it

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield the engine's pieces.  Raises `UsageError` or `EngineFailed`.

        Closing the generator at any moment ends the engine's work, and writes the usage record if there is anything to
        bill.
        """
        work = asyncio.create_task(self._run())
        try:
            while (piece := await self._pieces.get()) is not None:
                if piece.text or piece.ids or piece.finish:
                    yield piece
            await work
        finally:
            # The server cancels us when the client's connection is lost, which may be while we close for an earlier
            # sign of that (a failed write): the end is a task of its own, which that does not reach.
            self._closing = asyncio.create_task(self._close(work))
            await asyncio.shield(self._closing)

    async def _close(self, work: asyncio.Task[None]) -> None:
        """End the engine's work, and write the usage record if there is anything to bill."""
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        if self._given:
            await self._record()

    async def record(self) -> SignedReceipt:
        """Write the usage record unless it is written already, and return it."""
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
        """Queue the engine's pieces, each within its time limit and all within another.

        An answer that is cut off by a limit ends with the reason `length`; raises `EngineFailed` if there was no piece
        at all.
        """
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
        self._text_pieces += bool(piece.text)
        self.finish = piece.finish or self.finish
        self._usage = piece.usage or self._usage
        self._pieces.put_nowait(piece)

    def _record(self) -> asyncio.Task[SignedReceipt]:
        if self._receipt is None:
            # Cut off before the engine reported usage: assume that the document was in the cache, as offered.
            _, cached, generated = self._usage or (0, self.asked.document_tokens, max(len(self.ids), self._text_pieces))
            generated = max(generated, len(self.ids))
            # Cut off before its first piece: the engine may go on computing, so what was reserved counts as used.
            quota = None if self._began else self._reserved
            self._receipt = asyncio.ensure_future(self._keep(cached, generated, quota))
        return self._receipt
