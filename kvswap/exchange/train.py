"""Training a predictor for a model of this node."""

from __future__ import annotations

import asyncio
from typing import Any

from kvswap.core.defaults import TRAINING_TOKENS
from kvswap.core.ids import Cid
from kvswap.exchange.model_port import OnEvent
from kvswap.exchange.node import predictors
from kvswap.exchange.node.node import Node


async def train(
    node: Node, corpus: str, progress: OnEvent, *, model: str | None = None, tokens: int = TRAINING_TOKENS
) -> dict[str, Any]:
    """Train a predictor on the text files below a directory of this machine, and keep it.  Raises `UsageError`."""
    choice = await node.model.choose(model)
    made: list[bytes] = []

    async def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "predictor":
            made.append(event["data"])
        else:
            await progress(event)

    done = await node.model.run(
        choice, "train", on_event, corpus=corpus, tokens=tokens, block_tokens=node.settings.block_tokens
    )
    (data,) = made
    await asyncio.to_thread(predictors.keep, predictors.trained(node, choice), data)
    node.events.add("trained", model=choice.identity.label, tokens=done["tokens"], bytes=len(data))
    return {
        "model": choice.identity.label,
        "predictor": str(Cid.of(data)),
        "bytes": len(data),
        "tokens": done["tokens"],
    }
