"""Training a predictor for a model of this node."""

from __future__ import annotations

import asyncio

from kvswap.api.caches import TrainResult
from kvswap.core.defaults import TRAINING_TOKENS
from kvswap.core.ids import Cid
from kvswap.exchange.node import predictors
from kvswap.exchange.node.node import Node
from kvswap.exchange.request import Progress
from kvswap.worker.conversation import FileEvent, JobEvent, PredictorEvent
from kvswap.worker.messages import TrainJob


async def train(
    node: Node, corpus: str, progress: Progress, *, model: str | None = None, tokens: int = TRAINING_TOKENS
) -> TrainResult:
    """Train a predictor on the text files below a directory of this machine, and keep it.  Raises `UsageError`."""
    choice = await node.model.choose(model)
    made: list[bytes] = []

    async def on_event(event: JobEvent) -> None:
        if isinstance(event, PredictorEvent):
            made.append(event.data)
        elif not isinstance(event, FileEvent):
            await progress(event)

    job = TrainJob(corpus=corpus, tokens=tokens, block_tokens=node.settings.block_tokens)
    done = await node.model.run(choice, job, on_event)
    (data,) = made
    await asyncio.to_thread(predictors.keep, predictors.trained(node, choice), data)
    node.events.add("trained", model=choice.identity.label, tokens=done.tokens, bytes=len(data))
    return TrainResult(model=choice.identity.label, predictor=str(Cid.of(data)), bytes=len(data), tokens=done.tokens)
