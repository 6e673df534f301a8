"""Starting and ending `kvswap llama`: a llama-server of its own or a running one, with the proxy in front."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from kvswap.core.atomic import write_atomic
from kvswap.core.defaults import LOOKUP_SECONDS
from kvswap.core.errors import KvswapError, UsageError
from kvswap.core.log import start_log
from kvswap.core.tasks import end
from kvswap.integrations.llamacpp.identity import gguf_identity
from kvswap.integrations.llamacpp.proxy.app import ProxyApp
from kvswap.integrations.llamacpp.proxy.counts import Counts
from kvswap.integrations.llamacpp.proxy.flags import ServerFlags
from kvswap.integrations.llamacpp.proxy.forward import Forwarder
from kvswap.integrations.llamacpp.proxy.keeper import Keeper
from kvswap.integrations.llamacpp.proxy.kept import KeptTree
from kvswap.integrations.llamacpp.proxy.launch import ServerFailed, ServerProcess
from kvswap.integrations.llamacpp.proxy.probing import probe
from kvswap.integrations.llamacpp.proxy.server import ServerRefused, SlotServer
from kvswap.integrations.llamacpp.proxy.slot_actions import SlotActions
from kvswap.integrations.llamacpp.proxy.slot_files import SlotFiles, slots_directory

logger = logging.getLogger("kvswap.llama")

RUN_FILE = "llama.json"
_POLL_SECONDS = 0.1
_PROPS_SECONDS = 10.0
_RESTARTS = 5  # in a row of servers that live for less than this
_SHORT_LIFE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class ProxyStarted:
    """The proxy that is ready: its address, its server's, and whether anything is kept, or why not."""

    url: str
    pid: int
    server: str
    keeping: bool
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"ready": True} | asdict(self)


Ready = Callable[[ProxyStarted], None]


@dataclass(frozen=True, slots=True)
class LlamaOptions:
    """The options of `kvswap llama`; see its help.  `server` is the URL of a llama-server that runs already."""

    home: Path
    flags: ServerFlags
    quota_bytes: int
    lookup_seconds: float = LOOKUP_SECONDS
    program: str | None = None
    server: str | None = None


