"""An origin: artifacts in a place of files, found by its index.  What it says is checked by whoever asked."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence

from kvswap.artifact.archive import file_name, manifest_name
from kvswap.core.bounded import Table
from kvswap.core.errors import NotFound
from kvswap.core.ids import Cid, PeerId, blake3_digest
from kvswap.core.limits import LIMITS, MIB
from kvswap.core.origin_settings import OriginSettings
from kvswap.origins.index import OriginIndex
from kvswap.origins.opening import backend_of
from kvswap.origins.port import NEW, Backend, Blob, Changed, OnBytes

_KEPT_BYTES = 32 * MIB  # envelopes that came with a look-up, and are asked for in the next moment
_OTHER_TAG = '"00000000000000000000000000000000"'  # in the form of an S3 store
_PIECE = 8 * MIB  # a longer file is read in such parts, side by side


def status_name(publisher: str) -> str:
    """Return the name of a publisher's status record: its public key in hex, as file systems may ignore case."""
    return f"status/{PeerId.parse(publisher).public_key.hex()}"


async def conditional(backend: Backend) -> bool:
    """Return True if a place refuses to write in place of another version; tried with a file that is removed again."""
    name = f"trials/{secrets.token_hex(8)}"
    await backend.put(name, b"kvswap")
    try:
        for tag in (NEW, _OTHER_TAG):
            try:
                await backend.put(name, b"kvswap was here", tag)
            except Changed:
                continue
            return False
        return True
    finally:
        await backend.delete(name)


class Origin:
    """One origin of a node."""

    def __init__(self, settings: OriginSettings, backend: Backend | None = None) -> None:
        """`backend`: another than the URL says, for tests."""
        self.settings = settings
        self.backend = backend if backend is not None else backend_of(settings)
        self.index = OriginIndex(self.backend)
        self._conditional: bool | None = None  # until it was tried
        self._envelopes: Table[str, bytes] = Table(
            "envelopes of origins", entries=64, nbytes=_KEPT_BYTES, size=lambda name, data: len(data)
        )

    @property
    def url(self) -> str:
        """The URL, which is the name of the origin."""
        return self.settings.url

    # -- reading -----------------------------------------------------------------------------------

    async def envelope(self, artifact: str) -> bytes:
        """Read the envelope of an artifact, unverified.  Raises `NotFound`, `OriginError`."""
        name = manifest_name(Cid.parse(artifact))
        known = self._envelopes.pop(artifact)
        return known if known is not None else (await self.backend.get(name, LIMITS.manifest_bytes)).data

    async def download_envelope(self, artifact: str) -> bytes | None:
        """Read an envelope and keep it for whoever asks in a moment; None where there is none."""
        try:
            data = await self.envelope(artifact)
        except NotFound:
            return None
        self._envelopes.put(artifact, data)
        return data

    async def status_record(self, publisher: str) -> Blob:
        """Read the newest status record that a publisher put there, unverified, with its tag; empty without one."""
        try:
            return await self.backend.get(status_name(publisher), LIMITS.status_record_bytes)
        except NotFound:
            return Blob(b"", NEW)

    async def file(self, cid: Cid, into: memoryview, on_bytes: OnBytes) -> None:
        """Fill `into` with a chunk, a large one in parts side by side.  Nothing is compared with its CID."""
        name = file_name(cid)
        if len(into) < 2 * _PIECE:
            await self.backend.read_into(name, into, on_bytes)
            return
        try:
            async with asyncio.TaskGroup() as group:
                for start in range(0, len(into), _PIECE):
                    part = into[start : start + _PIECE]
                    group.create_task(self.backend.read_into(name, part, on_bytes, start))
        except BaseExceptionGroup as error:
            raise error.exceptions[0] from error

    # -- writing -----------------------------------------------------------------------------------

    async def put_file(self, cid: Cid, data: bytes) -> bool:
        """Write a chunk unless it is there already; return True if it was written."""
        return await self._put_once(file_name(cid), data)

    async def put_manifest(self, artifact: Cid, envelope: bytes) -> bool:
        """Write an envelope unless just this one is there; return True if it was written."""
        return await self._put_once(manifest_name(artifact), envelope)

    async def _put_once(self, name: str, data: bytes) -> bool:
        if await self.backend.same(name, data):
            return False
        await self.backend.put(name, data)
        return True

    async def put_status_record(self, publisher: str, envelope: bytes, tag: str) -> None:
        """Write a status record in place of the version with this tag.  Raises `Changed`."""
        await self.backend.put(status_name(publisher), envelope, tag)

    async def index_to_write(self, writer: str) -> OriginIndex:
        """Return the index as this writer changes it: the shared one, or a layer of its own.

        The latter where the place writes in place of other versions than it was told to.
        """
        if self._conditional is None:
            self._conditional = await conditional(self.backend)
        return self.index if self._conditional else OriginIndex(self.backend, blake3_digest(writer.encode())[:16].hex())

    async def remove(self, artifact: str, writer: str, document: bytes | None, chain: Sequence[bytes]) -> None:
        """Take an artifact out of the index, then remove its envelope; its chunks may be others' too and stay."""
        await (await self.index_to_write(writer)).remove(artifact, document, chain)
        await self.backend.delete(manifest_name(Cid.parse(artifact)))

    async def close(self) -> None:
        """End all connections."""
        await self.backend.close()
