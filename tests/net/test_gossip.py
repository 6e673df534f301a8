"""The gossip's tables: bounded whatever many addresses say, and as py-libp2p's own for who is within the bounds."""

from __future__ import annotations

import random

from libp2p.pubsub.mcache import MessageCache
from libp2p.pubsub.pb import rpc_pb2

from kvswap.net.libp2p.gossip import RecentMessages
from kvswap.net.messages import TOPIC


def message(signer: bytes, number: int, nbytes: int = 10, topic: str = TOPIC) -> rpc_pb2.Message:
    """Make an unsigned message."""
    return rpc_pb2.Message(from_id=signer, seqno=number.to_bytes(8, "big"), data=bytes(nbytes), topicIDs=[topic])


def test_recent_messages_are_those_of_py_libp2p_within_the_bounds() -> None:
    chance = random.Random(7)
    ours, theirs = RecentMessages(3, 5), MessageCache(3, 5)
    said = [message(b"ada", n, topic=chance.choice([TOPIC, "another"])) for n in range(60)]
    for _ in range(400):
        if chance.random() < 0.3:
            ours.shift(), theirs.shift()
        else:
            one = chance.choice(said)
            ours.put(one), theirs.put(one)
        for topic in (TOPIC, "another"):
            assert sorted(ours.window(topic)) == sorted(theirs.window(topic))
        assert {m.seqno for m in said if ours.get(m.from_id + m.seqno)} == {
            m.seqno for m in said if theirs.get(m.from_id + m.seqno)
        }


def test_recent_messages_are_bounded_and_a_loud_signer_gives_way() -> None:
    cache = RecentMessages(3, 5)
    cache.put(message(b"quiet", 1))
    for number in range(3_000):
        cache.put(message(b"loud", number, 8_000))
    filling = cache.table.filling()
    assert filling.entries <= filling.most_entries
    assert filling.bytes <= filling.most_bytes
    assert cache.get(b"quiet" + (1).to_bytes(8, "big")) is not None
