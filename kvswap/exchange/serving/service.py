"""The service of a node that takes part: it joins the network, answers peers, hears what they announce, and ends."""

from __future__ import annotations

from kvswap.core.errors import KvswapError, MalformedMessage, UsageError
from kvswap.core.ids import Cid, PeerId
from kvswap.exchange.discovery.status_queries import StatusQueries
from kvswap.exchange.node.node import Node
from kvswap.exchange.serving import answers, upkeep
from kvswap.exchange.serving.parts import Serving
from kvswap.net import Announcement, messages
from kvswap.net.dialling import allowed
from kvswap.net.server import Server


class Service:
    """The life of one node from start to stop."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.serving = Serving(node)
        self.status_queries = StatusQueries(node)
        node.trust.on_status_record.append(self.status_queries.note_answer)
        node.tables.add(self.status_queries.table, self.status_queries.backoff, self.status_queries.last)

    async def start(self) -> None:
        """Join the network.  A failure there degrades the node, is reported and tried again; the rest works."""
        node = self.node
        for row in node.trust.policy.lifted():
            node.events.add("distrust_lifted", publisher=row["peer"], artifact=row["artifact"], reason=row["why"])
        if not node.network.taking_part:
            return
        try:
            await self.join()
            await self.serving.serve_bulk()
        except KvswapError:
            pass  # it is noted
        upkeep.begin(node, self.join, self.serving.serve_bulk)

    async def join(self) -> None:
        """Start the network part.  Raises `P2pDown`."""
        node, serving = self.node, self.serving
        server = Server(
            lambda caller, request: answers.answer(serving, caller, request), node.peers.unwelcome, node.peers.flooded
        )
        node.tables.add(*server.tables)
        try:
            await node.transport.start(server, self.on_announcement)
        except KvswapError as error:
            if node.problems.note("p2p", error):
                node.background.report_problem("p2p", error.message)
            raise

    def on_announcement(self, announcement: Announcement) -> None:
        """Keep what a peer announced of itself; one that is malformed, or of somebody else, is dropped."""
        try:
            announced = messages.decode_announce(announcement.data)
            PeerId.parse(announced.provider.peer)
            Cid.parse(announced.artifact)
        except (MalformedMessage, UsageError):
            return
        if announced.provider.peer != announcement.origin:
            return  # nobody announces for somebody else
        network = self.node.network
        network.prefix_indexes.expire(announced.provider.peer)
        network.address_book.announced(announced.provider.peer)
        provider = messages.Provider(announced.provider.peer, list(self._dialable(announced.provider)))
        for reference in (announced.artifact, announced.document):
            if reference is not None:
                network.address_book.refer(reference, provider, announcement.via or announcement.origin)
        self.node.events.add(
            "heard", artifact=announced.artifact, document=announced.document, peer=announced.provider.peer
        )
        self.status_queries.note(announced.artifact, announcement.origin)

    def _dialable(self, provider: messages.Provider) -> tuple[str, ...]:
        """Return the addresses that a peer said of itself, as far as they may be dialled and passed on to others."""
        transport = self.node.transport
        near = provider.peer in transport.connected()
        return allowed(provider.addresses, transport.host_of(provider.peer) if near else transport.vicinity())

    async def stop(self) -> None:
        """End all that runs, first what others start, and write what is to be kept."""
        await self.node.background.stop()
        if self.serving.bulk_server is not None:
            await self.serving.bulk_server.stop()
        await self.node.stop()
