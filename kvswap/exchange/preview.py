"""Saying what a fetch would do, without doing it: `kvswap plan`."""

from __future__ import annotations

from typing import Any

from kvswap.core.errors import NotFound
from kvswap.core.ids import Cid
from kvswap.exchange.node import Node
from kvswap.exchange.plan import best, calibrate, decide_here
from kvswap.exchange.prefix import beginning_of, plan_beginning
from kvswap.exchange.request import STRICT, Terms
from kvswap.exchange.resolve import resolve


async def plan_reference(
    node: Node, reference: str | Cid, text: str | None = None, terms: Terms = STRICT
) -> dict[str, Any]:
    """The plan for a reference, as JSON.  Transfers no chunk.

    With the document's `text`, a document that nobody offers is planned too: which published artifact
    shares the longest beginning with it, whether that is worth fetching, and prefill of the rest.
    """
    try:
        usable = await resolve(node, reference, terms)
    except NotFound:
        if text is None:
            raise
        return await _plan_unpublished(node, text)
    resolved, chosen = await best(node, usable)
    manifest = resolved.statement.manifest
    return {
        "artifact": str(resolved.statement.artifact),
        "from": list(resolved.peers),
        "codec": manifest.codecs[0],
        "exact": manifest.exact,
        **chosen.to_json(),
    }


async def _plan_unpublished(node: Node, text: str) -> dict[str, Any]:
    choice = await node.model.choose()
    block_tokens = node.settings.block_tokens
    tokens, beginning = await beginning_of(node, choice, text)
    curve = node.calibration.curve(choice.calibration_key, block_tokens) or await calibrate(node, choice, block_tokens)
    # Something is missing and there is no link to get it over: how large it would be does not matter.
    whole = decide_here(node, tokens, raw={}, missing_bytes=1, curve=curve, link=None)
    shared = None
    if beginning is not None:
        part, missing = await plan_beginning(node, beginning)
        shared = {
            "artifact": str(beginning.statement.artifact),
            "tokens": beginning.tokens,
            "of": tokens,
            "missing_bytes": missing,
            "from": list(beginning.peers),
            "action": part.action,
            "reason": part.reason,
        }
    return {"artifact": None, "from": [], "shared_prefix": shared, **whole.to_json()}
