"""`kvswap codec`."""

from __future__ import annotations

from pathlib import Path

import click

from kvswap.cli.completing import ModelType
from kvswap.cli.output import Output, size, verb
from kvswap.core.defaults import TRAINING_TOKENS


@click.group("codec", help="The codec `predictive`: train it for a model.")
def codec_command() -> None:
    """Group the verbs of the predictive codec."""


@codec_command.command("train", help="Learn to predict a model's KV from text files; then publish --codec predictive.")
@click.option(
    "--corpus", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path), help="Directory."
)
@click.option("--model", type=ModelType(), help="Model (default: the daemon's).")
@click.option("--tokens", type=click.IntRange(1_000, 1_000_000), default=TRAINING_TOKENS, show_default=True)
@verb
def train_command(output: Output, corpus: Path, model: str | None, tokens: int) -> None:
    """Train the predictive codec for a model, on the text files of a directory."""
    with output.progress() as progress:
        done = output.client.codec_train(str(corpus.resolve()), model=model, tokens=tokens, on_event=progress)
    output.result(
        done,
        f"{done.predictor}\n  {done.model}, {size(done.bytes)}, trained on {done.tokens} tokens",
    )
    output.note("now:  kvswap publish --codec predictive FILE")
