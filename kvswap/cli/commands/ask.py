"""`kvswap ask`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvswap.cli import gguf
from kvswap.cli.completing import ModelType, ReferenceType
from kvswap.cli.conversations import chat_options, read_chat
from kvswap.cli.objective import group_option, host_option, lossy_option, plan_options, untrusted_option
from kvswap.cli.output import Output, reference, verb
from kvswap.core.defaults import ANSWER_TOKENS
from kvswap.core.limits import LIMITS
from kvswap.cost import Objective

if TYPE_CHECKING:
    from kvswap.api import AskResult, ProgressEvent


@click.command(
    "ask",
    help="Answer QUESTION from the cache of REF, or as the next turn of --chat, fetched or prefilled as the plan says.",
)
@click.argument("ref", type=ReferenceType())
@click.argument("question", required=False)
@chat_options("In the place of REF, the conversation before the question")
@click.option("--max-tokens", type=click.IntRange(1, LIMITS.host_tokens), default=ANSWER_TOKENS, show_default=True)
@click.option("--model", type=ModelType(), help="A .gguf file, with which llama.cpp answers (REF must be a file).")
@click.option("--prefill", is_flag=True, help="Prefill here, whatever peers offer (REF must be a file).")
@click.option("--force", is_flag=True, help="Fetch although the plan says prefilling is better.")
@click.option("--tofu", is_flag=True, help="Trust the publisher from now on, if not known yet.")
@untrusted_option()
@lossy_option()
@click.option("--ignore-eos", is_flag=True, help="Make exactly --max-tokens tokens.")
@host_option()
@group_option()
@plan_options
@verb
def ask_command(
    output: Output,
    ref: str,
    question: str | None,
    chat: Path | None,
    tools: Path | None,
    max_tokens: int,
    model: str | None,
    prefill: bool,
    force: bool,
    tofu: bool,
    allow_untrusted: bool,
    allow_lossy: bool,
    ignore_eos: bool,
    host: str | None,
    group: str | None,
    objective: Objective,
) -> None:
    """Answer a question, and say where the cache came from and what it took."""
    text: str | None
    if model is not None:
        if chat is not None or tools is not None or question is None:
            raise click.UsageError("with --model give REF and QUESTION")
        other = objective != Objective()
        gguf.require_plain(
            tofu=tofu, allow_untrusted=allow_untrusted, allow_lossy=allow_lossy, host=host, objective=other
        )
        how = {"max_tokens": max_tokens, "prefill": prefill, "force": force, "ignore_eos": ignore_eos, "group": group}
        _show(output, gguf.ask(output, reference(ref)[1], question, model, **how))
        return
    name, text, question, continuation = _asked(output, ref, question, chat, tools)
    with output.progress() as progress:

        def show(event: ProgressEvent) -> None:
            if event.kind != "token":
                progress(event)

        answer = output.client.ask(
            name,
            question,
            max_tokens=max_tokens,
            text=text,
            prefill=prefill,
            force=force,
            tofu=tofu,
            allow_untrusted=allow_untrusted,
            allow_lossy=allow_lossy,
            group=group,
            host=host,
            objective=objective,
            ignore_eos=ignore_eos,
            continuation=continuation,
            on_event=show,
        )
    _show(output, answer)


def _asked(
    output: Output, ref: str, question: str | None, chat: Path | None, tools: Path | None
) -> tuple[str, str | None, str, str | None]:
    """Return the document, its text, the question, and for a conversation the text that follows it."""
    if chat is not None and question is None:  # the one word is the question
        rendered = output.client.render(*read_chat(chat, tools), question=ref)
        return rendered.document, rendered.text, ref, rendered.continuation
    if question is None or chat is not None or tools is not None:
        raise click.UsageError("give REF and QUESTION, or --chat FILE and QUESTION")
    return (*reference(ref), question, None)


def _show(output: Output, answer: AskResult) -> None:
    """Print an answer, and where the cache came from."""
    output.result(answer, answer.text)
    if not output.as_json and not output.quiet:
        output.note(_origin(answer))


def _origin(answer: AskResult) -> str:
    """Say where an answer's cache came from, and what it took."""
    computed = answer.computed_tokens
    how = "prefilled here"
    if hosted := answer.host:
        how = f"the host {hosted.peer} read {hosted.cached_tokens} tokens for ${hosted.dollars or 0:.6f}"
        if hosted.problem:
            how = f"{how}; ITS BILL IS WRONG: {hosted.problem}"
    if answer.artifact:
        how = f"{answer.fetched_tokens} tokens of a published cache, {computed} computed here"
        how = how if computed else "from a published cache"
    return f"({how}: {answer.tokens} tokens, first token after {answer.ttft_seconds:.2f} s; {answer.plan.reason})"
