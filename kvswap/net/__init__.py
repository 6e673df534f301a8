"""The network layer: how peers are found, reached and asked.  It carries bytes and ids, and knows nothing of caches.

**Participants.**  A *node* has one PeerId (its node key).  A node that offers something is a *provider* of a key; a
node that asks is a *reader*.  Every node is both.

**Goals.**  Any node can be asked by content id for what it has.  An answer is never believed, only checked.  A peer
that is slow, silent or wrong costs the reader one bounded time-out.

**Non-goals.**  Anonymity, global search, payment, and hiding from peers what one asks for.

`transport` is the contract, `memory` its readable reference implementation, `libp2p` the real one, `messages` the wire
format (sans-IO), `client` and `server` the two ends of a request, `bulk` the faster data plane for chunks.
"""

from kvswap.net.transport import Announcement, PeerAddress, Stream, StreamClosed, Transport, Unreachable

__all__ = ["Announcement", "PeerAddress", "Stream", "StreamClosed", "Transport", "Unreachable"]
