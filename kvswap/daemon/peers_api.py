"""HTTP to the peers of this node: what was experienced with them, and whom the user blocked."""

from __future__ import annotations

from aiohttp import web

from kvswap.api.peers import BlockResult, PeerRow, PeersResult
from kvswap.daemon.requests import reply
from kvswap.exchange import Node
from kvswap.store import PeerRecord


class PeersApi:
    """The handlers of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def routes(self) -> list[web.RouteDef]:
        """List the routes."""
        return [
            web.get("/v1/peers", self.peers),
            web.post("/v1/peers/{peer}/block", self.block),
            web.post("/v1/peers/{peer}/unblock", self.block),
        ]

    async def peers(self, request: web.Request) -> web.Response:
        """List the peers that are connected or known; origins have a list of their own."""
        return reply(PeersResult(peers=self.rows()))

    def rows(self) -> list[PeerRow]:
        """Describe the peers that are connected or known, by PeerId."""
        node = self._node
        connected = set(node.transport.connected()) if node.p2p else set()
        rows = []
        records = node.ledger.peers()
        for peer in sorted(connected | {name for name in records if "://" not in name}):
            record = records.get(peer) or PeerRecord()
            known = node.calibration.peer(peer)
            rows.append(
                PeerRow(
                    peer=peer,
                    publisher=record.publisher or None,
                    connected=peer in connected,
                    relayed=peer in connected and node.transport.relayed(peer),
                    bytes_in=record.bytes_in,
                    bytes_out=record.bytes_out,
                    rate=known.get("rate"),
                    latency=known.get("latency"),
                    ratio=record.ratio,
                    failures=record.failures,
                    invalid_chunks=record.lies,
                    blocked=record.blocked,
                    seen=record.seen or None,
                )
            )
        return rows

    async def block(self, request: web.Request) -> web.Response:
        """Block a peer, or end that."""
        peer, blocked = request.match_info["peer"], request.path.endswith("/block")
        self._node.peers.block(peer, blocked)
        return reply(BlockResult(peer=peer, blocked=blocked))