class LlamaProxy:
    """A proxy and the llama-server behind it."""

    def __init__(self, options: LlamaOptions) -> None:
        flags = options.flags
        self._options, self._folder = options, options.home / "llama"
        self._chosen = flags.slot_directory is not None
        self._files = SlotFiles(slots_directory(flags.slot_directory, self._folder))
        self._process = None if options.server else ServerProcess(flags, options.program, self._files.directory)
        self._forwarder = Forwarder(options.server or self._process.url)  # type: ignore[union-attr]
        self._server = SlotServer(self._forwarder, flags.api_key, flags.prefix)
        self._keeper = Keeper(self._server, self._files, Counts(), options.lookup_seconds)
        actions = SlotActions(self._keeper, self._forwarder, flags.slot_directory, self._folder / "booked")
        self._app = ProxyApp(self._forwarder, self._keeper, actions, flags.api_key, flags.prefix)

    async def serve(self, ready: Ready) -> None:
        """Listen, start the server, and answer until SIGINT or SIGTERM.

        Raises `UsageError` for an address that cannot be used, or `ServerFailed`.
        """
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(
                number, lambda: os._exit(130) if stop.is_set() else stop.set()
            )
        runner = web.AppRunner(self._app.application(), handler_cancellation=True, access_log=None, shutdown_timeout=3)
        await runner.setup()
        running = asyncio.create_task(self._run(ready, await self._listen(runner)))
        waiting = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
        finally:
            await end([running, waiting])
            await runner.cleanup()
            await self._keeper.close()
            await self._close()

    async def _listen(self, runner: web.AppRunner) -> str:
        host, port = self._options.flags.host, self._options.flags.port
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            await runner.cleanup()
            await self._close()
            raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}", hint="--port 8081") from error
        shown = f"[{host}]" if ":" in host else host
        return f"http://{shown}:{runner.addresses[0][1]}"

    async def _close(self) -> None:
        if self._process is not None:
            await self._process.stop()
        await self._forwarder.close()
        if not self._chosen:
            shutil.rmtree(self._files.directory, ignore_errors=True)

    async def _run(self, ready: Ready, url: str) -> None:
        """Keep a server running: one that ends is started again, unless it ends again and again."""
        short = 0
        while True:
            began = time.monotonic()
            if self._process is not None:
                await self._process.start()
            self._keeper.counts.server_starts += 1
            if await self._ready():
                await self._establish()
            elif ready is not _nobody:
                raise ServerFailed(f"llama-server did not start: it ended with status {await self._ended()}")
            if ready is not _nobody:
                keeping, reason = self._keeper.tree is not None, self._keeper.reason
                started = ProxyStarted(url, os.getpid(), self._forwarder.url, keeping, reason)
                text = json.dumps(started.to_json()).encode() + b"\n"
                write_atomic(self._options.home / RUN_FILE, text, durable=False)
                ready(started)
                ready = _nobody
            status = await self._ended()
            brief = self._process is not None and time.monotonic() - began < _SHORT_LIFE_SECONDS
            short = short + 1 if brief else 0
            if short >= _RESTARTS:
                raise ServerFailed(f"llama-server ended {short} times in a row, with status {status}")
            self._keeper.pass_through(f"llama-server ended with status {status}, and is started again")

    async def _ready(self) -> bool:
        """Wait until the server answers, and return True; or False if it ended before."""
        while not await self._server.healthy():
            if self._process is not None and not self._process.alive():
                return False
            await asyncio.sleep(_POLL_SECONDS)
        return True

    async def _ended(self) -> int:
        """Wait until the server has ended; one that was running before is looked at now and then."""
        if self._process is not None:
            return await self._process.ended()
        while await self._server.healthy():
            await asyncio.sleep(1.0)
        return 0

    async def _establish(self) -> None:
        """Find out what the server is, and begin to keep its conversations, or say why not."""
        if self._options.flags.not_kept:
            self._keeper.pass_through(f"{self._options.flags.not_kept} makes a cache other than its ids say")
            return
        try:
            model = await self._model()
            async with self._keeper.lock:  # requests wait for the probe, as they did for the model
                found = await probe(self._server, self._files.directory, model)
                self._files.learn(found.shape)
                kept = self._folder / "kept"
                tree = await asyncio.to_thread(KeptTree, kept, found.root, found.shape, self._options.quota_bytes)
                self._keeper.keep_in(tree, found.restores)
        except (KvswapError, OSError) as error:
            self._keeper.pass_through(f"this llama-server is not understood: {error}")
            return
        logger.info("llama: conversations of %s are kept, %d bytes so far", tree.root, tree.bytes)

    async def _model(self) -> str:
        """Return a name of the weights that the server has.  Raises `ServerRefused`."""
        props = await self._server.ask("GET", "/props", seconds=_PROPS_SECONDS)
        path = props.get("model_path") if isinstance(props, dict) else None
        if not isinstance(path, str):
            raise ServerRefused("llama-server does not say which model it has")
        return await asyncio.to_thread(weights_name, Path(path), self._folder / "identities")


def weights_name(path: Path, cache: Path) -> str:
    """Return the identity of a GGUF file as one word, remembered in `cache`.

    Of a file that this process cannot read, or whose parts lie in several files, it is the name and the length alone:
    the numbers that the server makes of fixed ids are the other half of what conversations are kept under.
    """
    try:
        identity = gguf_identity(path, cache=cache)
        return f"{identity.weights.hex()}-{identity.config.hex()}-{identity.tokenizer.hex()}"
    except (KvswapError, OSError) as error:
        logger.info("llama: %s is known by its name alone: %s", path.name, error)
    try:
        return f"{path.name}-{path.stat().st_size}"
    except OSError:
        return path.name


def _nobody(started: ProxyStarted) -> None:
    """Announce nothing: only the first start is announced."""


def main(options: LlamaOptions, ready: Ready) -> None:
    """Run the proxy in the foreground, with its log in the home."""
    options.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    start_log(options.home, level="info")
    asyncio.run(LlamaProxy(options).serve(ready))
