"""The prefixes to be published, and which of their tokens each step computes: the scheduler's half of publishing.

A KV cache reveals its text, so nothing is published unless the operator allows it (`publish`) and a request asks for
it: `{"kvswap": {"publish": true}}` in its `kv_transfer_params` for what vLLM's own prefix cache keeps of the prompt,
`{"publish": {"tokens": n}}` for its first n tokens.  With `repeated` a prefix that two prompts share is published as
well: only for a group, since a conversation repeats its own prefix.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kvswap.artifact import chain
from kvswap.integrations.vllm.engine import Engine
from kvswap.integrations.vllm.settings import ConnectorSettings

logger = logging.getLogger("vllm.kvswap")

_KEPT = 1 << 17  # digests of the prompts' prefixes, and of pages that were loaded


@dataclass(frozen=True, slots=True)
class Save:
    """The tokens [first, stop) of a prefix of `tokens` tokens, which this step computes, and the blocks that hold them.

    `blocks` has one tuple for each group of layers.
    """

    request: str
    first: int
    stop: int
    tokens: int
    blocks: tuple[tuple[int, ...], ...]
    ids: bytes = b""  # of the whole prefix, u32; only with the first part


@dataclass(slots=True)
class _SaveRequest:
    ids: list[int]
    pages: list[bytes]  # digests of the prompt's pages that the prefix reaches into
    done: int = 0


class Recent:
    """The digests seen last, with the number of times."""

    def __init__(self, most: int = _KEPT) -> None:
        self._counts: OrderedDict[bytes, int] = OrderedDict()
        self._most = most

    def add(self, digest: bytes) -> int:
        """Count a digest, and return how often it was seen, this time included."""
        count = self._counts.pop(digest, 0) + 1
        self._counts[digest] = count
        if len(self._counts) > self._most:
            self._counts.popitem(last=False)
        return count

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._counts


class SaveRequests:
    """The requests of one engine that are to be published; used by the scheduler's thread only."""

    def __init__(self, engine: Engine, settings: ConnectorSettings) -> None:
        self._engine, self._settings = engine, settings
        self._save_requests: dict[str, _SaveRequest] = {}
        self._seen_prefixes = Recent()  # prefixes of prompts, by block
        self._sent = Recent()  # prefixes that were published
        self._foreign = Recent()  # pages that were loaded: not this engine's own work
        self._dropped: list[str] = []

    def on_new_request(self, request: Any) -> None:
        """Decide how much of a new request to publish; its cache must be determined by its tokens alone."""
        ids = request.prompt_token_ids
        if getattr(request, "cache_salt", None) is not None:
            return  # a salted cache is not to be shared
        option = request_option(request, "publish")
        stop = self._asked(option, len(ids)) if option is not None else 0
        if self._settings.publish == "repeated":
            stop = stop or self._repeated(ids)
        if stop < max(1, self._settings.min_tokens):
            return
        end = self._digests(ids[:stop], self._settings.block_tokens)[-1]
        if end not in self._sent:
            page = self._engine.block_tokens
            pages = self._digests(ids[: -(-stop // page) * page], page)
            self._save_requests[request.request_id] = _SaveRequest(list(ids[:stop]), pages)

    def _digests(self, ids: Sequence[int], size: int) -> list[bytes]:
        return chain.chain_digests(self._engine.identity.digest, ids, size)

    def _asked(self, option: Any, tokens: int) -> int:
        whole = tokens - tokens % self._engine.block_tokens  # as much as vLLM's own prefix cache would keep
        if option is True:
            return whole
        asked = option.get("tokens", whole) if isinstance(option, dict) else None
        if isinstance(asked, bool) or not isinstance(asked, int) or not 0 < asked <= tokens:
            logger.warning('kvswap: "publish" is true, or {"tokens": of the prompt}; not %.80r', option)
            return 0
        return asked

    def _repeated(self, ids: Sequence[int]) -> int:
        size, stop = self._settings.block_tokens, 0
        for block, digest in enumerate(self._digests(ids[: len(ids) // size * size], size)):
            if self._seen_prefixes.add(digest) > 1:
                stop = (block + 1) * size
        return stop

    def loaded(self, request: Any, first: int, stop: int) -> None:
        """Note that tokens of a request were loaded from an artifact: no prefix with them is published as ours."""
        self.forget(request.request_id)
        page = self._engine.block_tokens
        for digest in self._digests(request.prompt_token_ids, page)[first // page : -(-stop // page)]:
            self._foreign.add(digest)

    def step(self, output: Any, published: Callable[[str], int]) -> list[Save]:
        """Return the tokens to be saved that a step computes.

        `published` returns how many tokens of a request's prompt are known to be published.
        """
        if not self._save_requests:
            return []
        cached, scheduled = output.scheduled_cached_reqs, output.num_scheduled_tokens
        before = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        before |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        saves = []
        for name in [name for name in self._save_requests if name in scheduled]:
            wanted = self._save_requests[name]
            if not wanted.done and (
                published(name) >= len(wanted.ids) or any(page in self._foreign for page in wanted.pages)
            ):
                del self._save_requests[name]
                continue
            stop = min(before[name] + scheduled[name], len(wanted.ids))
            held = output.kv_connector_block_state.get_block_ids(name)
            if stop > wanted.done and held is not None:
                saves.append(self._save(name, wanted, stop, held))
            if wanted.done == len(wanted.ids):
                self._sent.add(self._digests(wanted.ids, self._settings.block_tokens)[-1])
                del self._save_requests[name]
        return saves

    def _save(self, name: str, wanted: _SaveRequest, stop: int, held: Sequence[Sequence[int]]) -> Save:
        first, wanted.done = wanted.done, stop
        blocks = tuple(
            tuple(numbers[first // group.block_tokens : -(-stop // group.block_tokens)])
            for numbers, group in zip(held, self._engine.groups, strict=True)
        )
        ids = chain.pack_ids(wanted.ids) if first == 0 else b""
        return Save(name, first, stop, len(wanted.ids), blocks, ids)

    def forget(self, name: str) -> None:
        """Stop publishing a request, because it is finished or its tokens were loaded."""
        wanted = self._save_requests.pop(name, None)
        if wanted is not None and wanted.done:
            self._dropped.append(name)

    def dropped(self) -> list[str]:
        """Remove and return the requests whose saves stay incomplete."""
        names, self._dropped = self._dropped, []
        return names


def request_option(request: Any, name: str) -> Any:
    """Return the value of a key of `kvswap` in a request's `kv_transfer_params`, or None."""
    params = getattr(request, "kv_transfer_params", None)
    asked = params.get("kvswap") if isinstance(params, dict) else None
    return asked.get(name) if isinstance(asked, dict) else None
