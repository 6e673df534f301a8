"""The scheduler's half: which requests wait for a published prefix, and which blocks it is loaded into.

A request's look-up starts when the request arrives.  vLLM then asks about the request repeatedly until it runs; until
the look-up ends, or has taken longer than allowed, the answer is "later".  If several requests start with the same
artifact, one loads it; the others wait and then find it in vLLM's own prefix cache.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kvswap.integrations.vllm.engine import Engine
from kvswap.integrations.vllm.node_client import LookUp, Match, NodeClient
from kvswap.integrations.vllm.save_requests import Save, SaveRequests, request_option
from kvswap.integrations.vllm.settings import ConnectorSettings

logger = logging.getLogger("vllm.kvswap")

_AT_ONCE = 0.005  # seconds that a step waits for a look-up
_PAUSE = 0.02
_LEAST = 16  # fewer tokens are not worth a load
_SHORTEST_BUDGET = 0.003
_FIRST_BUDGET = 0.25  # seconds for a look-up until the cost of prefilling is known
_SHARE = 0.02  # of the time of the prefill, for a look-up
_BUSY = 10.0  # times that while the engine has other work
_COOLDOWN_SECONDS = 10.0  # before an artifact that failed to load is tried again


@dataclass(frozen=True, slots=True)
class Load:
    """A load of tokens [first, stop) of an artifact into these blocks, one tuple for each group of layers."""

    request: str
    match: Match
    first: int
    stop: int
    blocks: tuple[tuple[int, ...], ...]


@dataclass(slots=True)
class _PendingRequest:
    """A request that has not run yet, with its look-up."""

    search: LookUp
    budget: float  # seconds that the engine may be idle for it
    asked: bool = False
    waits_for: LookUp | None = None
    idle_before: float = 0.0  # the engine's idle time when the wait for it began
    given_up: bool = False
    load: Load | None = None


@dataclass(slots=True)
class _Step:
    began: float
    before: int
    tokens: int


class SchedulerSide:
    """The scheduler's half of one engine's connector; used by the scheduler's thread only."""

    def __init__(self, engine: Engine, node: NodeClient, settings: ConnectorSettings) -> None:
        self._engine, self._node, self._shortest = engine, node, settings.min_tokens
        self._most = settings.lookup_seconds
        self._save_requests = SaveRequests(engine, settings) if settings.publish != "never" else None
        self._wanted: dict[str, _PendingRequest] = {}
        self._loading: dict[str, str] = {}  # artifact -> the request that loads it
        self._pending: list[Load] = []
        self._failed: dict[str, float] = {}
        self._step: _Step | None = None
        self._idle = 0.0  # seconds in which nothing ran while a look-up was under way
        self._idle_since: float | None = None

    # -- before a request runs -------------------------------------------------------------------

    def on_new_request(self, request: Any) -> None:
        """Start the look-up for a new request (vLLM's `on_new_request`)."""
        ids = request.prompt_token_ids
        if ids is None or len(ids) - 1 < self._shortest or not _plain(request):
            return
        if self._save_requests is not None:
            self._save_requests.on_new_request(request)
        if request_option(request, "lookup") is False:
            return
        if not any(True for _ in self._open()):
            self._idle_since = None  # the engine was not waiting for a look-up
        budget = self._budget(len(ids))
        # The last token is always computed: its logits are wanted.
        self._wanted[request.request_id] = _PendingRequest(self._node.search(ids[:-1], budget), budget)

    def get_num_new_matched_tokens(self, request: Any, computed: int) -> tuple[int | None, bool]:
        """Return (tokens that can be loaded, True), (0, False), or (None, False) to be asked again later.

        This is vLLM's `get_num_new_matched_tokens`; `computed` is the number of tokens in vLLM's own prefix cache.
        """
        wanted = self._wanted.get(request.request_id)
        if wanted is None or wanted.given_up:
            return 0, False
        search = wanted.search
        if not wanted.asked:
            wanted.asked = True
            search.ended.wait(min(_AT_ONCE, wanted.budget))  # most look-ups have ended by then
        if not search.ended.is_set():
            if not self._overdue(wanted):
                return None, False
            return self._give_up(wanted, "no answer in time")
        if search.match is None:
            return self._give_up(wanted, search.why)
        match = search.match
        if self._failed.get(match.artifact, 0.0) > time.monotonic():
            return self._give_up(wanted, "it failed to load")
        more = self._engine.usable(match.tokens) - computed
        if more < _LEAST:
            return self._give_up(wanted, "it is here already")
        loader = self._loading.get(match.artifact, request.request_id)
        if loader != request.request_id and more > self._engine.block_tokens:
            return None, False  # another request's load will be a local hit, except for its last block
        return more, True

    def _overdue(self, wanted: _PendingRequest) -> bool:
        """Return True if waiting for a look-up any longer costs more than it may.

        Only the time counts in which the engine had nothing else to do, and it is shared by all requests that it waits
        for.
        """
        search = wanted.search.under_way
        if search is not wanted.waits_for:
            wanted.waits_for, wanted.idle_before = search, self._idle
        if search.planned is not None:
            return search.waited > search.planned
        shared = sum(w.budget for w in self._open())
        return self._idle - wanted.idle_before > shared or search.waited > _BUSY * wanted.budget

    def _budget(self, tokens: int) -> float:
        if self._most is not None:
            return self._most
        seconds = self._node.prefill_seconds(tokens)
        return _FIRST_BUDGET if seconds is None else max(_SHORTEST_BUDGET, _SHARE * seconds)

    def _give_up(self, wanted: _PendingRequest, why: str) -> tuple[int, bool]:
        wanted.given_up = True
        logger.debug("kvswap: prefilling: %s", why)
        return 0, False

    def update_state_after_alloc(self, request: Any, blocks: Any, tokens: int) -> None:
        """Note the blocks that vLLM has allocated for a load of so many tokens (vLLM's `update_state_after_alloc`)."""
        wanted = self._wanted.get(request.request_id)
        if tokens <= 0 or wanted is None or wanted.search.match is None or wanted.load is not None:
            return
        match = wanted.search.match
        stop = self._engine.usable(match.tokens)
        held = tuple(tuple(group) for group in blocks.get_block_ids())
        wanted.load = Load(request.request_id, match, stop - tokens, stop, held)
        self._loading.setdefault(match.artifact, request.request_id)
        self._pending.append(wanted.load)
        if self._save_requests is not None:
            self._save_requests.loaded(request, wanted.load.first, stop)

    def take(self) -> list[Load]:
        """Remove and return the loads to be started."""
        pending, self._pending = self._pending, []
        return pending

    def pause(self, idle: bool) -> None:
        """Wait, in a step in which nothing runs, until a look-up ends or for 20 ms.

        An engine that only waits asks again at once, and would take the interpreter lock from the threads it waits for.
        """
        now = time.monotonic()
        if self._idle_since is not None:
            self._idle += now - self._idle_since
        waits = idle and any(True for _ in self._open())
        self._idle_since = now if waits else None
        if waits:
            self._node.news.wait(_PAUSE)
        self._node.news.clear()

    def _open(self) -> Iterator[_PendingRequest]:
        """Return the requests whose look-ups are under way."""
        return (w for w in self._wanted.values() if not w.given_up and not w.search.ended.is_set())

    # -- afterwards ------------------------------------------------------------------------------

    def update_connector_output(self, finished: set[str], failed: set[str], invalid: set[int]) -> None:
        """Note that these requests' loads have ended, and which failed or left blocks unfilled.

        This is vLLM's `update_connector_output`.
        """
        for name in finished:
            wanted = self._wanted.get(name)
            load = wanted.load if wanted is not None else None
            if wanted is None or load is None:
                continue
            self._end(load)
            wanted.given_up = True
            if name in failed or any(invalid.intersection(blocks) for blocks in load.blocks):
                now = time.monotonic()
                self._failed = {a: until for a, until in self._failed.items() if until > now}
                self._failed[load.match.artifact] = now + _COOLDOWN_SECONDS
                self._node.revalidate(load.match.artifact)
            else:
                logger.info("kvswap: loaded %d tokens of %s", load.stop - load.first, load.match.artifact)

    def _end(self, load: Load) -> None:
        if self._loading.get(load.match.artifact) == load.request:
            del self._loading[load.match.artifact]

    def forget(self, name: str) -> None:
        """Forget a request that is finished."""
        wanted = self._wanted.pop(name, None)
        if wanted is not None and wanted.load is not None:
            self._end(wanted.load)
        if self._save_requests is not None:
            self._save_requests.forget(name)

    # -- publishing ------------------------------------------------------------------------------

    def saves(self, output: Any) -> tuple[list[Save], list[str]]:
        """Return the tokens to be published that this step computes, and the requests whose saves stay incomplete."""
        return (
            (self._save_requests.step(output, self._published), self._save_requests.dropped())
            if self._save_requests
            else ([], [])
        )

    def _published(self, name: str) -> int:
        """Return how many of a request's tokens are known to be published."""
        wanted = self._wanted.get(name)
        match = wanted.search.match if wanted is not None and wanted.search.ended.is_set() else None
        return match.tokens if match is not None else 0

    # -- what prefilling takes -------------------------------------------------------------------

    def stepped(self, output: Any) -> None:
        """Note that a step is scheduled, so the one before is over; if that was a prefill, record its duration."""
        now = time.monotonic()
        step, self._step = self._step, None
        if step is not None:
            self._node.learn(step.before, step.tokens, now - step.began)
        prefills = [
            (new.num_computed_tokens, output.num_scheduled_tokens[new.req_id])
            for new in output.scheduled_new_reqs
            if output.num_scheduled_tokens.get(new.req_id, 0) >= self._shortest
        ]
        if len(prefills) == 1 and output.total_num_scheduled_tokens < 1.1 * prefills[0][1]:
            self._step = _Step(now, *prefills[0])


def _plain(request: Any) -> bool:
    """Return True if a request's cache is determined by its tokens alone."""
    return not (request.mm_features or request.lora_request or getattr(request, "prompt_embeds", None) is not None)
