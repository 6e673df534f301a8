"""The `kvswap` command: lazy verbs, and the one place where an error becomes text and exit code."""

from __future__ import annotations

import gc
import io
import json
import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any

import click
from click.shell_completion import CompletionItem

from kvswap.cli import streams
from kvswap.cli.examples import with_examples
from kvswap.core.errors import KvswapError, UsageError
from kvswap.core.version import __version__

# Verb -> (module, help).  A table, so that --help imports no verb.
VERBS = {
    "daemon": ("daemon", "Run a node."),
    "publish": ("publish", "Prefill a text file and offer its KV cache to peers."),
    "advise": ("advise", "Say from a log of requests which prefixes are worth publishing."),
    "push": ("push", "Put an artifact at an origin: a directory, a bucket."),
    "find": ("find", "Say who has an artifact or a document, without fetching it."),
    "fetch": ("fetch", "Make a published cache local and verified, when that is worth it."),
    "ask": ("ask", "Answer a question from a document's cache."),
    "plan": ("plan", "Say whether fetching beats prefilling, and why."),
    "show": ("show", "Show the manifest of an artifact in the store."),
    "verify": ("verify", "Check an artifact step by step, or the whole store."),
    "withdraw": ("withdraw", "Take back an artifact that this node published."),
    "ls": ("ls", "List artifacts in the store."),
    "export": ("archive", "Write an artifact in the store as one file."),
    "import": ("archive", "Take an artifact from one file into the store, verified."),
    "rm": ("rm", "Remove an artifact from the store."),
    "pin": ("pin", "Keep an artifact whatever the quota says."),
    "unpin": ("pin", "Let an artifact go when space is needed."),
    "gc": ("gc", "Remove chunks that no artifact needs."),
    "status": ("status", "State of the running node."),
    "ui": ("ui", "Open the local page in a browser."),
    "stop": ("stop", "End the daemon, and wait until it has."),
    "config": ("config", "Every setting, and where its value comes from."),
    "logs": ("logs", "The daemon's log."),
    "origin": ("origin", "Places that keep artifacts as files, beside peers."),
    "peers": ("peers", "Peers and what was experienced with them."),
    "block": ("block", "Neither serve nor ask a peer."),
    "unblock": ("block", "Serve and ask a peer again."),
    "trust": ("trust", "Publishers whose artifacts this node uses."),
    "host": ("host", "Answer others from hosted documents; or ask who does."),
    "llama": ("llama", "Run llama-server so that it keeps what it prefilled over restarts."),
    "group": ("group", "Groups, for which documents can be sealed."),
    "id": ("id", "This node's ids and addresses."),
    "model": ("model", "Models: list, pull, check, remove."),
    "codec": ("codec", "Train the predictive codec for a model."),
    "economics": ("economics", "What prefilling, hosting and shipping cost, after the paper."),
    "bench": ("bench", "The paper's experiment on this machine."),
    "manifest": ("manifest", "Judge a manifest file."),
    "events": ("events", "What the node did and does."),
    "doctor": ("doctor", "Check this machine and this installation."),
    "mcp": ("mcp", "Tools for agent programs, over the Model Context Protocol."),
    "completion": ("completion", "Let a shell complete verbs, options and their values."),
}


# Heading of the help -> verbs, in their order.
GROUPS = {
    "Basics": ("daemon", "publish", "push", "find", "fetch", "ask", "plan", "status", "ui", "stop"),
    "Store": ("ls", "show", "rm", "pin", "unpin", "gc", "withdraw", "export", "import"),
    "Trust": ("verify", "trust", "group", "manifest"),
    "Network": ("id", "peers", "block", "unblock", "origin", "host", "events"),
    "Models and costs": ("model", "llama", "codec", "advise", "economics", "bench"),
    "This machine": ("config", "logs", "doctor", "mcp", "completion"),
}


