"""Starting and stopping a node: lock, keys, store, API, run-file, peers - and the reverse on SIGTERM.

A second signal during shutdown ends the process at once; nothing that matters is lost by it, because
the store is right at every moment.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
from collections.abc import Callable
from typing import Any

from aiohttp import web

from kvswap.core.errors import UsageError
from kvswap.core.log import start_log
from kvswap.core.runfile import RunFile
from kvswap.core.settings import Settings
from kvswap.core.upkeep import Problems
from kvswap.cost import Calibration
from kvswap.daemon.app import Api
from kvswap.daemon.supervisor import ModelProcess
from kvswap.exchange import Node
from kvswap.exchange.node import peer_of
from kvswap.net import Transport
from kvswap.store import Store
from kvswap.trust import PolicyFile

_GRACE_SECONDS = 3.0
_SWITCH_SECONDS = 0.0005
Ready = Callable[[dict[str, Any]], None]


def _transport(settings: Settings, seed: bytes, problems: Problems) -> Transport | None:
    if not settings.p2p:
        return None
    from kvswap.net.libp2p.transport import Libp2pTransport

    return Libp2pTransport(seed, settings, problems)


async def serve(settings: Settings, ready: Ready) -> None:
    """Run a node until SIGINT or SIGTERM.  Raises `StoreLocked`, `UsageError`."""
    for address in settings.bootstrap:
        peer_of(address)  # a typing error is worth stopping for; an absent peer is not
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, lambda: os._exit(130) if stop.is_set() else stop.set())
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    store = Store.open(settings.home / "store", settings.quota_bytes)
    model = ModelProcess(settings, store.problems)
    try:
        node_key, publisher_key = Node.keys(settings.home)
        node = Node(
            settings,
            store,
            _transport(settings, node_key.seed, store.problems),
            model,
            publisher_key,
            PolicyFile(settings.home / "trust.json", publisher_key.peer_id),
            Calibration(settings.home / "calibration.json"),
            node_key,
        )
        await _run(settings, node, model, stop, ready)
    finally:
        await model.stop()
        store.close()


async def _run(settings: Settings, node: Node, model: ModelProcess, stop: asyncio.Event, ready: Ready) -> None:
    token = secrets.token_urlsafe(32)
    # What a client cancelled must stop here too, hence handler_cancellation.
    runner = web.AppRunner(
        Api(node, model).application(token),
        handler_cancellation=True,
        access_log=None,
        shutdown_timeout=_GRACE_SECONDS,
    )
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", settings.api_port)
    try:
        await site.start()
    except OSError as error:
        await runner.cleanup()
        raise UsageError(f"cannot listen on port {settings.api_port}: {error.strerror}") from error
    port = runner.addresses[0][1]
    await node.start()
    idle = asyncio.create_task(model.unload_when_idle())
    run_file = RunFile(f"http://127.0.0.1:{port}", token, os.getpid())
    run_file.write(settings.home)
    try:
        ready(
            {
                "url": run_file.url,
                "peer": node.transport.peer if node.transport else None,
                "publisher": str(node.publisher.peer_id),
                "addresses": node.transport.addresses() if node.transport and node.p2p else [],
                "degraded": node.problems,
                "lifted": node.policy.lifted(),
            }
        )
        await stop.wait()
    finally:
        RunFile.remove(settings.home)
        idle.cancel()
        await model.stop()  # ends a running job, so its request can end too
        await runner.cleanup()
        await node.stop()


def main(settings: Settings, ready: Ready) -> None:
    """Blocking form of `serve`."""
    # The trio thread moves every byte; at Python's default of 5 ms it waits for the loop's thread too long.
    sys.setswitchinterval(_SWITCH_SECONDS)
    start_log(settings.home)
    asyncio.run(serve(settings, ready))
