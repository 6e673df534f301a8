"""Writes docs/cli.md from the command line's own help: `python docs/tools/cli_page.py [--check]`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "cli.md"
sys.path.insert(0, str(ROOT))

import click  # noqa: E402
from click.testing import CliRunner  # noqa: E402

from kvswap.cli.main import VERBS, cli  # noqa: E402
from kvswap.core import errors  # noqa: E402

HEAD = """\
# Command line

Made from the help of `kvswap` by `docs/tools/cli_page.py`; a test holds it current.

Standard output is data, standard error is progress and hints. Every verb takes `--home`, `--json`, `--quiet`,
`--verbose` and `--no-color`, before or after its name. With `--json` the last line on standard output is the result,
or `{"error": {"code", "message", "cause", "hint"}}`; what was said meanwhile are the lines before it. With `-v` a verb
says on standard error where it looks, what it asks the daemon and under which id the daemon's log (`kvswap logs`) has
that, and how long it takes.

## Completion

A TAB completes verbs, options and their values: models of the catalogue and those that are here, artifacts and
documents in the store, peers, publishers, groups, codecs, settings. In this shell, from now on:

```sh
eval "$(kvswap completion bash)"  # or zsh
kvswap completion fish | source
```

In every shell: bash 4.4 or newer with `kvswap completion bash > ~/.local/share/bash-completion/completions/kvswap`, zsh
with the `eval` line in `~/.zshrc` after `compinit`, fish with `kvswap completion fish >
~/.config/fish/completions/kvswap.fish`. It needs no daemon, and takes a tenth of a second.
"""
ALSO = {0: ["done, also where a list is empty"], 130: ["interrupted: the same command goes on where it ended"]}


def exit_codes() -> dict[int, list[str]]:
    """The first sentences of the error classes, by the exit code that they end with."""
    codes: dict[int, list[str]] = {code: list(said) for code, said in ALSO.items()}
    todo = [errors.KvswapError]
    while todo:
        kind = todo.pop(0)
        todo += kind.__subclasses__()
        if kind.__module__ != errors.__name__ or (kind is not errors.KvswapError and kind.exit_code == 130):
            continue
        said = "anything else" if kind is errors.KvswapError else " ".join(str(kind.__doc__).split("\n\n")[0].split())
        codes.setdefault(kind.exit_code, []).append(f"`{kind.code}`: {said.split('; `details')[0].rstrip('.')}")
    return dict(sorted(codes.items()))


def _help_of(arguments: list[str]) -> str:
    done = CliRunner().invoke(cli, [*arguments, "--help"], prog_name="kvswap", terminal_width=100)
    if done.exit_code:
        raise SystemExit(f"kvswap {' '.join(arguments)} --help failed: {done.output}")
    return done.output.rstrip()


def _sections() -> Iterator[str]:
    yield HEAD
    yield "## Exit codes\n\n| code | what happened |\n|---|---|"
    for code, said in exit_codes().items():
        yield f"| {code} | {'<br>'.join(said)} |"
    yield f"\n## kvswap\n\n```text\n{_help_of([])}\n```"
    context = click.Context(cli)
    for verb in VERBS:
        yield f"\n## kvswap {verb}\n\n```text\n{_help_of([verb])}\n```"
        command = cli.get_command(context, verb)
        for name in command.list_commands(context) if isinstance(command, click.Group) else ():
            yield f"\n### kvswap {verb} {name}\n\n```text\n{_help_of([verb, name])}\n```"


def page() -> str:
    """The page, as it should be."""
    os.environ.pop("COLUMNS", None)
    return "\n".join(_sections()) + "\n"


if __name__ == "__main__":
    if "--check" not in sys.argv:
        PAGE.write_text(page())
    elif PAGE.read_text() != page():
        sys.exit("docs/cli.md is not what the help says: python docs/tools/cli_page.py")
