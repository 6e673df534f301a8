"""`kvswap daemon`: run a node."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from kvswap.cli.completing import ModelType, OneOf
from kvswap.cli.output import Output, verb
from kvswap.core.errors import KvswapError

if TYPE_CHECKING:
    from kvswap.api.machine import DaemonReady


@click.command("daemon", help="Run a node until SIGTERM or Ctrl-C.")
@click.option("--listen", multiple=True, help="Multiaddr to listen on (repeatable; default /ip4/127.0.0.1/tcp/0).")
@click.option("--announce", multiple=True, help="Multiaddr that peers should dial instead (repeatable).")
@click.option("--bootstrap", multiple=True, help="Multiaddr of a peer to join, with /p2p/ (repeatable).")
@click.option("--relays", multiple=True, help="Multiaddr of a relay to be reached through, behind NAT (repeatable).")
@click.option("--relay/--no-relay", default=None, help="Relay for nodes behind NAT.")
@click.option("--bulk/--no-bulk", default=None, help="Chunks over HTTPS, not over libp2p streams only.")
@click.option("--bulk-port", help="Port of the HTTPS bulk channel (default: any).")
@click.option("--api-port", help="Port of the local API (default: any).")
@click.option("--mdns/--no-mdns", default=None, help="Find peers on the local network.")
@click.option("--p2p/--no-p2p", default=None, help="Take part in the network at all.")
@click.option("--model", type=ModelType(), help="Default model: a name, or a directory.")
@click.option(
    "--dtype", type=OneOf("bfloat16", "float16", "float32"), help="Compute dtype: bfloat16, float16, float32."
)
@click.option("--device", type=OneOf("cpu", "cuda", "mps"), help="cpu, cuda, cuda:0, mps.")
@click.option("--threads", help="Compute threads (0: as torch chooses).")
@click.option(
    "--log-level",
    type=OneOf("debug", "info", "warning", "error"),
    help="What kvswap.log holds: debug, info, warning, error.",
)
@click.option("--log-format", type=OneOf("text", "json"), help="text, or json: one object a line.")
@verb
def daemon_command(output: Output, **flags: Any) -> None:
    """Run a node in this process, and print where it listens once it is ready."""
    from kvswap.core.directories import models_directory
    from kvswap.core.settings import Settings
    from kvswap.daemon.run import main
    from kvswap.model import catalogue

    if flags["model"]:
        flags["model"] = catalogue.typed(flags["model"], models_directory())
    settings, places = Settings.load_with_places(output.home, also=catalogue.not_here, **flags)

    def ready(info: DaemonReady) -> None:
        lines = [f"kvswap daemon is ready at {info.url} (home {settings.home})", f"  publisher {info.publisher}"]
        lines += [f"  listening {address}" for address in info.addresses]
        lines += [f"  degraded: {part}: {reason}" for part, reason in info.degraded.items()]
        lines += [
            f"  no longer held against {row.peer}: {row.why} (older rules; judged again when used)"
            for row in info.lifted
        ]
        with suppress(KvswapError, BrokenPipeError):  # a node whose output goes to a full disk is up all the same
            output.result(info, "\n".join(lines))

    main(settings, ready, verbose=output.verbose, places=places)
