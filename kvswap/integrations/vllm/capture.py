"""Blocks that vLLM computed, sent to the node, which signs and offers them: the worker's half of publishing.

Tokens are copied at the end of the step that computes them: afterwards vLLM may reuse their blocks.  Encoding and
sending run in a thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import torch
import vllm

from kvswap.artifact import layout as layouts
from kvswap.artifact.fingerprint import fingerprint
from kvswap.artifact.manifest import Numerics, layout_of
from kvswap.artifact.specs import ITEM_BYTES
from kvswap.artifact.tensors import DTYPES, LayerTensors, digest_layer
from kvswap.artifact.writing import write
from kvswap.client import Client
from kvswap.core import wire
from kvswap.core.errors import Incompatible, KvswapError
from kvswap.integrations.vllm.engine import Engine
from kvswap.integrations.vllm.paged import PagedLayer
from kvswap.integrations.vllm.save_requests import Save
from kvswap.integrations.vllm.settings import ConnectorSettings
from kvswap.model.finite import check_held
from kvswap.model.processor import isa
from kvswap.worker.protocol import frame

logger = logging.getLogger("vllm.kvswap")

_MOST_BYTES = 2 << 30  # of all copies that are being filled and sent


@dataclass(slots=True)
class _Captured:
    ids: list[int]
    tensors: list[LayerTensors]
    size: int


class Captures:
    """The copies of the prompts that one engine publishes; all its layers have to be full attention."""

    def __init__(
        self, engine: Engine, layers: Mapping[int, PagedLayer], attention: str, settings: ConnectorSettings
    ) -> None:
        """Learn how the layers' blocks are laid out.

        Raises `Incompatible` if the engine has sliding layers or shares heads among processes, or its blocks cannot be
        read.
        """
        if engine.hybrid:
            raise Incompatible(
                "kvswap does not publish from an engine with sliding layers",
                cause="vLLM has given up what lies outside their window when a prompt is done",
                hint='"publish": "never" in kv_connector_extra_config',
                field="engine",
            )
        if engine.ranks > 1:
            raise Incompatible(
                "kvswap does not publish from an engine with tensor_parallel_size above 1",
                cause="each process has only its own heads",
                hint='"publish": "never" in kv_connector_extra_config',
                field="engine",
            )
        self._engine, self._layers, self._settings, self._attention = engine, layers, settings, attention
        for group in engine.groups:
            for index in group.layers:
                layers[index].learn(group)
        self._client = Client(settings.home)
        self._pool = ThreadPoolExecutor(1, "kvswap-publish")
        self._open: dict[str, _Captured] = {}
        self._lock = threading.Lock()
        self._bytes = 0

    def close(self) -> None:
        """Send the copies that are complete, and drop the others."""
        self._pool.shutdown(wait=True)
        for request in list(self._open):
            self.drop(request)

    def drop(self, request: str) -> None:
        """Drop the copy of a request of which no more tokens will come."""
        captured = self._open.pop(request, None)
        if captured is not None:
            self._take(-captured.size)

    def _take(self, size: int) -> bool:
        """Count memory as used and return True, unless that is too much; a negative size gives it back."""
        with self._lock:
            if size > 0 and self._bytes + size > _MOST_BYTES:
                return False
            self._bytes += size
            return True

    def save(self, save: Save) -> None:
        """Copy the tokens that a step has computed; once they are all there, send them to the node."""
        captured = self._begin(save) if save.first == 0 else self._open.get(save.request)
        if captured is None:
            return
        for group, blocks in zip(self._engine.groups, save.blocks, strict=True):
            skipped = save.first % group.block_tokens
            for index in group.layers:
                held = captured.tensors[index]
                read = self._layers[index].get(blocks, group)
                for into, tensor in zip((held.k, held.v), read, strict=True):
                    into[:, save.first : save.stop] = tensor[:, skipped : skipped + save.stop - save.first]
        if save.stop == save.tokens:
            del self._open[save.request]
            try:
                self._pool.submit(self._send, captured)
            except RuntimeError as error:  # no more threads, or the engine is ending: the step must not fail for that
                self._take(-captured.size)
                logger.warning("kvswap: %d tokens not published: %s", save.tokens, error)

    def _begin(self, save: Save) -> _Captured | None:
        specs, dtype = self._engine.layers, self._engine.dtype
        size = save.tokens * sum(spec.token_numbers for spec in specs) * ITEM_BYTES[dtype]
        if not self._take(size):
            logger.warning("kvswap: %d tokens not published: the node does not keep up", save.tokens)
            return None

        tensors = []
        for spec in specs:
            empty = [torch.empty(tensor.part_shape(save.tokens), dtype=DTYPES[dtype]) for tensor in spec.tensors]
            tensors.append(LayerTensors(spec, tuple(empty), 0, save.tokens))
        ids = np.frombuffer(save.ids, "<u4").tolist()
        captured = self._open[save.request] = _Captured(ids, tensors, size)
        return captured

    def _send(self, captured: _Captured) -> None:
        try:
            check_held(captured.tensors, self._engine.dtype)
            done = self._client.publish_computed(self._frames(captured))
            again = " again" if done.reused else ""
            logger.info("kvswap: published%s %d tokens as %s (%s)", again, done.tokens, done.artifact, done.claim)
        except KvswapError as error:
            logger.warning("kvswap: %d tokens not published: %s", len(captured.ids), error.message)
        except Exception:
            logger.exception("kvswap: publishing failed")
        finally:
            self._take(-captured.size)

    def _frames(self, captured: _Captured) -> Iterator[bytes]:
        """Yield the frames of the body of `POST /v1/computed`."""
        engine, size = self._engine, self._settings.block_tokens
        groups = layouts.plan_groups(engine.layers, engine.dtype, size)
        shape = layout_of(engine.dtype, engine.rope, engine.layers, groups)
        head = {
            "model": wire.plain(engine.identity),
            "dtype": engine.dtype,
            "ids": captured.ids,
            "block_tokens": size,
            "numerics": wire.plain(self._numerics()),
            "group": self._settings.group,
            "compare": self._settings.compare,
        }
        yield frame(head)
        for chunk in write(shape, captured.tensors, len(captured.ids), size, self._settings.codec):
            data = {"event": "chunk", "ref": wire.plain(chunk.ref), "data": chunk.wire, "us": int(chunk.seconds * 1e6)}
            yield frame(data)
        yield frame({"event": "fingerprint", "data": fingerprint(captured.tensors)})
        tensors = wire.plain([digest_layer(held) for held in captured.tensors])
        yield frame({"result": {"layout": wire.plain(shape), "tensors": tensors}})

    def _numerics(self) -> Numerics:
        return Numerics(
            schedule=f"vllm {vllm.__version__}",
            attention=self._attention,
            compute_dtype=self._engine.dtype,
            torch=str(torch.__version__),
            transformers=version("transformers"),
            device="cpu" if _cpu() else f"cuda:{torch.cuda.get_device_name()}",
            isa=isa("cpu" if _cpu() else "cuda", self._engine.dtype),
            threads=torch.get_num_threads(),
            claim="tolerance",
        )


def _cpu() -> bool:
    return not torch.cuda.is_available()
