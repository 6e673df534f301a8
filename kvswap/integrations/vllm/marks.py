"""Which beginnings are to be published, and what of them each step computes: the scheduler's half of publishing.

A KV cache reveals its text, so nothing is published unless the operator allows it (`publish`) and a request asks:
`{"kvswap": {"publish": true}}` in its `kv_transfer_params` for what vLLM's own prefix cache keeps of the prompt,
`{"publish": {"tokens": n}}` for its first n tokens.  With `repeated` what two prompts began with is published as
well: for a group alone, since a conversation repeats its own beginning.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kvswap.artifact import chain
from kvswap.integrations.vllm.engine import Engine
from kvswap.integrations.vllm.settings import Settings

logger = logging.getLogger("vllm.kvswap")

_KEPT = 1 << 17  # digests of what prompts began with, and of pages that were loaded


@dataclass(frozen=True, slots=True)
class Save:
    """Tokens [first, stop) of `tokens`, which this step completes, in these blocks; a tuple a group of layers."""

    request: str
    first: int
    stop: int
    tokens: int
    blocks: tuple[tuple[int, ...], ...]
    ids: bytes = b""  # all of them, u32, with the first part


@dataclass(slots=True)
class _Mark:
    ids: list[int]
    pages: list[bytes]  # digests of the prompt's pages that they reach into
    done: int = 0


class Recent:
    """The last digests that were seen, and how often."""

    def __init__(self, most: int = _KEPT) -> None:
        self._counts: OrderedDict[bytes, int] = OrderedDict()
        self._most = most

    def add(self, digest: bytes) -> int:
        """How often, this time included."""
        count = self._counts.pop(digest, 0) + 1
        self._counts[digest] = count
        if len(self._counts) > self._most:
            self._counts.popitem(last=False)
        return count

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._counts


class Marks:
    """Of one engine.  Called from the scheduler's thread alone."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine, self._settings = engine, settings
        self._marks: dict[str, _Mark] = {}
        self._begun = Recent()  # beginnings of prompts
        self._sent = Recent()  # ends of what was published
        self._foreign = Recent()  # pages that were loaded: not this engine's own work
        self._dropped: list[str] = []

    def added(self, request: Any) -> None:
        """A request whose tokens alone say what its cache is."""
        ids = request.prompt_token_ids
        if getattr(request, "cache_salt", None) is not None:
            return  # its cache is nobody else's
        wish = wish_of(request, "publish")
        stop = self._asked(wish, len(ids)) if wish is not None else 0
        if self._settings.publish == "repeated":
            stop = stop or self._repeated(ids)
        if stop < max(1, self._settings.min_tokens):
            return
        end = self._digests(ids[:stop], self._settings.block_tokens)[-1]
        if end not in self._sent:
            page = self._engine.block_tokens
            pages = self._digests(ids[: -(-stop // page) * page], page)
            self._marks[request.request_id] = _Mark(list(ids[:stop]), pages)

    def _digests(self, ids: Sequence[int], size: int) -> list[bytes]:
        return chain.chain_digests(self._engine.identity.digest, ids, size)

    def _asked(self, wish: Any, tokens: int) -> int:
        whole = tokens - tokens % self._engine.block_tokens  # what vLLM's own prefix cache would have of it
        if wish is True:
            return whole
        asked = wish.get("tokens", whole) if isinstance(wish, dict) else None
        if isinstance(asked, bool) or not isinstance(asked, int) or not 0 < asked <= tokens:
            logger.warning('kvswap: "publish" is true, or {"tokens": of the prompt}; not %.80r', wish)
            return 0
        return asked

    def _repeated(self, ids: Sequence[int]) -> int:
        size, stop = self._settings.block_tokens, 0
        for block, digest in enumerate(self._digests(ids[: len(ids) // size * size], size)):
            if self._begun.add(digest) > 1:
                stop = (block + 1) * size
        return stop

    def loaded(self, request: Any, first: int, stop: int) -> None:
        """These tokens of a request come from somebody's artifact: neither they nor what they begin is our work."""
        self.forget(request.request_id)
        page = self._engine.block_tokens
        for digest in self._digests(request.prompt_token_ids, page)[first // page : -(-stop // page)]:
            self._foreign.add(digest)

    def step(self, output: Any, published: Callable[[str], int]) -> list[Save]:
        """What a step completes.  `published`: how much of a request's prompt is known to be published."""
        if not self._marks:
            return []
        cached, scheduled = output.scheduled_cached_reqs, output.num_scheduled_tokens
        before = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        before |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        saves = []
        for name in [name for name in self._marks if name in scheduled]:
            mark = self._marks[name]
            if not mark.done and (
                published(name) >= len(mark.ids) or any(page in self._foreign for page in mark.pages)
            ):
                del self._marks[name]
                continue
            stop = min(before[name] + scheduled[name], len(mark.ids))
            held = output.kv_connector_block_state.get_block_ids(name)
            if stop > mark.done and held is not None:
                saves.append(self._save(name, mark, stop, held))
            if mark.done == len(mark.ids):
                self._sent.add(self._digests(mark.ids, self._settings.block_tokens)[-1])
                del self._marks[name]
        return saves

    def _save(self, name: str, mark: _Mark, stop: int, held: Sequence[Sequence[int]]) -> Save:
        first, mark.done = mark.done, stop
        blocks = tuple(
            tuple(numbers[first // group.block_tokens : -(-stop // group.block_tokens)])
            for numbers, group in zip(held, self._engine.groups, strict=True)
        )
        ids = chain.pack_ids(mark.ids) if first == 0 else b""
        return Save(name, first, stop, len(mark.ids), blocks, ids)

    def forget(self, name: str) -> None:
        """This request is over, or not to be published."""
        mark = self._marks.pop(name, None)
        if mark is not None and mark.done:
            self._dropped.append(name)

    def dropped(self) -> list[str]:
        """Requests of which no more will come."""
        names, self._dropped = self._dropped, []
        return names


def wish_of(request: Any, name: str) -> Any:
    """What a request says to kvswap, in its `kv_transfer_params`; None: nothing."""
    params = getattr(request, "kv_transfer_params", None)
    asked = params.get("kvswap") if isinstance(params, dict) else None
    return asked.get(name) if isinstance(asked, dict) else None
