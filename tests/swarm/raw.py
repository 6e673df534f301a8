"""Raw libp2p messages of an attacker, in the trio thread of its own transport."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import multiaddr
import trio
import varint
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.network.config import ConnectionConfig
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.validators import PUBSUB_SIGNING_PREFIX
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.tools.anyio_service import background_trio_service

from kvswap.core.ids import Cid
from kvswap.net import messages

DHT = TProtocol("/ipfs/kad/1.0.0")
GOSSIP = TProtocol("/meshsub/1.1.0")
PUSH = TProtocol("/ipfs/id/push/1.0.0")
PING = TProtocol("/ipfs/ping/1.0.0")
KVSWAP = TProtocol(messages.PROTOCOL)


def bare_host() -> Any:
    """A libp2p host with a new PeerId and nothing beside it."""
    keys = create_new_key_pair(os.urandom(32))
    return new_host(
        key_pair=keys,
        sec_opt={NOISE: NoiseTransport(keys, create_noise_key_pair().private_key)},
        muxer_opt={TProtocol(YAMUX): Yamux},
        connection_config=ConnectionConfig(min_connections=0, low_watermark=0),
        disable_identify_address_discovery=True,
    )


@asynccontextmanager
async def running(host: Any) -> AsyncIterator[None]:
    """Run a bare host; how it ends is nobody's business."""
    try:
        async with background_trio_service(host.get_network()):
            yield
    except Exception:
        pass


async def connect(host: Any, address: str) -> ID:
    """Connect to the victim; its id."""
    info = info_from_p2p_addr(multiaddr.Multiaddr(address))
    await host.connect(info)
    return info.peer_id


async def tell(host: Any, peer: ID, protocol: TProtocol, *frames: bytes, read: bool = False, wait: float = 3.0) -> None:
    """Send length-prefixed messages on a stream of their own; errors are the victim's answer."""
    with trio.move_on_after(wait):
        try:
            stream = await host.new_stream(peer, [protocol])
            for frame in frames:
                await stream.write(varint.encode(len(frame)) + frame)
                if read:
                    await stream.read(65536)
            await stream.close()
        except Exception:
            pass


def add_provider(host: Any, key: bytes, addresses: int = 1, length: int = 40) -> bytes:
    """ADD_PROVIDER with the sender as provider, and so many addresses."""
    message = Message()
    message.type = Message.MessageType.ADD_PROVIDER
    message.key = key
    provider = message.providerPeers.add()
    provider.id = host.get_id().to_bytes()
    long = "/dns4/" + ".".join("a" * 50 for _ in range(max(1, length // 51)))
    provider.addrs.extend(multiaddr.Multiaddr(f"{long}/tcp/{1024 + n % 60000}").to_bytes() for n in range(addresses))
    return message.SerializeToString()


def put_value(key: bytes, value: bytes) -> bytes:
    message = Message()
    message.type = Message.MessageType.PUT_VALUE
    message.key = key
    message.record.key = key
    message.record.value = value
    return message.SerializeToString()


def find_node(key: bytes) -> bytes:
    message = Message()
    message.type = Message.MessageType.FIND_NODE
    message.key = key
    return message.SerializeToString()


def get_providers(key: bytes) -> bytes:
    message = Message()
    message.type = Message.MessageType.GET_PROVIDERS
    message.key = key
    return message.SerializeToString()


def announcement(artifact: str, document: str | None, topics: tuple[str, ...] = (messages.TOPIC,)) -> rpc_pb2.Message:
    """An announcement by a made-up signer."""
    keys = create_new_key_pair(os.urandom(32))
    signer = ID.from_pubkey(keys.public_key)
    provider = messages.Provider(str(signer), [f"/ip4/127.0.0.1/tcp/{1024 + os.urandom(2)[0]}"])
    message = rpc_pb2.Message(
        data=messages.encode_announce(messages.Announce(artifact, document, provider)),
        topicIDs=topics,
        from_id=signer.to_bytes(),
        seqno=os.urandom(8),
    )
    message.signature = keys.private_key.sign(PUBSUB_SIGNING_PREFIX.encode() + message.SerializeToString())
    message.key = keys.public_key.serialize()
    return message


def gossip(count: int, salt: bytes) -> list[bytes]:
    """RPCs of every kind: announcements, subscriptions, control messages of topics that nobody knows."""
    out = []
    for n in range(count):
        rpc = rpc_pb2.RPC()
        name = salt.hex() + str(n)
        rpc.publish.append(announcement(str(Cid.of(name.encode())), None))
        rpc.publish.append(announcement(str(Cid.of(name.encode())), None, (messages.TOPIC, "t" + name)))
        rpc.subscriptions.append(rpc_pb2.RPC.SubOpts(subscribe=True, topicid="s" + name))
        rpc.control.ihave.append(rpc_pb2.ControlIHave(topicID="h" + name, messageIDs=[os.urandom(40)]))
        rpc.control.ihave.append(rpc_pb2.ControlIHave(topicID=messages.TOPIC, messageIDs=[os.urandom(40)]))
        rpc.control.iwant.append(rpc_pb2.ControlIWant(messageIDs=[os.urandom(40)]))
        rpc.control.graft.append(rpc_pb2.ControlGraft(topicID="g" + name))
        rpc.control.prune.append(rpc_pb2.ControlPrune(topicID="p" + name))
        out.append(rpc.SerializeToString())
    return out


def identify(host: Any, count: int, salt: bytes) -> bytes:
    """Identify with many protocols and addresses."""
    return Identify(
        protocol_version="x" * 1000,
        agent_version=salt.hex() * 100,
        public_key=host.get_public_key().serialize(),
        listen_addrs=[multiaddr.Multiaddr(f"/ip4/10.0.{n >> 8}.{n & 255}/tcp/4001").to_bytes() for n in range(count)],
        protocols=[f"/{salt.hex()}/{n}" for n in range(count)],
    ).SerializeToString()
