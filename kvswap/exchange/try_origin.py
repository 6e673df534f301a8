"""Testing an origin: whether it can be read, written, and written by several at once."""

from __future__ import annotations

import secrets
import time

from kvswap.api.origins import OriginTest
from kvswap.core.errors import KvswapError, NotFound
from kvswap.core.limits import LIMITS
from kvswap.core.origin_settings import OriginSettings
from kvswap.origins.opening import backend_of
from kvswap.origins.origin import conditional
from kvswap.origins.port import Backend

_BYTES = b"kvswap was here"


async def try_origin(settings: OriginSettings, *, write: bool | None = None) -> OriginTest:
    """Read and, unless it is a web server or `write` is false, write and remove one small file.  Raises nothing."""
    began, trial = time.monotonic(), _Trial()
    seconds: float | None = None
    try:
        backend = backend_of(settings)
        try:
            await trial.read(backend)
            seconds = time.monotonic() - began
            if backend.writes and write is not False:
                await trial.write(backend)
        finally:
            await backend.close()
    except KvswapError as error:
        trial.problem = f"{error.message} ({error.cause})"
    return OriginTest(
        url=settings.url,
        ok=trial.problem is None,
        reads=trial.reads,
        writes=trial.writes,
        conditional=trial.conditional,
        seconds=round(time.monotonic() - began if seconds is None else seconds, 4),
        plain=settings.plain,
        problem=trial.problem,
    )


class _Trial:
    def __init__(self) -> None:
        self._name = f"trials/{secrets.token_hex(8)}"
        self.reads = False
        self.writes: bool | None = None
        self.conditional: bool | None = None
        self.problem: str | None = None

    async def read(self, backend: Backend) -> None:
        try:
            await backend.get("index/layers", LIMITS.origin_page_bytes)
        except NotFound:
            await backend.check()
        self.reads = True

    async def write(self, backend: Backend) -> None:
        self.writes = False
        await backend.put(self._name, _BYTES)
        try:
            first = await backend.get(self._name, 1024)
            self.writes = first.data == _BYTES and await backend.same(self._name, _BYTES)
            if not self.writes:
                self.problem = "what was written is not what is read"
            self.conditional = await conditional(backend)
            if self.conditional:
                await backend.put(self._name, _BYTES + b" again", first.tag)
        finally:
            await backend.delete(self._name)
