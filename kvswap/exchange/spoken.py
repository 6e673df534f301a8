"""What publishers speak of themselves: of an artifact that is here, their head record says whether it still holds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from kvswap.core.bounded import Table
from kvswap.net import messages

if TYPE_CHECKING:
    from kvswap.exchange.node import Node

_WAITING = 256
_OF_ONE_PEER = 64


class Spoken:
    """Looks up what was announced, in a thread, and asks its publisher again where it is here.  One after the other."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.table: Table[tuple[str, str], bool] = Table(  # of (artifact, peer)
            "announcements to look up", entries=_WAITING, per_teller=_OF_ONE_PEER
        )
        self._busy = False

    def note(self, artifact: str, peer: str) -> None:
        """Note that a peer announced an artifact.  Of too many the oldest is forgotten: it is announced again."""
        if not self._node.ledger.publisher(peer):
            return  # it never said whose it is
        self.table.put((artifact, peer), True, peer)
        if not self._busy:
            self._busy = True
            self._node.spawn(self._look())

    async def _look(self) -> None:
        from kvswap.exchange.find import find
        from kvswap.exchange.node import AGENT

        try:
            while (oldest := next(iter(self.table), None)) is not None:
                artifact, peer = oldest
                self.table.pop((artifact, peer))
                if await asyncio.to_thread(self._is_its_own, artifact, peer):
                    await find(self._node, messages.Find(AGENT, artifact=artifact), only=[peer])
        finally:
            self._busy = False

    def _is_its_own(self, artifact: str, peer: str) -> bool:
        row = self._node.store.get_artifact(artifact)
        return row is not None and row.publisher == self._node.ledger.publisher(peer)
