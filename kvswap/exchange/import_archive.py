"""Import: an artifact that comes as one file is checked as one that comes from peers, and listed when all is right.

The signature, life and fields of the manifest come before the first chunk, its digest and length before a chunk is
kept.  Whether the artifact is used is, as with one that was fetched, what the trust policy says.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from kvswap.api.archives import Imported
from kvswap.artifact.archive import ArchivedFile, ArchiveReader
from kvswap.artifact.layout import needed_files
from kvswap.artifact.manifest import Manifest
from kvswap.core.errors import IntegrityError, MalformedArchive, NotFound
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.exchange.node.listing import list_artifact
from kvswap.exchange.node.node import Node
from kvswap.exchange.verification.audits import refuse_if_failed
from kvswap.exchange.verification.outcomes import refuse_withheld
from kvswap.exchange.verification.received import read_current
from kvswap.exchange.verification.status_records import require_current
from kvswap.trust import Group, Statement, require_trust


async def import_archive(node: Node, pieces: AsyncIterator[bytes]) -> Imported:
    """Put the artifact of an archive into the store.  Nothing is listed before all of it is here and right.

    Raises `MalformedArchive` for another file, or one that is cut off; `IntegrityError`, `MalformedManifest`,
    `Untrusted` (expired, withdrawn, or of a banned publisher), `NotAMember`, `StoreFull`.  What was right of the files
    stays until the room is needed, and no artifact is changed.
    """
    with node.store.lease() as hold:
        work = _Import(node, hold)
        await work.run(pieces)
        return await work.done()


class _Import:
    def __init__(self, node: Node, hold: Callable[[Cid], None]) -> None:
        self._node = node
        self._hold = hold
        self._reader = ArchiveReader()
        self._statement: Statement | None = None
        self._here: set[Cid] = set()
        self._new = 0

    async def run(self, pieces: AsyncIterator[bytes]) -> None:
        """Read the archive to its end."""
        while True:
            try:
                async with asyncio.timeout(LIMITS.chunk_seconds):
                    piece = await anext(pieces, b"")
            except TimeoutError as error:
                raise MalformedArchive(
                    f"the archive ends in the middle: nothing came for {LIMITS.chunk_seconds:g} s",
                    cause="the program that sends it has stopped",
                ) from error
            if not piece:
                break
            for entry in self._reader.feed(piece):
                await self._take(entry)
        self._reader.end()

    async def _take(self, entry: ArchivedFile) -> None:
        if self._statement is None:
            self._statement = await self._manifest(entry)
            self._reader.wanted = await asyncio.to_thread(_lengths, self._statement.manifest)
            return
        self._hold(entry.cid)
        self._new += await asyncio.to_thread(self._keep, entry)
        self._here.add(entry.cid)

    def _keep(self, entry: ArchivedFile) -> bool:
        """Store a file; returns True if it was not here.  Raises `IntegrityError` for other bytes, `StoreFull`."""
        store = self._node.store
        new = not store.has_chunk(entry.cid)
        store.put_chunk(entry.data, entry.cid, write_behind=True)
        return new

    async def _manifest(self, entry: ArchivedFile) -> Statement:
        statement = await read_current(self._node, entry.data)
        if statement.artifact != entry.cid:
            raise IntegrityError(
                f"the archive calls its manifest {entry.cid}, and it is that of {statement.artifact}",
                cause="somebody renamed a file in it",
            )
        await asyncio.to_thread(self._refuse, statement)
        return statement

    def _refuse(self, statement: Statement) -> None:
        """Raise what is known against an artifact; a publisher that is merely not trusted is nothing against it."""
        require_trust(statement, self._node.trust.policy.policy, allow_untrusted=True)
        require_current(self._node, statement)
        refuse_withheld(self._node, statement)
        refuse_if_failed(self._node, statement)

    async def done(self) -> Imported:
        """List the artifact, durably, and say what it is."""
        statement = self._statement
        if statement is None:
            raise MalformedArchive("not an artifact's archive: it has no manifest")
        node = self._node
        lacking = await asyncio.to_thread(_needed_ids, statement.manifest) - self._here
        if lacking:
            raise MalformedArchive(
                f"{len(lacking)} of the files of {statement.artifact} are not in the archive",
                cause="it was made of a store that does not have them, or taken apart",
            )
        imported = await asyncio.to_thread(self._list, statement)
        node.events.add("imported", artifact=imported.artifact, bytes=imported.bytes, files=imported.files)
        node.network.queue_announcement(imported.artifact, statement.reference)
        return imported

    def _list(self, statement: Statement) -> Imported:
        node, manifest = self._node, statement.manifest
        require_current(node, statement)  # it may have been withdrawn meanwhile
        node.trust.records.ask(str(statement.artifact))
        if not list_artifact(node.store, statement):
            raise NotFound(
                f"artifact {statement.artifact} was imported, but part of it was removed meanwhile",
                cause="the quota is too small for it",
                hint="kvswap gc, or KVSWAP_QUOTA_BYTES",
            )
        row = node.store.get_artifact(str(statement.artifact))
        standing = node.trust.standings.of(row).name if row is not None else "unverified"
        document = manifest.document
        return Imported(
            artifact=str(statement.artifact),
            document=document.reference if document is not None else None,
            label=manifest.model.label,
            tokens=manifest.prefix.tokens,
            publisher=manifest.publisher,
            trusted=node.trust.policy.policy.trusts(manifest.publisher),
            standing=standing,
            bytes=self._reader.length,
            files=self._reader.files,
            new_files=self._new,
            group=statement.identifiers.name if isinstance(statement.identifiers, Group) else None,
        )


def _lengths(manifest: Manifest) -> dict[Cid, int]:
    return {file.id: file.length for file in manifest.files}


def _needed_ids(manifest: Manifest) -> set[Cid]:
    return set(manifest.ids_of(needed_files(manifest)))
