"""A node's origins: those of its settings and those that its user added, each answering as a peer does.

To the rest of the exchange an origin is somebody to ask, under its URL as name: it answers `Find` and `GetManifest`
from its index and its files, and gives chunks.  It is trusted with as little, blamed in the same ledger, and planned
for by what it was measured to give and what its user says it costs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvswap.core.atomic import write_atomic
from kvswap.core.errors import KvswapError, NotFound, UsageError
from kvswap.core.files import read_file
from kvswap.core.ids import document_key
from kvswap.core.limits import LIMITS
from kvswap.core.origin_settings import OriginSettings
from kvswap.core.origin_settings import origin as checked
from kvswap.core.upkeep import Problems
from kvswap.net import messages
from kvswap.origins.origin import Origin
from kvswap.origins.pages import IndexEntry

_FILE = "origins.json"
_UNKNOWN_MODEL = bytes(32)  # what an index does not say; the manifest decides


class Origins:
    """The origins of one node, by URL."""

    def __init__(self, home: Path, configured: Sequence[OriginSettings], problems: Problems) -> None:
        """Read which were added; nothing is dialled before it is asked."""
        self._path = home / _FILE
        self._problems = problems
        self._open: dict[str, Origin] = {}
        self._configured = {settings.url: settings for settings in configured}
        self._added: dict[str, OriginSettings] = {}
        with contextlib.suppress(FileNotFoundError):
            self._read()

    def _read(self) -> None:
        if not self._path.exists():
            return
        try:
            rows = json.loads(read_file(self._path, LIMITS.config_bytes))
            self._added = {made.url: made for made in map(checked, rows["origins"])}
        except (KvswapError, ValueError, LookupError, TypeError) as error:
            self._problems.note(
                "origins", UsageError(f"{self._path} cannot be used: {error}", hint="kvswap origin add")
            )

    # -- which there are ---------------------------------------------------------------------------

    @property
    def settings(self) -> list[OriginSettings]:
        """The settings of all of them; what is in `config.toml` stands before what was added."""
        return list((self._added | self._configured).values())

    @property
    def names(self) -> list[str]:
        """The URLs of all of them."""
        return [settings.url for settings in self.settings]

    def __contains__(self, name: str) -> bool:
        return name in self._configured or name in self._added

    def configured(self, name: str) -> bool:
        """Return True for an origin of `config.toml`, which only its user can remove."""
        return name in self._configured

    def get(self, name: str) -> Origin:
        """Return an origin.  Raises `NotFound` for one that this node does not have."""
        settings = self._configured.get(name) or self._added.get(name)
        if settings is None:
            raise NotFound(f"{name} is no origin of this node", hint=f"kvswap origin add {name}")
        known = self._open.get(name)
        if known is None or known.settings != settings:
            known = self._open[name] = Origin(settings)
        return known

    async def add(self, settings: OriginSettings) -> None:
        """Add an origin, or change what is known of it.  Raises `UsageError` for one too many."""
        if settings.url in self._configured:
            raise UsageError(f"{settings.url} is in config.toml", cause="what stands there is changed there")
        if len(self._added.keys() | self._configured.keys() | {settings.url}) > LIMITS.origins:
            raise UsageError(f"a node has {LIMITS.origins} origins at most", hint="kvswap origin rm URL")
        await self._keep(self._added | {settings.url: settings})

    async def remove(self, name: str) -> None:
        """Forget an origin; what is there stays.  Raises `NotFound`, or `UsageError` for one of `config.toml`."""
        if name in self._configured:
            raise UsageError(f"{name} is in config.toml", cause="what stands there is removed there")
        if name not in self._added:
            raise NotFound(f"{name} is no origin of this node", hint="kvswap origin ls")
        await self._keep({url: settings for url, settings in self._added.items() if url != name})

    async def _keep(self, added: dict[str, OriginSettings]) -> None:
        data = json.dumps({"origins": [settings.to_json() for settings in added.values()]}, indent=1).encode()
        await asyncio.to_thread(write_atomic, self._path, data)
        gone = [self._open.pop(name) for name in list(self._open) if added.get(name) != self._added.get(name)]
        self._added = added
        for origin in gone:
            await origin.close()

    async def close(self) -> None:
        """End all connections."""
        for origin in self._open.values():
            await origin.close()

    # -- as peers ----------------------------------------------------------------------------------

    async def answer(self, name: str, request: messages.Request) -> Any:
        """Answer a request as a peer would.  Raises `NotFound`, `OriginError`, `UsageError` for another request."""
        origin = self.get(name)
        if isinstance(request, messages.GetManifest):
            return await origin.envelope(request.artifact)
        if isinstance(request, messages.Find):
            return await _find(origin, request)
        raise UsageError(f"{name} is an origin, and answers no {type(request).__name__}")


async def _find(origin: Origin, request: messages.Find) -> messages.FindReply:
    """Answer a look-up; the first manifests come along, and the status records of their publishers."""
    found = await _entries(origin, request)
    first = [entry.artifact for _, entry in found[: LIMITS.origin_manifests]]
    publishers = list(dict.fromkeys(entry.publisher for _, entry in found if entry.publisher))
    asked = publishers[: LIMITS.status_records_sent]
    envelopes, records = await asyncio.gather(
        asyncio.gather(*(origin.download_envelope(artifact) for artifact in first)),
        asyncio.gather(*(origin.status_record(publisher) for publisher in asked)),
    )
    here = dict(zip(first, envelopes, strict=True))
    return messages.FindReply(
        agent="origin",
        publisher="",
        found=[
            _found(entry, blocks, here.get(entry.artifact))
            for blocks, entry in found
            if here.get(entry.artifact, b"") is not None  # listed, and gone
        ],
        providers=[],
        asks=int(origin.settings.read_price_per_gb * 1e6),
        heads=[record.data for record in records if record.data],
    )


async def _entries(origin: Origin, request: messages.Find) -> list[tuple[int, IndexEntry]]:
    if request.artifact is not None:
        return [(0, IndexEntry(request.artifact, "", b""))]
    if request.document is not None:
        found = [(0, entry) for entry in await origin.index.of_document(document_key(request.document))]
    else:
        found = await origin.index.of_chain(request.chain or [])
    return found[: LIMITS.find_results]


def _found(entry: IndexEntry, blocks: int, envelope: bytes | None) -> messages.Found:
    return messages.Found(
        artifact=entry.artifact,
        model=_UNKNOWN_MODEL,
        dtype="",
        tokens=0,
        wire_bytes=0,
        publisher=entry.publisher,
        complete=True,
        shared_blocks=blocks,
        envelope=envelope if envelope is not None and len(envelope) <= LIMITS.inline_envelope_bytes else None,
    )
