"""Measuring what prefilling costs on this machine, with a few blocks of the model: now, or in the background."""

from __future__ import annotations

from kvswap.core.errors import KvswapError
from kvswap.cost import PrefillCurve
from kvswap.exchange.model_port import ModelChoice
from kvswap.exchange.node import predictors
from kvswap.exchange.node.node import Node
from kvswap.worker.messages import CalibrateJob


def measure_in_background(node: Node, choice: ModelChoice, block_tokens: int) -> None:
    """Measure prefill in the background, unless it is known or being measured.  Best effort."""
    if node.background.measuring or node.calibration.curve(choice.calibration_key, block_tokens) is not None:
        return
    node.background.measuring = True

    async def measure() -> None:
        try:
            await calibrate(node, choice, block_tokens)
        except KvswapError as error:
            node.events.add("not_calibrated", model=choice.name, reason=error.message)
        finally:
            node.background.measuring = False

    node.background.spawn(measure())


async def calibrate(node: Node, choice: ModelChoice, block_tokens: int) -> PrefillCurve | None:
    """Measure prefill and codecs with a few blocks on this machine, and keep the result.

    Returns the prefill curve.
    """
    node.events.add("calibrating", model=choice.name)
    known = predictors.path(node, choice)
    predictor = str(known) if known is not None else None
    made = await node.model.run(choice, CalibrateJob(block_tokens=block_tokens, predictor=predictor))
    for codec, (raw, encode, load) in made.codecs.items():
        node.calibration.add_encode(codec, raw, None, encode / 1e6)
        node.calibration.add_load({codec: raw}, load / 1e6)
    node.learn_prefill(choice, made.samples)
    return node.calibration.curve(choice.calibration_key, block_tokens)
