"""GossipSub behind a filter: messages of other topics, or too many, are dropped before py-libp2p stores anything.

py-libp2p starts a task for every message and makes entries for every topic that a peer names.  Here the messages of one
stream are handled one after the other, at a limited rate for each IP address, and only messages of our topic are passed
on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import trio
from libp2p.io.exceptions import IOException
from libp2p.network.connection.exceptions import RawConnError
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamEOF, StreamError
from libp2p.peer.id import ID
from libp2p.pubsub.mcache import default_msg_id_fn
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.utils import maybe_consume_signed_record
from libp2p.utils.varint import read_varint_prefixed_bytes_limited

from kvswap.core.bounded import Table
from kvswap.core.limits import LIMITS
from kvswap.net.messages import TOPIC
from kvswap.net.server import Buckets

RPC_BYTES = 64 * 1024
_MESSAGE_BYTES = 8 * 1024
_MESSAGES = 64  # of one RPC that are handled
_CONTROLS = 4  # entries of one kind in one RPC
_IDS = 128  # message ids in each entry
_ID_BYTES = 128  # of one message id
_PER_SECOND = 20  # messages and control messages of one IP address; handling one costs a millisecond on both loops
_PER_SECOND_OF_ONE = 100  # of a favoured peer
_SEEN = 16_384
_SEEN_SECONDS = 120.0
_SWEEP_SECONDS = 30.0
_END_SECONDS = 2.0
_RECENT = 1_024
_RECENT_BYTES = 4 * 1024 * 1024

OnMessage = Callable[[str, str, bytes], None]  # signer, forwarding peer, data


class SeenMessages:
    """The ids of recent messages: a bounded replacement for py-libp2p's unbounded cache."""

    def __init__(self) -> None:
        self.table: Table[bytes, float] = Table(
            "gossip seen", entries=_SEEN, nbytes=8 * 1024 * 1024, size=lambda key, at: len(key)
        )
        self._swept = -_SWEEP_SECONDS

    def has(self, key: bytes) -> bool:
        """Return True if a message was seen within two minutes; asking counts as seeing it again."""
        if (self.table.get(key) or 0.0) < trio.current_time() - _SEEN_SECONDS:
            return False
        self.table.put(key, trio.current_time(), "")
        return True

    def add(self, key: bytes) -> bool:
        """Record a message id, and return False if it was seen before."""
        fresh = not self.has(key)
        self.table.put(key, trio.current_time(), "")
        self._forget()
        return fresh

    def _forget(self) -> None:
        """Drop expired ids at intervals, so that a quiet node does not fill the table."""
        now = trio.current_time()
        if now < self._swept + _SWEEP_SECONDS:
            return
        self._swept = now
        for key, at in self.table.items():
            if at < now - _SEEN_SECONDS:
                self.table.pop(key)

    def length(self) -> int:
        """Return how many ids are known."""
        return len(self.table)

    def stop(self) -> None:
        """Do nothing, as no background task runs here."""


class RecentMessages:
    """The messages of the last heartbeats, which peers may ask for: a bounded replacement for py-libp2p's cache.

    py-libp2p's forgets by time alone, so that what it holds depends on how fast many addresses send.
    """

    def __init__(self, window_size: int, history_size: int) -> None:
        """Make an empty cache that offers messages for `window_size` heartbeats and keeps them for `history_size`."""
        self.window_size = window_size
        self.history_size = history_size
        self.table: Table[bytes, tuple[int, Any]] = Table(
            "gossip messages", entries=_RECENT, nbytes=_RECENT_BYTES, size=lambda key, kept: kept[1].ByteSize()
        )
        self._heartbeat = 0

    def put(self, message: Any) -> None:
        """Keep a message; of a full cache the signer with the most messages loses its oldest."""
        name = default_msg_id_fn(message)
        if name not in self.table:
            self.table.put(name, (self._heartbeat, message), message.from_id.hex())

    def get(self, name: bytes) -> Any | None:
        """Return the message of an id; None where it is not kept, or no more."""
        kept = self.table.peek(name)
        return kept[1] if kept is not None else None

    def window(self, topic: str) -> list[bytes]:
        """Return the ids of a topic's messages of the last `window_size` heartbeats, the newest first."""
        oldest = self._heartbeat - self.window_size
        recent = [name for name, (at, message) in self.table.items() if at > oldest and topic in message.topicIDs]
        return recent[::-1]

    def shift(self) -> None:
        """Count a heartbeat and forget the messages of `history_size` heartbeats ago."""
        self._heartbeat += 1
        for name, (at, _) in self.table.items():
            if at <= self._heartbeat - self.history_size:
                self.table.pop(name)


