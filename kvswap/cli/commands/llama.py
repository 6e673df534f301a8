"""`kvswap llama`: a llama-server that keeps what it prefilled over restarts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from kvswap.cli.objective import Bytes, Finite
from kvswap.cli.output import Output, verb
from kvswap.core.defaults import LOOKUP_SECONDS
from kvswap.core.directories import home_directory
from kvswap.core.errors import UsageError

if TYPE_CHECKING:
    from kvswap.integrations.llamacpp.proxy.run import ProxyStarted

_QUOTA = 10 * 10**9
_MODEL = ("-m", "--model", "-hf", "-hfr", "--hf-repo", "-mu", "--model-url", "LLAMA_ARG_MODEL", "LLAMA_ARG_HF_REPO")


class _Through(click.Command):
    """A command that knows its own long options, and takes every other word as it is: they are llama-server's.

    click itself would read `-kvu` as three options of one letter.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Sort the words, and let click parse those of this command."""
        options = {name: one for one in self.get_params(ctx) if isinstance(one, click.Option) for name in one.opts}
        own: list[str] = []
        others: list[str] = []
        words = iter(args)
        for word in words:
            name, assigned, _ = word.partition("=")
            option = options.get(name)
            if option is None:
                others.append(word)
                continue
            own.append(word)
            if not option.is_flag and not assigned:
                own += [value for value in [next(words, None)] if value is not None]
        return super().parse_args(ctx, [*own, "--", *others])


@click.command(
    "llama",
    cls=_Through,
    help="Run llama-server so that it keeps what it prefilled: MODEL and all other flags are llama-server's own.",
    context_settings={"help_option_names": ["--help"]},
)
@click.option("--quota", type=Bytes(0, 10**18), default=_QUOTA, help="Of kept conversations; as 500M or 10G.")
@click.option(
    "--lookup-seconds",
    type=Finite(0.001, 3600),
    default=LOOKUP_SECONDS,
    show_default=True,
    help="Until a request goes on as it came, while it is not known whether anything is kept of it.",
)
@click.option(
    "--server-program", metavar="FILE", help="The llama-server to start (default: from PATH, or xllamacpp's)."
)
@click.option("--server", metavar="URL", help="Front this llama-server; give its --slot-save-path and --api-key too.")
@click.argument("flags", nargs=-1, type=click.UNPROCESSED, metavar="[--model FILE] [LLAMA-SERVER'S FLAGS]...")
@verb
def llama_command(
    output: Output,
    quota: int,
    lookup_seconds: float,
    server_program: str | None,
    server: str | None,
    flags: tuple[str, ...],
) -> None:
    """Run llama-server with the proxy in front of it, on the address that its flags name, until interrupted."""
    from kvswap.integrations.llamacpp.proxy.flags import ServerFlags
    from kvswap.integrations.llamacpp.proxy.run import LlamaOptions, main

    read = ServerFlags.read(flags, os.environ)
    _check(read.arguments, server, read.slot_directory is not None)
    options = LlamaOptions(home_directory(output.home), read, quota, lookup_seconds, server_program, server)

    def ready(started: ProxyStarted) -> None:
        output.result(started, f"llama-server is ready at {started.url}")
        if started.reason:
            output.note(f"nothing is restored: {started.reason}")
        output.note(f"curl {started.url}/kvswap/status   what is kept")

    main(options, ready)


def _check(arguments: tuple[str, ...], server: str | None, slots: bool) -> None:
    """Raise `UsageError` where there is nothing to start, or flags that a server which runs already cannot get."""
    if server is None:
        if not any(word in _MODEL for word in (*arguments, *os.environ)):
            raise UsageError("no model was named", hint="kvswap llama --model FILE.gguf")
        return
    if not slots:
        raise UsageError(
            "the proxy has to know where that llama-server saves its slots",
            hint="--slot-save-path DIRECTORY, the same as the server has",
        )
    known = ("--api-key", "--api-key-file", "--api-prefix")
    for word in arguments:
        if word.startswith("-") and word not in known:
            raise UsageError(
                f"{word} cannot be given to a llama-server that runs already", hint="start it with that flag"
            )
