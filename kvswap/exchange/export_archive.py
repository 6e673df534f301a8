"""Export: an artifact in the store as one file, an archive (`artifact.archive`), for a disk or an origin."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from kvswap.artifact.archive import END, archive_length, file_name, manifest_name, packed
from kvswap.core.errors import KvswapError, NotFound
from kvswap.core.ids import Cid
from kvswap.exchange.node.node import Node
from kvswap.exchange.verification.outcomes import refuse_withheld
from kvswap.exchange.verification.received import read_current
from kvswap.exchange.verification.status_records import require_current
from kvswap.trust import Statement


@dataclass(frozen=True, slots=True)
class Export:
    """An archive that is going to be written: the artifact and its files, as many as are here, with their sizes."""

    statement: Statement
    files: dict[Cid, int]
    left_out: int

    @property
    def length(self) -> int:
        """The length of the archive in bytes."""
        return archive_length([len(self.statement.envelope), *self.files.values()])


async def prepare_export(node: Node, reference: str | Cid, group: str | None = None) -> Export:
    """Choose the artifact of a reference, and check every file of it that is here.

    Raises `NotFound` where none is here whole, `IntegrityError` for a damaged file or an artifact that was found wrong,
    and `Untrusted` for one that has expired or was withdrawn: nobody could import it.
    """
    rows = await asyncio.to_thread(node.lookup, reference, group)
    problem: KvswapError = NotFound(f"{reference} is not in the store", hint="kvswap ls")
    if rows and not any(row.complete for row in rows):
        problem = NotFound(
            f"{reference} is not whole in the store",
            cause="a fetch of it broke off, or files were removed",
            hint=f"kvswap fetch {reference}",
        )
    for row in rows:
        if not row.complete or (envelope := await asyncio.to_thread(node.store.envelope, row.id)) is None:
            continue
        try:
            statement = await read_current(node, envelope)
            await asyncio.to_thread(_refuse, node, statement)
            return await asyncio.to_thread(_checked, node, statement)
        except KvswapError as error:
            problem = error
    raise problem


def _refuse(node: Node, statement: Statement) -> None:
    require_current(node, statement)
    refuse_withheld(node, statement)


def _checked(node: Node, statement: Statement) -> Export:
    """Hash the files before the first byte is sent: an error can be told then."""
    named = {file.id: file.length for file in statement.manifest.files}
    lacking = set(node.store.missing(named))
    here = {cid: size for cid, size in named.items() if cid not in lacking}
    for cid in here:
        with node.store.open_chunk(cid):
            pass
    return Export(statement, here, len(lacking))


async def archive_pieces(node: Node, export: Export) -> AsyncGenerator[bytes, None]:
    """Yield the archive piece by piece, one file in memory at a time.  Its files are not collected meanwhile."""
    statement = export.statement
    async with node.store.held(lambda: export.files):
        for piece in packed(manifest_name(statement.artifact), statement.envelope):
            yield piece
        for cid in export.files:
            for piece in packed(file_name(cid), await asyncio.to_thread(node.store.get_chunk, cid)):
                yield piece
        yield END