class Gossip(Pubsub):  # type: ignore[misc]
    """A GossipSub router's `Pubsub` for one topic, with limits for each peer and IP address."""

    def __init__(
        self,
        host: Any,
        router: Any,
        on_message: OnMessage,
        host_of: Callable[[str], str | None],
        favoured: Callable[[str], bool] = lambda peer: False,
    ) -> None:
        super().__init__(
            host,
            router,
            allowed_topics={TOPIC},
            max_inbound_rpc_size=RPC_BYTES,
            max_subscriptions_per_rpc=_CONTROLS,
            max_subscriptions_per_peer=_CONTROLS,
        )
        unbounded: Any = self.seen_messages
        unbounded._stop_event.set()  # its thread ends at its next turn
        self.seen_messages: Any = SeenMessages()
        self._on_message = on_message
        self._address = host_of
        self._via: dict[bytes, str] = {}  # message id -> forwarding peer, of the message each stream is handling
        self._favoured = favoured
        self._coming: dict[Any, trio.Event] = {}  # peers whose stream is being opened; each event is its end
        self.rate = Buckets(_PER_SECOND, clock=trio.current_time, name="gossip rates")
        self.rate_of_one = Buckets(_PER_SECOND_OF_ONE, clock=trio.current_time, name="gossip rates of who delivered")

    async def _handle_new_peer(self, peer_id: Any) -> None:
        """Open one stream to a peer, however many connections are made at once.

        py-libp2p would open one for each, and forget the queue of the first, whose writer then waits for ever.
        """
        while (other := self._coming.get(peer_id)) is not None:
            await other.wait()
        self._coming[peer_id] = ended = trio.Event()
        try:
            with trio.fail_after(LIMITS.dial_seconds):
                await super()._handle_new_peer(peer_id)
        except (trio.TooSlowError, StreamError) as error:  # tried again while the peer is connected
            raise SwarmException(f"no stream to {peer_id} for gossip") from error
        finally:
            del self._coming[peer_id]
            ended.set()

    async def handle_sending_messages(self, peer_id: Any, stream: Any, queue: Any) -> None:
        """Write to a peer until its queue is closed or writing fails; then reset the stream."""
        try:
            await super().handle_sending_messages(peer_id, stream, queue)
        finally:
            with trio.move_on_after(_END_SECONDS), contextlib.suppress(Exception):
                await stream.reset()

    async def continuously_read_stream(self, stream: Any) -> None:
        """Read a peer's messages, at its allowed rate, until its stream ends or breaks the protocol."""
        peer = stream.muxed_conn.peer_id
        host = self._address(str(peer)) or str(peer)
        try:
            while self.manager.is_running:
                rpc = rpc_pb2.RPC()
                rpc.ParseFromString(await read_varint_prefixed_bytes_limited(stream, RPC_BYTES))
                if maybe_consume_signed_record(rpc, self.host, peer):
                    await self._take(rpc, peer, host)
        except (StreamEOF, StreamError, IOException, RawConnError):
            return  # the stream ended normally
        except Exception:  # noqa: BLE001 - whatever it sent breaks the protocol
            with contextlib.suppress(Exception):
                await stream.reset()
            self._handle_dead_peer(peer)

    async def _take(self, rpc: Any, peer: Any, host: str) -> None:
        for message in list(rpc.publish)[:_MESSAGES]:
            await self._turn(peer, host)
            if _ours(message) and not self._is_msg_seen(message):
                name = self.get_message_id(message)
                self._via[name] = str(peer)
                try:
                    await self.push_msg(peer, message)
                finally:
                    self._via.pop(name, None)
        for subscription in list(rpc.subscriptions)[:_CONTROLS]:
            if subscription.topicid == TOPIC:
                self.handle_subscription(peer, subscription)
        if rpc.HasField("control"):
            await self._turn(peer, host)
            await self.router.handle_rpc(_control(rpc.control), peer)

    async def _turn(self, peer: Any, host: str) -> None:
        name = str(peer)
        if (wait := self.rate_of_one.wait(name) if self._favoured(name) else self.rate.wait(host)) > 0:
            await trio.sleep(wait)  # nothing more is read from the peer meanwhile

    def notify_subscriptions(self, publish_message: Any) -> None:
        """Pass a message to the handler, with its signer and the peer that forwarded it."""
        signer = ID(publish_message.from_id)
        if signer != self.host.get_id():
            via = self._via.get(self.get_message_id(publish_message), str(signer))
            self._on_message(str(signer), via, bytes(publish_message.data))


def _ours(message: Any) -> bool:
    small = len(message.data) <= _MESSAGE_BYTES and len(message.from_id) <= 64 and len(message.seqno) <= 16
    return small and len(message.key) <= 128 and len(message.signature) <= 128 and list(message.topicIDs) == [TOPIC]


def _control(said: Any) -> Any:
    """Return the control messages that concern our topic, cut to bounded size."""
    rpc = rpc_pb2.RPC()
    control = rpc.control
    control.SetInParent()
    for ihave in [c for c in said.ihave if c.topicID == TOPIC][:_CONTROLS]:
        control.ihave.append(rpc_pb2.ControlIHave(topicID=TOPIC, messageIDs=_ids(ihave)))
    for iwant in list(said.iwant)[:_CONTROLS]:
        control.iwant.append(rpc_pb2.ControlIWant(messageIDs=_ids(iwant)))
    for idontwant in list(said.idontwant)[:_CONTROLS]:
        control.idontwant.append(rpc_pb2.ControlIDontWant(messageIDs=_ids(idontwant)))
    if any(c.topicID == TOPIC for c in said.graft):
        control.graft.append(rpc_pb2.ControlGraft(topicID=TOPIC))
    for prune in [c for c in said.prune if c.topicID == TOPIC][:1]:
        control.prune.append(rpc_pb2.ControlPrune(topicID=TOPIC, backoff=min(prune.backoff, 600)))
    return rpc


def _ids(said: Any) -> list[bytes]:
    return [name for name in list(said.messageIDs)[:_IDS] if len(name) <= _ID_BYTES]
