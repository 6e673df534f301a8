"""The parts that a node serves with: bulk tickets, chunks on their way, and the HTTPS port."""

from __future__ import annotations

from kvswap.core.errors import KvswapError
from kvswap.exchange.node.node import Node
from kvswap.exchange.serving.lists import ChunkLists
from kvswap.exchange.serving.uploads import Uploads
from kvswap.net import messages
from kvswap.net.bulk import BulkIdentity, BulkServer, Tokens


class Serving:
    """The serving side of one node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.tokens = Tokens()
        rate = node.settings.upload_bytes_per_second
        self.uploads = Uploads(node.store, node.permission, node.ledger, node.counters, rate)
        self.chunk_list = ChunkLists(node.files_of)
        self.bulk_server: BulkServer | None = None
        node.peers.on_cut_off.append(self._hang_up)
        node.tables.add(self.chunk_list.table, self.tokens.table)

    def _hang_up(self, peer: str) -> None:
        self.tokens.revoke_all(peer)
        if self.bulk_server is not None:
            self.bulk_server.hang_up(peer)

    @property
    def bulk_record(self) -> messages.BulkRecord | None:
        """The signed record of where this node serves HTTPS; None when it does not."""
        return self.bulk_server.record if self.bulk_server is not None else None

    async def serve_bulk(self) -> None:
        """Serve HTTPS beside libp2p, on the same addresses.  Without it, libp2p streams carry the chunks.

        Raises `P2pDown` where that is not possible now.
        """
        node, key = self.node, self.node.identity.node_key
        hosts = [host for a in node.settings.listen if (host := _host_of(a)) is not None]
        if self.bulk_server is not None or not node.settings.bulk or key is None or not hosts:
            return
        server = BulkServer(BulkIdentity.create(key), self.tokens, self.uploads, node.problems)
        try:
            await server.start(list(dict.fromkeys(hosts)), node.settings.bulk_port)
        except KvswapError as error:
            if node.problems.note("bulk", error):
                node.background.report_problem("bulk", error.message)
            raise
        self.bulk_server = server


def _host_of(address: str) -> str | None:
    """Return the IP address of a listening multiaddr."""
    parts = address.split("/")
    return parts[2] if len(parts) > 2 and parts[1] in ("ip4", "ip6") else None
