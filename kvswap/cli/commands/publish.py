"""`kvswap publish`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvswap.cli import gguf
from kvswap.cli.completing import ModelType
from kvswap.cli.conversations import chat_options, read_chat
from kvswap.cli.objective import group_option
from kvswap.cli.output import Output, read_document, size, verb
from kvswap.core.settings import CODECS

if TYPE_CHECKING:
    from kvswap.api import PartTokens, PublishResult

_SHOWN = 8  # names of files


def _counts(context: click.Context, option: click.Parameter, value: str) -> list[int]:
    """Return the whole numbers of a list with commas."""
    try:
        counts = [int(part) for part in value.split(",") if part.strip()]
    except ValueError as error:
        raise click.BadParameter("whole numbers with commas between them, like 120,4096") from error
    if any(count < 1 for count in counts):
        raise click.BadParameter("a checkpoint comes after one token at least")
    return counts


@click.command(
    "publish",
    help="Prefill FILE, all texts of a folder, or a conversation, and offer its KV cache.  The cache reveals the text.",
)
@click.argument("file", required=False, type=click.Path(exists=True, path_type=Path))
@chat_options("In the place of FILE, a conversation that many go on from")
@click.option(
    "--model", type=ModelType(), help="Model to prefill with (default: the daemon's); llama.cpp computes a .gguf file."
)
@click.option(
    "--codec",
    type=click.Choice(CODECS),
    help="Codec: planes (default), predictive, raw; int8 and int8-channel are lossy.",
)
@click.option("--truncate", is_flag=True, help="Publish the longest whole-block prefix that the model can read.")
@click.option("--source", help="URL the document came from, for the manifest.")
@click.option(
    "--checkpoints",
    default="",
    metavar="N,...",
    callback=_counts,
    help="Token counts that readers can resume at, beside the usual ones.",
)
@group_option("Seal it for the holders of this group's key; nobody else can find or read it.")
@verb
def publish_command(
    output: Output,
    file: Path | None,
    chat: Path | None,
    tools: Path | None,
    model: str | None,
    codec: str | None,
    truncate: bool,
    source: str | None,
    group: str | None,
    checkpoints: list[int],
) -> None:
    """Publish a document, and say who can read it."""
    if (file is None) == (chat is None) or (tools is not None and chat is None):
        raise click.UsageError("give a FILE, a folder, or --chat FILE with or without --tools FILE")
    if model is not None and gguf.is_gguf(model):
        if file is None or file.is_dir():
            raise click.UsageError("with a .gguf model give a FILE")
        gguf.require_plain(truncate=truncate, checkpoints=checkpoints)
        text = read_document(file).decode()
        _show(output, gguf.publish(output, text, model, codec=codec, source=source, group=group))
        return
    document: str | Path
    if chat is not None:
        rendered = output.client.render(*read_chat(chat, tools), model=model)
        document, checkpoints = rendered.text, sorted({*checkpoints, *rendered.checkpoints})
        output.note("its parts end after " + ", ".join(f"{p.tokens} ({_part(p)})" for p in rendered.parts) + " tokens")
    elif file is not None and not file.is_dir():
        document = read_document(file).decode()
    else:
        document = file or Path()
    with output.progress() as progress:
        done = output.client.publish(
            document,
            model=model,
            codec=codec,
            truncate=truncate,
            source=source,
            group=group,
            checkpoints=checkpoints,
            on_event=progress,
        )
    _show(output, done)


def _part(part: PartTokens) -> str:
    return f"message {part.message + 1}" if part.part == "message" else part.part


def _show(output: Output, done: PublishResult) -> None:
    """Say what was published, and who can read it."""
    ratio = done.raw_bytes / done.wire_bytes
    output.result(
        done,
        f"{done.artifact}\n  {done.document}\n  {done.tokens} tokens, {size(done.raw_bytes)} of KV in "
        f"{size(done.wire_bytes)} ({ratio:.2f}x), {done.seconds:.1f} s"
        + (", already published" if done.reused else "")
        + (f"\n  the first {done.reused_tokens} tokens as published before" if done.reused_tokens else "")
        + (f"\n  {len(done.files)} files" if done.files else ""),
    )
    if done.left_out:
        more = ", …" if len(done.left_out) > _SHOWN else ""
        output.note(f"left out, as they are no text: {', '.join(done.left_out[:_SHOWN])}{more}")
    if held := done.state_bytes:
        output.note(
            f"states of {size(held)} at each of {len(done.checkpoints)} token counts: readers resume at these alone; "
            f"that at the end is {held / done.raw_bytes:.0%} of the total"
        )
    if divergence := done.divergence:
        output.note(
            f"LOSSY: {divergence.equal} of {divergence.steps} greedy tokens are the model's own, the first other "
            f"one is number {divergence.first + 1}; divergence {divergence.kl / 1e6:.6f} nats a token.  "
            "Readers need --allow-lossy."
        )
    if name := done.group:
        output.note(f"sealed for group {name}: others see who published something, when, and how many bytes it has")
        output.note(f"members may now:  kvswap fetch {done.document} --group {name}")
        return
    output.note("a KV cache reveals its text: whoever reaches this node can read it.  kvswap withdraw takes it back")
    output.note(f"others may now:  kvswap fetch {done.document}")
