"""Every verb's help ends with examples, and each of them is a command line that works as it is written."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from kvswap.cli.examples import EXAMPLES
from kvswap.cli.main import VERBS, cli


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every verb and every verb of a verb, by its words."""
    context = click.Context(cli)
    for verb in VERBS:
        command = cli.get_command(context, verb)
        assert command is not None
        yield verb, command
        if isinstance(command, click.Group):
            yield from ((f"{verb} {name}", inner) for name, inner in command.commands.items())


WORDS = [words for words, _ in commands()]
LINES = [line for lines in EXAMPLES.values() for line, _ in lines]


def calls_of(line: str) -> Iterator[list[str]]:
    """The calls of kvswap in a line of shell: through pipes, in `$(...)`, over ssh."""
    inner = line.partition('"$(')[2].rpartition(')"')[0]
    words = shlex.split(inner or line, comments=True)
    for part in " ".join(map(shlex.quote, words)).split(" '|' "):
        tokens = shlex.split(part)
        while tokens and tokens[0] != "kvswap":
            tokens = tokens[1:]
        for end in (">", "&"):
            tokens = tokens[: tokens.index(end)] if end in tokens else tokens
        yield tokens[1:]


def parse(arguments: list[str]) -> click.Context:
    """Let click parse a whole command line, and run nothing of it."""
    context = cli.make_context("kvswap", arguments)
    group: click.Command = cli
    while isinstance(group, click.Group):
        left = [*context._protected_args, *context.args]
        if not left and group.invoke_without_command:
            return context
        name, command, rest = group.resolve_command(context, left)
        assert command is not None
        context, group = command.make_context(name, rest, parent=context), command
    return context


@pytest.mark.parametrize("words", WORDS)
def test_the_help_of_every_verb_ends_with_examples(words: str) -> None:
    done = CliRunner().invoke(cli, [*words.split(), "--help"])
    assert done.exit_code == 0
    help_, _, examples = done.output.rpartition("\nExamples:\n")
    assert "--help" in help_, words
    lines = examples.rstrip("\n").splitlines()
    assert lines and all(line.startswith("  ") and f"kvswap {words.split()[0]}" in line for line in lines), examples
    for line, said in EXAMPLES.get(words, ()):
        assert line in examples and said in examples


def test_there_is_no_example_of_a_verb_that_there_is_not() -> None:
    assert set(EXAMPLES) <= set(WORDS)
    groups = {words.split()[0] for words in WORDS if " " in words}
    assert set(WORDS) - set(EXAMPLES) <= groups  # which show those of their verbs


@pytest.mark.parametrize("line", LINES)
def test_every_example_is_a_valid_command_line(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (
        "manual.txt",
        "notes.txt",
        "manual.tar",
        "invitation.txt",
        "team.key",
        "artifact.kvm",
        "messages.json",
        "tools.json",
        "requests.jsonl",
    ):
        (tmp_path / name).write_text("x")
    for name in ("texts", "chunks", "prefixes"):
        (tmp_path / name).mkdir()
    calls = list(calls_of(line))
    assert calls and all(calls), line
    for arguments in calls:
        with parse(arguments) as context:
            assert context.command_path.startswith("kvswap ")


@pytest.mark.parametrize("line", ["kvswap fetch", "kvswap ls --nonsense", "kvswap trust add", "kvswap nonsense"])
def test_a_line_that_is_not_valid_would_be_found(line: str) -> None:
    (arguments,) = calls_of(line)
    with pytest.raises(click.UsageError):
        parse(arguments)
