"""What is done before and after each request: slots are saved when they are idle, and restored when that helps.

Nothing here fails a request.  On any doubt it goes to the server as it came, and the server prefills.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from kvswap.core.defaults import LOOKUP_SECONDS
from kvswap.core.errors import IntegrityError, KvswapError
from kvswap.core.tasks import end
from kvswap.integrations.llamacpp.proxy.counts import Counts
from kvswap.integrations.llamacpp.proxy.kept import KeptPrefix, KeptTree
from kvswap.integrations.llamacpp.proxy.prompts import RequestPrompt, changes_computation, parsed, prompt_of
from kvswap.integrations.llamacpp.proxy.ranges import common_length
from kvswap.integrations.llamacpp.proxy.server import ServerRefused, SlotServer, SlotView
from kvswap.integrations.llamacpp.proxy.slot_files import SavedSlot, SlotFiles, slot_file_name
from kvswap.integrations.llamacpp.proxy.turns import KnownSlot, Turn, continues, usable_tokens, worth

logger = logging.getLogger("kvswap.llama")

_SECONDS_PER_BYTE = 1e-6  # for bodies that take longer: 4 ms for each 1,000 tokens
_TOKENIZE_SECONDS = 2.0  # once its beginning is
_SLOTS_SECONDS = 1.0
_HEAD = 2_000  # characters that say whether anything can be kept
_HEAD_TOKENS = 32
_WRITE_SECONDS = 5.0  # that a restore waits for what was saved just before
_LEAST = 64  # tokens that a restore has to spare
_QUIET_SECONDS = 0.15
_LONG_QUIET_SECONDS = 1.0  # before saves that take longer than a client should wait
_SHORT_SAVE = 0.05
_AGAIN_SECONDS = (1.0, 2.0, 5.0, 15.0, 60.0)  # until slots are tried to be saved again
_FINISHED = 8  # requests that are remembered until it is seen which slots they used
_LONG_BODY = 1 << 16
_FAILURES = 3  # saves in a row that are not understood, until none is tried


class Keeper:
    """The slots of one llama-server, and what is kept of them in `tree`; without one everything passes through."""

    def __init__(
        self, server: SlotServer, files: SlotFiles, counts: Counts, lookup_seconds: float = LOOKUP_SECONDS
    ) -> None:
        self._server, self._files, self.counts = server, files, counts
        self._lookup_seconds = lookup_seconds
        self.tree: KeptTree | None = None
        self.reason = "llama-server is loading its model"
        self.restores = True
        self._slots: dict[int, KnownSlot] = {}
        self._finished: list[Turn] = []
        self.lock = asyncio.Lock()  # of the slots: whoever saves, restores or decides has it
        self._in_flight: set[int] = set()
        self._numbers = 0
        self._failures = 0
        self._saving: asyncio.Task[None] | None = None
        self._writing: dict[asyncio.Task[None], tuple[int, ...]] = {}  # with the ids that are being written
        self._disk = asyncio.Lock()  # one slot after the other is written

    def keep_in(self, tree: KeptTree, restores: bool) -> None:
        """Start to keep and to restore: the server has just started, and its slots are empty."""
        self.tree, self.reason, self.restores = tree, "", restores
        self._slots, self._finished, self._failures = {}, [], 0
        if not restores:
            self.reason = "this llama-server does not use what it restored"

    def pass_through(self, reason: str) -> None:
        """Keep and restore nothing any more; `reason` is shown and logged."""
        if self.tree is not None or self.reason != reason:
            logger.warning("llama: nothing is kept from now on: %s", reason)
        self.tree, self.reason = None, reason

    # -- before a request ----------------------------------------------------------------------------

    async def before(self, kind: str, body: bytes) -> Turn:
        """Make the slots ready for a request: what would be lost is saved, what is kept of its prompt restored."""
        turn = Turn(alone=not self._in_flight)
        self.counts.requests += 1
        if self._saving is not None and not self.lock.locked():
            self._saving.cancel()
        try:
            async with self.lock:
                if self.tree is not None:
                    await self._prepare(self.tree, turn, kind, body)
        except (KvswapError, OSError) as error:
            self.counts.given_up += 1
            logger.info("llama: a request goes through as it came: %s", error)
        except Exception:
            self.counts.given_up += 1
            logger.exception("llama: a request goes through as it came")
        self._in_flight.add(id(turn))
        return turn

    async def _prepare(self, tree: KeptTree, turn: Turn, kind: str, body: bytes) -> None:
        fields = await asyncio.to_thread(parsed, body) if len(body) > _LONG_BODY else parsed(body)
        if fields is None:
            return
        if changes_computation(fields):
            self.pass_through(
                "a request changed the computation (lora, n_cache_reuse): its cache is not its ids' alone"
            )
            return
        prompt = await self._prompt(kind, fields, len(body))
        if prompt is not None:
            turn.text, turn.ids = prompt.text, prompt.ids
        if self._in_flight and len(self._in_flight) >= max(1, len(self._slots)):
            return
        idle = await self._look()
        if prompt is not None and any(continues(slot.turn, prompt) for slot in idle):
            self.counts.left_alone += 1
            return
        for slot in idle:
            if slot.dirty:
                await self._save(tree, slot)
        ids = None if prompt is None or not self.restores else await self._ids(tree, prompt)
        if ids is not None and idle:
            turn.ids = tuple(ids)
            await self._restore_best(tree, turn, ids, idle)

    async def _prompt(self, kind: str, fields: dict[str, Any], length: int) -> RequestPrompt | None:
        seconds = (
            self._lookup_seconds if length <= _LONG_BODY else max(self._lookup_seconds, length * _SECONDS_PER_BYTE)
        )
        try:
            return await prompt_of(kind, fields, self._server, seconds)
        except ServerRefused as error:
            logger.info("llama: a prompt is not known beforehand: %s", error)
            return None

    async def _ids(self, tree: KeptTree, prompt: RequestPrompt) -> Sequence[int] | None:
        """Return the ids of a prompt, or None where its beginning shows that nothing is kept of it."""
        if prompt.ids:
            return prompt.ids
        head = await self._server.tokenize(prompt.text[:_HEAD], self._lookup_seconds)
        if len(prompt.text) <= _HEAD:
            ids = head
        elif max(tree.match(head).shared, self._shared(head)) < min(_HEAD_TOKENS, len(head) // 2):
            return None
        else:
            ids = await self._server.tokenize(prompt.text, max(_TOKENIZE_SECONDS, self._lookup_seconds))
        if prompt.messages is not None:
            count = await self._server.count_messages(prompt.messages, max(_TOKENIZE_SECONDS, self._lookup_seconds))
            if count != len(ids):
                self.counts.unlike += 1
                return None
        return ids

    def _shared(self, ids: Sequence[int]) -> int:
        """Return how much of these ids is being written just now."""
        return max((common_length(other, ids) for other in self._writing.values()), default=0)

    async def _look(self) -> list[KnownSlot]:
        """Return the idle slots, with those marked dirty that were used since."""
        seconds = self._lookup_seconds if self._in_flight else max(_SLOTS_SECONDS, self._lookup_seconds)
        views = await self._server.slots(seconds)
        changed = [slot for view in views if (slot := self._noted(view)).task != view.task]
        for slot in changed:
            slot.dirty, slot.ids, slot.checkpoints, slot.used = True, None, (), time.monotonic()
            slot.turn = self._finished[0] if len(changed) == len(self._finished) == 1 else None
            if len(views) == 1 and self._finished:
                slot.turn = self._finished[-1]
        for view in views:
            self._slots[view.id].task = view.task
        if not self._in_flight or len(views) == 1:
            self._finished = []
        return [self._slots[view.id] for view in views if not view.busy]

    def _noted(self, view: SlotView) -> KnownSlot:
        return self._slots.setdefault(view.id, KnownSlot(view.id))

    async def _restore_best(self, tree: KeptTree, turn: Turn, ids: Sequence[int], idle: list[KnownSlot]) -> None:
        """Restore what is kept of these ids, unless a slot holds about as much; the last is left to be computed."""
        if self._shared(ids) > tree.match(ids).shared:  # it is on its way to the disk
            await asyncio.wait(list(self._writing), timeout=max(_WRITE_SECONDS, self._lookup_seconds))
        for _ in range(3):  # a damaged segment is dropped, and what is left is matched again
            match = tree.match(ids[:-1])
            held = max((usable_tokens(slot, ids, tree.shape.slides) for slot in idle), default=0)
            if match.tokens - held < _LEAST:
                return
            try:
                await self._restore(tree, turn, ids, match, min(idle, key=worth))
                return
            except IntegrityError as error:
                self.counts.damaged_segments += 1
                logger.warning("llama: a kept segment is dropped: %s", error)

    async def _restore(
        self, tree: KeptTree, turn: Turn, ids: Sequence[int], match: KeptPrefix, slot: KnownSlot
    ) -> None:
        began = time.monotonic()
        name = self._name("restore")
        shape = self._files.shape.of_slot(slot.id)
        try:
            size = await asyncio.to_thread(self._files.write, name, tree, match, ids[: match.tokens], shape)
            slot.ids, slot.turn = None, None
            count = await self._server.restore(slot.id, name, self._files.seconds(size))
        finally:
            self._files.remove(name)
        if count != match.tokens:
            raise ServerRefused(f"llama-server restored {count} of {match.tokens} tokens")
        slot.ids, slot.checkpoints, slot.dirty, slot.used = tuple(ids[:count]), (), False, time.monotonic()
        turn.restored, turn.slot = count, slot.id
        self.counts.restores += 1
        self.counts.restored_tokens += count
        logger.info("llama: restored %d tokens into slot %d in %.3f s", count, slot.id, time.monotonic() - began)

    # -- after a request -----------------------------------------------------------------------------

    def after(self, turn: Turn) -> None:
        """Take note that a request has ended, and save its slot once the server is idle."""
        turn.alone = turn.alone and len(self._in_flight) == 1
        self._in_flight.discard(id(turn))
        if turn.restored:
            self._judge(turn)
        self._finished.append(turn if turn.watcher.ended and turn.watcher.status == 200 else Turn())
        del self._finished[:-_FINISHED]
        if self.tree is not None and not self._in_flight:
            if self._saving is not None:
                self._saving.cancel()
            self._saving = asyncio.create_task(self._save_when_idle())

    def _judge(self, turn: Turn) -> None:
        """Compare what was restored with what the server says that it had cached."""
        cached = turn.watcher.cached
        if turn.watcher.status != 200 or cached is None or cached >= turn.restored - 1:
            return
        self.counts.restores_without_effect += 1
        logger.warning("llama: of %d restored tokens the server used %d", turn.restored, cached)
        if turn.alone:
            self.restores = False
            self.reason = f"of {turn.restored} restored tokens this llama-server used {cached}: no more are restored"

    async def _save_when_idle(self) -> None:
        quiet = _QUIET_SECONDS if self._files.expected_seconds <= _SHORT_SAVE else _LONG_QUIET_SECONDS
        for pause in (quiet, *_AGAIN_SECONDS):
            await asyncio.sleep(pause)
            try:
                await self.save_all()
                return
            except (KvswapError, OSError) as error:
                logger.info("llama: slots are not saved now: %s", error)
            except Exception:
                logger.exception("llama: slots are not saved now")

    async def save_all(self) -> None:
        """Save all slots that were used since they were saved last, unless a request is being answered."""
        async with self.lock:
            if self._in_flight or self.tree is None:
                return
            for slot in await self._look():
                if slot.dirty and self.tree is not None:
                    await self._save(self.tree, slot)

    async def _save(self, tree: KeptTree, slot: KnownSlot) -> None:
        """Let the server save a slot to memory; what is new of it is written to the disk beside."""
        name = self._name("save")
        self._files.check_free()
        began = time.monotonic()
        try:
            count = await self._server.save(slot.id, name, self._files.seconds())
            took = time.monotonic() - began
            slot.dirty = False
            self.counts.saves += 1
            self.counts.longest_save_ms = max(self.counts.longest_save_ms, round(took * 1e3, 1))
            if not count:
                self._files.remove(name)
                return
            saved = await asyncio.to_thread(self._files.read, name, took)
        except ServerRefused:  # tried again later; until then the slot is not restored into
            self._files.remove(name)
            raise
        except (KvswapError, OSError) as error:
            self._files.remove(name)
            self._not_kept(error)
            return
        self._failures = 0
        slot.ids, slot.checkpoints = saved.file.ids, saved.checkpoints
        if slot.turn is not None and (slot.turn.watcher.tokens or 0) - 1 > count:
            self._files.remove(name)
            self.pass_through(
                "the context was shifted, so that a cache does not belong to its ids (--no-context-shift)"
            )
            return
        task = asyncio.create_task(self._write(tree, name, saved))
        self._writing[task] = saved.file.ids
        task.add_done_callback(lambda task: self._writing.pop(task, None))

    async def _write(self, tree: KeptTree, name: str, saved: SavedSlot) -> None:
        try:
            async with self._disk:
                written = await asyncio.to_thread(self._files.keep, tree, saved)
            self.counts.bytes_written += written.bytes
            self.counts.kept_tokens += written.tokens
            if written.bytes:
                logger.info("llama: kept %d tokens, %d bytes written", written.tokens, written.bytes)
        except (KvswapError, OSError) as error:
            self._not_kept(error)
        finally:
            self._files.remove(name)

    def _not_kept(self, error: Exception) -> None:
        self.counts.not_kept += 1
        self._failures += 1
        logger.warning("llama: a slot is not kept: %s", error)
        if self._failures >= _FAILURES and not isinstance(error, OSError):
            self.pass_through(f"what this llama-server saves is not understood: {error}")

    async def close(self) -> None:
        """Save what is not saved, and wait until it is on the disk."""
        if self._saving is not None:
            await end([self._saving])
        try:
            await self.save_all()
        except (KvswapError, OSError) as error:
            logger.info("llama: slots are not saved at the end: %s", error)
        if self._writing:
            await asyncio.wait(list(self._writing))

    def booked(self, slot: int, ids: tuple[int, ...] | None) -> None:
        """Take note of what a client did to a slot: it holds these ids now, or nobody knows which."""
        noted = self._slots.setdefault(slot, KnownSlot(slot))
        noted.ids, noted.checkpoints, noted.turn, noted.dirty = ids, (), None, False

    def _name(self, purpose: str) -> str:
        self._numbers += 1
        return slot_file_name(purpose, self._numbers)

    def _pending(self) -> int:
        """Return how many things are still to be done: requests to be answered, slots to be saved or written."""
        saving = self._saving is not None and not self._saving.done()
        return len(self._in_flight) + len(self._writing) + saving

    def status(self) -> dict[str, Any]:
        """Return what is shown at `/kvswap/status`."""
        tree = self.tree
        kept = (
            None if tree is None else {"bytes": tree.bytes, "segments": tree.segments, "quota_bytes": tree.quota_bytes}
        )
        return {
            "keeping": tree is not None,
            "restoring": tree is not None and self.restores,
            "reason": self.reason,
            "identity": None if tree is None else tree.root,
            "kept": kept,
            "pending": self._pending(),
            "counts": asdict(self.counts),
        }
