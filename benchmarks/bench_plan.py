"""What planning costs: from the checked manifest to the plan, for documents of many lengths.

    python benchmarks/bench_plan.py

A node with a real store and calibration, three peers with measured links; nothing of the artifact is here, which
is the most work.  The hybrid's next step is decided before every unit, so it is timed as well.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgspec

from benchmarks.common import machine, seconds, table
from kvswap.artifact import layout
from kvswap.artifact.manifest import ChunkRef, Manifest
from kvswap.artifact.specs import LayerSpec
from kvswap.core.defaults import BLOCK_TOKENS as BLOCK
from kvswap.core.ids import Cid
from kvswap.core.settings import Settings
from kvswap.cost import Calibration, Objective, Split
from kvswap.exchange import Node
from kvswap.exchange.model_port import ModelChoice
from kvswap.exchange.planning.decision import plan_chunks
from kvswap.store import Store
from kvswap.trust import PolicyFile
from tests.support import NoModel, identity, key, make_artifact

SPECS = (LayerSpec.key_value("full", 3, 64, 64),) * 30  # the default model's shape


class PrefixFilter(NoModel):
    """A model that is here, and was measured."""

    choice = ModelChoice("tiny", identity(), "bfloat16", "cpu", 2)

    async def choose(self, name: str | None = None) -> Any:
        return self.choice


def manifest(blocks: int) -> Manifest:
    """As a publisher's, but that no chunk of it exists."""
    small = make_artifact(key(), tokens=8, block_tokens=BLOCK, specs=SPECS[:1]).manifest
    tokens = blocks * BLOCK
    groups = layout.plan_groups(SPECS, "bfloat16", BLOCK)
    chunks = [
        ChunkRef(
            block=block,
            run=run,
            codec="planes",
            cid=bytes(Cid.of(b"%d %d" % (block, run))),
            length=2_000_000,
            raw=bytes(32),
            raw_length=len(group.layers) * 3 * 128 * BLOCK * 2,
        )
        for block in range(blocks)
        for run, group in enumerate(groups)
    ]
    prefix = msgspec.structs.replace(small.prefix, tokens=tokens, block_tokens=BLOCK, chain=[bytes(32)] * blocks)
    shape = msgspec.structs.replace(small.layout, layers=list(SPECS), groups=groups)
    return msgspec.structs.replace(small, prefix=prefix, layout=shape, chunks=chunks)


def main() -> None:
    print(f"{machine()}\n")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        store = Store.open(home / "store", 10**12)
        node = Node(
            Settings(home=home, models=home),
            store,
            None,
            PrefixFilter(),
            key(),
            PolicyFile(home / "trust.json", key().peer_id),
            Calibration(home / "calibration.json"),
        )
        node.calibration.add_prefill(
            PrefixFilter.choice.calibration_key, [(n * BLOCK, BLOCK, 1.0 + 0.01 * n) for n in range(20)]
        )
        peers = tuple(str(key(n).peer_id) for n in range(3))
        for number, peer in enumerate(peers):
            node.calibration.add_rate(peer, 12.5e6 * (1 + number))
        for blocks in (2, 8, 30, 128, 512):
            made = manifest(blocks)

            def plan(made: Manifest = made) -> Any:
                return asyncio.run(plan_chunks(node, made, None, peers, Objective("time"), hybrid=True))

            planned = plan()
            split = Split(planned.work, 12.5e6, time.monotonic())
            rows.append(
                [
                    blocks * BLOCK,
                    len(made.chunks),
                    planned.plan.action,
                    f"{seconds(plan) * 1e3:.2f}",
                    f"{seconds(split.step) * 1e3:.3f}",
                ]
            )
        store.close()
    table(["tokens", "chunks", "plan", "planning ms", "a step of the hybrid ms"], rows)


if __name__ == "__main__":
    main()
