"""Starting and stopping a node: lock, keys, store, API, run-file, peers - and the reverse on SIGTERM.

A second signal during shutdown ends the process at once; nothing that matters is lost by it, because
the store is right at every moment.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import secrets
import signal
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web

from kvswap.api.machine import DaemonReady
from kvswap.api.trust import BannedPublisher
from kvswap.core.errors import KvswapError, UsageError
from kvswap.core.ids import peer_of
from kvswap.core.log import start_log
from kvswap.core.runfile import RunFile
from kvswap.core.settings import Settings
from kvswap.core.upkeep import Problems, forever
from kvswap.core.version import __version__
from kvswap.cost import Calibration
from kvswap.daemon import socket
from kvswap.daemon.app import Api
from kvswap.daemon.memory import few_arenas
from kvswap.daemon.node_api import NodeApi
from kvswap.daemon.page.page import PORTS
from kvswap.daemon.supervisor import ModelProcess
from kvswap.daemon.watch import Watch
from kvswap.exchange import Node
from kvswap.exchange.node.identity import keys_of
from kvswap.exchange.serving.service import Service
from kvswap.exchange.verification import pending_writes
from kvswap.net import Transport
from kvswap.store import Home, Store
from kvswap.trust import PolicyFile

_logger = logging.getLogger(__name__)
_GRACE_SECONDS = 3.0
_MAINTAIN_SECONDS = 5.0
_SWITCH_SECONDS = 0.0005
_THREADS = 24
Ready = Callable[[DaemonReady], None]


def _transport(settings: Settings, seed: bytes, problems: Problems) -> Transport | None:
    if not settings.p2p:
        return None
    from kvswap.net.libp2p.transport import Libp2pTransport

    return Libp2pTransport(seed, settings, problems)


async def serve(
    settings: Settings, ready: Ready, watch: Watch, verbose: bool = False, places: Mapping[str, str] | None = None
) -> None:
    """Run a node until a signal or a client ends it, on a loop that `watch` made.

    `places`: where the settings came from.  Raises `StoreLocked`, `UsageError`.
    """
    for address in settings.bootstrap:
        peer_of(address)  # a typing error is worth stopping for; an absent peer is not
    few_arenas()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    # Whatever may wait for the disk runs in a thread: a few long ones must not hold up the short ones of peers.
    loop.set_default_executor(ThreadPoolExecutor(_THREADS, "kvswap"))
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, lambda: os._exit(130) if stop.is_set() else stop.set())
    home = Home(settings.home)
    start_log(settings.home, level=settings.log_level, style=settings.log_format, verbose=verbose)  # now it has a place
    try:
        await _serve(settings, home, stop, ready, watch, places or {})
    finally:
        home.close()


async def _serve(
    settings: Settings, home: Home, stop: asyncio.Event, ready: Ready, watch: Watch, places: Mapping[str, str]
) -> None:
    store = Store.open(settings.home / "store", settings.quota_bytes)
    model = ModelProcess(settings, store.problems)
    try:
        node_key, publisher_key = keys_of(settings.home)
        node = Node(
            settings,
            store,
            _transport(settings, node_key.seed, store.problems),
            model,
            publisher_key,
            PolicyFile(settings.home / "trust.json", publisher_key.peer_id),
            Calibration(settings.home / "calibration.json", store.problems),
            node_key,
        )
        api = Api(node, model, watch, NodeApi(node, places, stop.set))
        await _run(node, home, model, stop, ready, watch, api)
    finally:
        await model.stop()
        store.close()


async def _look_after(node: Node, home: Home) -> None:
    """Put right what the disk allows again: what is only in memory is written back, what was deleted made again."""

    def maintain() -> None:
        home.maintain()
        node.store.maintain()
        node.savings.write()
        pending_writes.write_pending(node)

    await forever("store", lambda: asyncio.to_thread(maintain), node.problems, pause=_MAINTAIN_SECONDS)


def _write_run_file(run_file: RunFile, home: Home) -> None:
    try:
        run_file.write(home.path)
    except KvswapError:
        if not home.release():
            raise
        run_file.write(home.path)


async def _run(
    node: Node, home: Home, model: ModelProcess, stop: asyncio.Event, ready: Ready, watch: Watch, api: Api
) -> None:
    settings, service = node.settings, Service(node)
    token = secrets.token_urlsafe(32)
    # What a client cancelled must stop here too, hence handler_cancellation.
    application = api.application(token)
    runner = web.AppRunner(
        application,
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
    application[PORTS].append(port)
    listening = await socket.listen(runner, settings.home)
    await service.start()
    idle = asyncio.create_task(model.unload_when_idle())
    run_file = RunFile(f"http://127.0.0.1:{port}", token, os.getpid())
    _write_run_file(run_file, home)
    looking = asyncio.create_task(_look_after(node, home))
    gc.collect()
    gc.freeze()  # what is here now stays: looking through it with each collection takes a tenth of a second
    watch.begin()
    try:
        ready(
            DaemonReady(
                ready=True,
                url=run_file.url,
                peer=node.transport.peer or None,
                publisher=node.identity.own,
                addresses=node.transport.addresses() if node.p2p else [],
                degraded=node.problems,
                lifted=[BannedPublisher.from_json(ban) for ban in node.trust.policy.lifted()],
            )
        )
        _logger.info("kvswap %s is ready, port %d, p2p %s", __version__, port, "on" if node.p2p else "off")
        await stop.wait()
        _logger.info("stopping")
    finally:
        RunFile.remove(settings.home)
        socket.remove(listening)
        idle.cancel()
        looking.cancel()
        await model.stop()  # ends a running job, so its request can end too
        await runner.cleanup()
        await service.stop()


def main(settings: Settings, ready: Ready, verbose: bool = False, places: Mapping[str, str] | None = None) -> None:
    """Run `serve` until it ends; with `verbose` standard error gets as much as the log."""
    os.umask(0o077)  # a cache reveals its text: what is written here is this user's alone
    # The trio thread moves every byte; at Python's default of 5 ms it waits for the loop's thread too long.
    sys.setswitchinterval(_SWITCH_SECONDS)
    start_log(settings.home)
    watch = Watch()
    with asyncio.Runner(loop_factory=watch.new_loop) as runner:
        runner.run(serve(settings, ready, watch, verbose, places))