class LazyGroup(click.Group):
    """Imports a verb's module only when the verb is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the verbs, in the order of the table."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a verb, and return its command with its examples; None for another word."""
        if cmd_name not in VERBS:
            return None
        module = import_module(f"kvswap.cli.commands.{VERBS[cmd_name][0]}")
        gc.enable()
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return with_examples(command, cmd_name)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """Return the verbs, without importing any, or the options."""
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [CompletionItem(name, help=VERBS[name][1]) for name in VERBS if name.startswith(incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs under their headings, without importing any."""
        for heading, names in GROUPS.items():
            with formatter.section(heading):
                formatter.write_dl([(name, VERBS[name][1]) for name in names])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb; of a typing error say which one is like it."""
        if args and args[0] not in VERBS and not args[0].startswith("-") and not ctx.resilient_parsing:
            from difflib import get_close_matches

            like = get_close_matches(args[0], VERBS, n=1)
            meant = f" Did you mean {like[0]!r}?" if like else ""
            ctx.fail(f"No such command {args[0]!r}.{meant}")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kvswap")
@click.option("--home", envvar="KVSWAP_HOME", help="Directory of this node (default: the platform's for data).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no hints.")
@click.option("-v", "--verbose", is_flag=True, help="Say what is done, and how long it takes.")
@click.option("--no-color", is_flag=True, help="No colours (also NO_COLOR).")
@click.pass_context
def cli(ctx: click.Context, home: str | None, as_json: bool, quiet: bool, verbose: bool, no_color: bool) -> None:
    """Exchange the KV caches of documents between machines that run the same model.

    stdout is data, stderr is progress.  A KV cache reveals its text: publish what may be read.
    """
    ctx.obj = {} if ctx.obj is None else ctx.obj  # `main` gave one, and looks into it when something fails
    ctx.obj |= {"home": home, "as_json": as_json, "quiet": quiet, "verbose": verbose, "no_color": no_color}


def render_error(error: KvswapError, as_json: bool) -> None:
    """Say what happened, one likely cause, and what helps; as JSON on stdout too, where that was asked for."""
    if as_json:
        with suppress(KvswapError, OSError):  # stdout is what failed, perhaps
            streams.answer(json.dumps({"error": error.to_dict()}))
    streams.write_line(f"kvswap: {error.message}")
    if error.cause:
        streams.write_line(f"  Cause: {error.cause}")
    if error.hint:
        streams.write_line(f"  Hint:  {error.hint}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code.  No exception leaves it, and no traceback reaches stderr."""
    as_json = "--json" in (sys.argv[1:] if arguments is None else arguments)
    chosen: dict[str, Any] = {}
    streams.prepare()
    if "_KVSWAP_COMPLETE" in os.environ:  # a shell asks, for a TAB
        from kvswap.cli.shells import register

        register()
    try:
        result: Any = cli.main(args=arguments, prog_name="kvswap", standalone_mode=False, obj=chosen)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return int(error.exit_code)
    except click.ClickException as error:
        return _usage(error, as_json)
    except (click.Abort, KeyboardInterrupt):
        streams.write_line("kvswap: interrupted; what was fetched is kept, the same command resumes")
        return 130
    except BrokenPipeError:  # who reads our output wants no more of it
        streams.silence(sys.stdout)
        return 1
    except Exception as error:  # noqa: BLE001 - the boundary of a process
        return _failed(error, chosen, as_json)
    finally:
        streams.flush()


def _usage(error: click.ClickException, as_json: bool) -> int:
    text = io.StringIO()
    error.show(file=text)
    if as_json:
        where = error.ctx if isinstance(error, click.UsageError) else None
        hint = f"{where.command_path} --help" if where is not None else None
        failure = UsageError(error.format_message(), cause="a typing error", hint=hint)
        with suppress(KvswapError, OSError):
            streams.answer(json.dumps({"error": failure.to_dict()}))
    streams.write_line(text.getvalue().rstrip())
    return UsageError.exit_code


def _failed(error: Exception, chosen: dict[str, Any], as_json: bool) -> int:
    """Render what was raised as one of our errors; the traceback of what is not ours goes to the log of the home."""
    if isinstance(error, KvswapError) and error.origin is None:
        failure = error
    else:
        from kvswap.core import failures, log
        from kvswap.core.directories import home_directory

        with suppress(KvswapError, OSError, ValueError, RuntimeError):
            log.start_log(home_directory(chosen.get("home")), stderr=bool(chosen.get("verbose")))
        failure = failures.record(error)
    if failure.hint == UsageError.usual[1] and "command" in chosen:  # of an option or argument of this verb
        failure.hint = f"{chosen['command']} --help"
    render_error(failure, as_json)
    return failure.exit_code


def entry() -> None:
    """Run the command line as the console script does, and end the process with its exit code."""
    sys.exit(main())
