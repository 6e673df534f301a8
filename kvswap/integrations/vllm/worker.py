"""The worker's half: chunk files are loaded into paged blocks, and blocks published, in threads beside requests.

Every signature and digest is checked here again.  Tensors are assembled and verified whole before a byte goes into a
block; what does not load is reported, and vLLM computes it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from kvswap.artifact.assembly import Assembly
from kvswap.artifact.layout import check_compatible, needed
from kvswap.artifact.tensors import LayerTensors
from kvswap.client.loading import statement_of
from kvswap.integrations.vllm.capture import Captures
from kvswap.integrations.vllm.engine import Engine
from kvswap.integrations.vllm.paged import PagedLayer, paged_layer, slots
from kvswap.integrations.vllm.save_requests import Save
from kvswap.integrations.vllm.scheduler import Load
from kvswap.integrations.vllm.settings import ConnectorSettings
from kvswap.integrations.vllm.tables import check_latent_keys, check_tables
from kvswap.model import reach
from kvswap.store.files import chunk_reader

logger = logging.getLogger("vllm.kvswap")

_PAUSE = 0.02
_LOADS = 2  # loads at a time; each decodes with several threads


class WorkerSide:
    """The worker's half of one engine's connector."""

    def __init__(self, engine: Engine, settings: ConnectorSettings) -> None:
        self._engine, self._settings = engine, settings
        self._captures: Captures | None = None  # None if publishing is not allowed
        self._layers: dict[int, PagedLayer] = {}
        self._heads: dict[int, slice] = {}  # of each layer's heads those that this process keeps
        self._pool = ThreadPoolExecutor(_LOADS, "kvswap-load")
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._under_way = 0
        self._results: dict[str, set[int] | None] = {}  # request -> blocks that were not filled; None: all of them
        self._invalid: set[int] = set()

    def register(self, caches: Mapping[str, torch.Tensor], layers: Mapping[str, Any]) -> None:
        """Take the engine's cache tensors and attention layers, by layer name.

        Raises `Incompatible` if a table of cos and sin is wrong, or the attention backend is not supported.
        """
        check_tables()
        if any(group.latent for group in self._engine.groups):
            check_latent_keys()
        rank = _rank() if self._engine.ranks > 1 else 0
        for group in self._engine.groups:
            for name, index in zip(group.names, group.layers, strict=True):
                self._layers[index] = paged_layer(layers[name], caches[name], group)
                self._heads[index] = group.heads_of_rank(rank, self._engine.ranks)
        if self._settings.publish != "never":
            attention = type(layers[self._engine.groups[0].names[0]].impl).__name__
            self._captures = Captures(self._engine, self._layers, attention, self._settings)

    def close(self) -> None:
        """Wait for loads that are running, drop the others, and end publishing."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._captures is not None:
            self._captures.close()

    def save(self, saves: Sequence[Save], dropped: Sequence[str]) -> None:
        """Copy the tokens to be published that the last step computed."""
        if self._captures is not None:
            for request in dropped:
                self._captures.drop(request)
            for save in saves:
                try:
                    self._captures.save(save)
                except Exception:  # publishing must not stop the engine
                    logger.exception("kvswap: a prompt is not published")
                    self._captures.drop(save.request)

    def start(self, load: Load) -> None:
        """Start a load in a thread; `finished` reports its end."""
        with self._lock:
            self._under_way += 1
        self._pool.submit(self._run, load)

    def wait(self) -> None:
        """Wait, while nothing runs, until a load ends or for 20 ms (see `SchedulerSide.pause`)."""
        if self._under_way:
            self._ended.wait(_PAUSE)

    def finished(self) -> tuple[set[str], set[str]]:
        """Return the requests whose loads have ended since the last call, and those of them that failed."""
        with self._lock:
            self._ended.clear()
            results, self._results = self._results, {}
        self._invalid.update(*(blocks for blocks in results.values() if blocks))
        return set(results), {request for request, blocks in results.items() if blocks is None}

    def invalid(self) -> set[int]:
        """Remove and return the blocks that were not filled, of the requests that `finished` returned."""
        blocks, self._invalid = self._invalid, set()
        return blocks

    def _run(self, load: Load) -> None:
        failed: set[int] | None = set()
        try:
            self._load(load)
        except Exception as error:  # noqa: BLE001 - whatever it is, vLLM computes these blocks itself
            logger.warning("kvswap: %s not loaded: %s", load.match.artifact, error)
            size = self._engine.groups[0].block_tokens
            failed = set(load.blocks[0][load.first // size : -(-load.stop // size)])
            if len(self._engine.groups) > 1:
                failed = None  # block numbers are ambiguous among several groups
        with self._lock:
            self._under_way -= 1
            self._results[load.request] = failed
            self._ended.set()

    def _load(self, load: Load) -> None:
        match, details = load.match, load.match.details
        statement = statement_of(details)
        manifest = statement.manifest
        check_compatible(manifest, self._engine.identity.digest, self._engine.dtype)
        self._engine.check(manifest)
        # Of a model that chooses among RoPE tables this engine has the first one.
        reach.require_own(None, manifest.layout.rope, manifest.prefix.tokens, manifest.prefix.block_tokens)
        tokens = None if match.whole else match.tokens
        read = chunk_reader(Path(details.chunks_directory))
        with Assembly(manifest, read, tokens=tokens, seal=statement.seal) as assembly:
            # Tokens that vLLM has already are left out; sliding layers need all of them.
            size, skipped = manifest.prefix.block_tokens, 0 if self._engine.hybrid else load.first
            assembly.fill(i for i in needed(manifest, tokens) if (manifest.chunks[i].block + 1) * size > skipped)
            assembly.wait()
        for group, blocks in zip(self._engine.groups, load.blocks, strict=True):
            for index in group.layers:
                self._put(index, assembly.tensors[index], group, blocks, load)
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()

    def _put(self, index: int, held: LayerTensors, group: Any, blocks: tuple[int, ...], load: Load) -> None:
        slot, token = slots(group, blocks, max(load.first, held.first), min(load.stop, held.first + held.tokens))
        if not len(slot):
            return
        low, high = int(token[0]) - held.first, int(token[-1]) - held.first + 1
        heads = self._heads[index]
        k, v = held.k[heads, low:high], held.v[heads, low:high]
        if high - low != len(token):  # there are null blocks between, which are not written
            k, v = (t[:, token - token[0]] for t in (k, v))
        self._layers[index].put(k, v, slot)


def _rank() -> int:
    from vllm.distributed import get_tensor_model_parallel_rank

    return int(get_tensor_model_parallel_rank())
