"""The use case of writing a conversation as the node's model does: the model process has the template."""

from __future__ import annotations

import json

from kvswap.api.chat import PartTokens, RenderResult
from kvswap.api.requests import RenderRequest
from kvswap.core.documents import check_text
from kvswap.core.ids import document_digest
from kvswap.exchange.node.node import Node
from kvswap.worker.messages import RenderJob


async def render(node: Node, request: RenderRequest) -> RenderResult:
    """Render a conversation by the template of a model (default: the node's).

    Raises `UsageError` for messages that the template does not take, and for a model without one.
    """
    chat = json.dumps({"messages": request.messages, "tools": request.tools}).encode()
    choice = await node.model.choose(request.model)
    made = await node.model.run(choice, RenderJob(chat=chat, question=request.question))
    return RenderResult(
        text=made.text,
        document=document_digest(check_text(made.text, "the conversation")),
        tokens=made.tokens,
        parts=[PartTokens(part=part, message=message, tokens=tokens) for part, message, tokens in made.parts],
        states=made.states,
        continuation=made.continuation,
    )
