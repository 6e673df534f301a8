"""The scheduler's client of the node beside the engine: threads query it, and the scheduler never waits for them.

Whatever the node does, the engine goes on: no answer in time, an error and no daemon all count as nothing found.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from kvswap.api.events import PlanEvent, ProgressEvent
from kvswap.artifact import chain
from kvswap.client import Client
from kvswap.core.errors import IntegrityError, KvswapError, NotFound, PlanSaysPrefill
from kvswap.cost.estimate import PrefillCurve
from kvswap.integrations.vllm.engine import Engine
from kvswap.integrations.vllm.prefix_filter import PrefixFilter
from kvswap.integrations.vllm.settings import ConnectorSettings

logger = logging.getLogger("vllm.kvswap")

_THREADS = 64  # one for each look-up under way
_DETAILS_KEPT = 32
_BACKOFF_SECONDS = 5.0  # after the daemon was not reached
_PATIENCE_SECONDS = 30.0  # for a fetch, if the plan has no estimate of prefilling
_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class Files:
    """The part of an artifact's details that a process needs to read it; the long manifest is not in it."""

    artifact: str
    envelope: str
    chunks_directory: str
    key: str | None


@dataclass(frozen=True, slots=True)
class Match:
    """An artifact in the node's store that shares its first `tokens` tokens with a prompt."""

    artifact: str
    tokens: int
    whole: bool  # whether these are all of the artifact's tokens
    details: Files = field(repr=False)


@dataclass(frozen=True, slots=True)
class _SearchTask:
    """The input of a search: token ids, and the seconds that it may take."""

    search: LookUp
    first_block: bytes  # the ids of its first block
    ids: tuple[int, ...]
    budget: float


@dataclass(slots=True)
class LookUp:
    """A look-up of a prompt's longest published prefix.

    `match` is set once it has `ended`, `planned` once something was found and is being fetched.
    """

    began: float = field(default_factory=lambda: time.monotonic())
    ended: threading.Event = field(default_factory=threading.Event)
    planned: float | None = None  # seconds that the look-up may take in all
    match: Match | None = None
    why: str = ""
    leader: LookUp | None = None  # the look-up under way for the same first block, after which this one starts
    followers: list[_SearchTask] = field(default_factory=list)  # those that start when this one ends; no thread waits
    ended_at: float = 0.0

    @property
    def under_way(self) -> LookUp:
        """The look-up that is being waited for: the leader until it has ended, then this one."""
        return self.leader if self.leader is not None and not self.leader.ended.is_set() else self

    @property
    def waited(self) -> float:
        """The seconds since this look-up could start."""
        return time.monotonic() - (max(self.began, self.leader.ended_at) if self.leader is not None else self.began)

    def end(self) -> None:
        """Mark the look-up as ended."""
        self.ended_at = time.monotonic()
        self.ended.set()


