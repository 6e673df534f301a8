"""What a llama-server is found to be at start: how its states look, the numbers that it makes, and whether it restores.

Neither a build number nor flags say which computation a server does; the keys and values that it makes of fixed ids do.
What was kept under other numbers is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from blake3 import blake3

from kvswap.integrations.llamacpp import (
    LayerRows,
    SlotFile,
    StateShape,
    layer_rows,
    parse_slot_file,
    save_slot_file,
    shape_of,
)
from kvswap.integrations.llamacpp.proxy.server import ServerRefused, SlotServer
from kvswap.integrations.llamacpp.proxy.slot_files import restorable, slot_file_name

PROBE_TOKENS = 64
_PREFILL_SECONDS = 600.0  # on a slow machine
_SECONDS = 30.0
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Probed:
    """A server: the shape of its states, the name of what it computes, and whether a restored slot is used."""

    shape: StateShape
    root: str
    restores: bool


async def probe(server: SlotServer, directory: Path, model: str) -> Probed:
    """Prefill fixed ids in the server's first slot, save it, restore it, and look at what comes.

    `directory` is where its slot files go; `model` names the weights.  The slot is empty afterwards.  Raises
    `ServerRefused`, `Incompatible` for states that are not understood, or `OSError`.
    """
    ids = _fixed_ids(await server.vocabulary(_SECONDS))
    name = slot_file_name("probe", 0)
    path = directory / name
    try:
        file = await _saved(server, path, ids[:-1])
        shape = shape_of(file)
        rows = [layer_rows(cache, cache.first, cache.stop) for cache in file.state.caches]
        save_slot_file(
            path, restorable(shape, file.ids, rows)
        )  # as conversations are restored, and not as it was saved
        await server.erase(0, _SECONDS)
        restored = await server.restore(0, name, _SECONDS)
        cached = await server.prefill(0, ids, _PREFILL_SECONDS)
        await server.erase(0, _SECONDS)
    finally:
        path.unlink(missing_ok=True)
    # From a checkpoint the last token is computed again.  Without checkpoints in its files a server computes so short
    # a sequence anew if layers slide; longer ones will show.
    unsure = shape.slides and not shape.checkpoints
    return Probed(shape, _root(model, shape, file), unsure or (restored == PROBE_TOKENS and cached >= PROBE_TOKENS - 1))


async def _saved(server: SlotServer, path: Path, ids: Sequence[int]) -> SlotFile:
    """Return what the server saves of these ids, unless a request that came before uses the slot meanwhile."""
    for _ in range(_TRIES):
        await server.prefill(0, ids, _PREFILL_SECONDS)
        await server.save(0, path.name, _SECONDS)
        file = parse_slot_file(path.read_bytes())
        if file.ids == tuple(ids):
            return file
    raise ServerRefused("llama-server saved other tokens than it was given", cause="it answers other requests")


def _fixed_ids(vocabulary: int) -> list[int]:
    """Return the ids of the probe and one more; which they are does not matter, as long as they stay."""
    return [(7 + index * 7_919) % vocabulary for index in range(PROBE_TOKENS + 1)]


def _root(model: str, shape: StateShape, file: SlotFile) -> str:
    """Return the name under which a server's conversations are kept: model, layout and numbers in one digest.

    Slot, stream and version of the format are left out: states are rewritten for those.
    """
    kinds = [
        (c.key_type.name, c.value_type.name, c.key_rows, c.value_rows, _rotations(c.rotations)) for c in shape.caches
    ]
    digest = blake3(repr((model, kinds)).encode())
    for cache in file.state.caches:
        _add(digest, layer_rows(cache, cache.first, cache.stop))
    return str(digest.hexdigest()[:32])


def _rotations(rotations: tuple[int, int] | None) -> tuple[int, int]:
    return rotations or (0, 0)


def _add(digest: blake3, layers: Sequence[LayerRows]) -> None:
    for layer in layers:
        for part in (layer.keys, layer.values):
            digest.update(np.ascontiguousarray(part).data.cast("B"))
