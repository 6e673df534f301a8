"""Conversations as text and tokens, in the model process, which has the tokenizer."""

from __future__ import annotations

import json

from kvswap.worker.inbox import JobContext
from kvswap.worker.messages import RenderedChat, RenderJob


def render(context: JobContext, job: RenderJob) -> RenderedChat:
    """Render a conversation by the model's chat template, and count its tokens.  Raises `UsageError`."""
    from kvswap.model.chat import format_of, plain_messages, plain_tools
    from kvswap.model.states import keeps_states

    loaded, chat = context.loaded, json.loads(job.chat)
    messages, tools = plain_messages(chat["messages"]), plain_tools(chat["tools"])
    form = format_of(loaded.tokenizer)
    text, parts = form.render(messages, tools), form.part_ends(messages, tools)
    counts = form.token_ends(text, [part.end for part in parts])
    question = job.question.strip() if job.question is not None else None
    return RenderedChat(
        text=text,
        tokens=len(loaded.tokenize(text)),
        parts=[(part.part, part.message, count) for part, count in zip(parts, counts, strict=True)],
        states=keeps_states(loaded.model.config.get_text_config(decoder=True).to_dict()),
        continuation=form.continuation(messages, tools, question) if question else None,
    )