class NodeClient:
    """A client of the daemon of one home directory."""

    def __init__(self, engine: Engine, settings: ConnectorSettings) -> None:
        self._engine, self._settings = engine, settings
        self._client = Client(settings.home)
        self._pool = ThreadPoolExecutor(_THREADS, "kvswap-node")
        self._leaders: dict[bytes, LookUp] = {}  # by the ids of their first block
        self._details: OrderedDict[str, Files] = OrderedDict()
        self._lock = threading.Lock()
        self.news = threading.Event()  # set when a look-up has ended
        self._backoff_until = 0.0
        # A configured time for look-ups, or a group, means that look-ups are wanted for every prompt.
        asks = settings.lookup_seconds is not None or settings.group is not None
        self._prefix_filter = None if asks else PrefixFilter(self._client)
        self._samples: list[tuple[int, int, float]] = []

    def close(self) -> None:
        """End the threads; look-ups under way are not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._prefix_filter is not None:
            self._prefix_filter.close()

    # -- what the engine itself takes ------------------------------------------------------------

    def learn(self, before: int, tokens: int, seconds: float) -> None:
        """Record that a prefill of `tokens` tokens after `before` others took so many seconds."""
        self._samples = [*self._samples[-_SAMPLES:], (before, tokens, seconds)]

    @property
    def curve(self) -> PrefillCurve | None:
        """The engine's measured cost of prefilling, or None before the first measurement."""
        return PrefillCurve.fit(self._samples, self._settings.block_tokens) if self._samples else None

    def prefill_seconds(self, tokens: int) -> float | None:
        """Return the estimated seconds of prefilling `tokens` tokens, or None before the first measurement."""
        curve = self.curve
        return curve.seconds(tokens) if curve is not None else None

    # -- asking ----------------------------------------------------------------------------------

    def search(self, ids: Sequence[int], budget: float) -> LookUp:
        """Start to look up the longest published prefix of these ids, and return the look-up.

        `budget` is the seconds that the node may take for it, a fetch aside.
        """
        search = LookUp()
        if time.monotonic() < self._backoff_until:
            search.why = "the daemon was not reached"
            search.end()
            return search
        first = ids[: self._settings.block_tokens]
        if self._prefix_filter is not None:
            (digest,) = chain.chain_digests(self._engine.identity.digest, first, len(first))
            if not self._prefix_filter.may_have(digest):
                search.why = "nothing that is published begins so"
                search.end()
                return search
        asked = _SearchTask(search, chain.pack_ids(first), tuple(ids), budget)
        with self._lock:
            leader = self._leaders.setdefault(asked.first_block, search)
            if leader is not search:
                search.leader = leader
                leader.followers.append(asked)
                return search
        self._begin(asked)
        return search

    def _begin(self, asked: _SearchTask) -> None:
        try:
            work = self._pool.submit(self._run, asked)
        except RuntimeError as error:  # no more threads, or the engine is ending
            asked.search.why = str(error)
            self._ended(asked, alike=True)
        else:
            work.add_done_callback(lambda done: self._ended(asked, alike=True) if done.cancelled() else None)

    def _run(self, asked: _SearchTask) -> None:
        search = asked.search
        alike = False  # whether the result holds for every prompt with the same first block
        try:
            search.match = self._find(search, list(asked.ids), asked.budget)
        except (NotFound, PlanSaysPrefill) as error:
            search.why = error.message
            alike = isinstance(error, NotFound)
        except KvswapError as error:
            search.why = error.message
            if error.code == "daemon_not_running":
                self._backoff_until = time.monotonic() + _BACKOFF_SECONDS
                alike = True
            logger.warning("kvswap: %s", error.message)
        except Exception as error:
            search.why = f"{type(error).__name__}: {error}"
            logger.exception("kvswap: looking for a prefix failed")
        finally:
            self._ended(asked, alike)

    def _ended(self, asked: _SearchTask, alike: bool) -> None:
        """End a look-up and its followers: they share its result, or the first one of each distinct prompt starts."""
        search, begin = asked.search, []
        with self._lock:
            followers, search.followers = search.followers, []
            if self._leaders.get(asked.first_block) is search:
                del self._leaders[asked.first_block]
            search.end()
            leaders: dict[tuple[int, ...], LookUp] = {}
            for follower in followers:
                if alike or follower.ids == asked.ids:
                    follower.search.match, follower.search.why = search.match, search.why
                    follower.search.end()
                elif (leader := leaders.get(follower.ids)) is not None:
                    follower.search.leader = leader
                    leader.followers.append(follower)
                else:
                    leaders[follower.ids] = follower.search
                    self._leaders.setdefault(asked.first_block, follower.search)
                    begin.append(follower)
        for follower in begin:
            self._begin(follower)
        self.news.set()

    def _find(self, search: LookUp, ids: list[int], budget: float) -> Match:
        def on_event(event: ProgressEvent) -> None:
            if isinstance(event, PlanEvent):
                search.planned = search.waited + self._patience(event, len(ids))

        curve = self.curve
        found = self._client.cached_prefix(
            chain.pack_ids(ids),
            model=self._engine.identity.digest,
            dtype=self._engine.dtype,
            block_tokens=self._settings.block_tokens,
            parts=not self._engine.hybrid,
            curve=(curve.a, curve.b) if curve is not None else None,
            seconds=budget,
            force=self._settings.force,
            local=self._settings.local,
            group=self._settings.group,
            on_event=on_event,
        )
        return Match(found.artifact, found.tokens, found.whole, self._read(found.artifact))

    def _patience(self, plan: PlanEvent, tokens: int) -> float:
        """Return the seconds that a fetch may take: as long as prefilling would."""
        if self._settings.force:
            return _PATIENCE_SECONDS
        prefill = plan.prefill.seconds if plan.prefill is not None else None
        return prefill or self.prefill_seconds(tokens) or _PATIENCE_SECONDS

    def _read(self, artifact: str) -> Files:
        with self._lock:
            known = self._details.get(artifact)
            if known is not None:
                self._details.move_to_end(artifact)
                return known
        shown = self._client.details(artifact)
        details = Files(shown.artifact, shown.envelope, shown.chunks_directory, shown.key)
        with self._lock:
            self._details[artifact] = details
            while len(self._details) > _DETAILS_KEPT:
                self._details.popitem(last=False)
        return details

    def revalidate(self, artifact: str) -> None:
        """Let the node verify an artifact whose files failed to load, and drop what is wrong, in a thread.

        The next look-up then fetches it again.
        """

        def work() -> None:
            with self._lock:
                self._details.pop(artifact, None)
            try:
                self._client.verify(artifact, level=1)
            except IntegrityError as error:
                logger.warning("kvswap: %s", error.message)
            except KvswapError as error:
                logger.debug("kvswap: %s", error.message)

        with contextlib.suppress(RuntimeError):  # no more threads, or the engine is ending: it is only a hint
            self._pool.submit(work)
