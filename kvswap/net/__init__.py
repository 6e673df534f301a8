"""Peers: how they are found, reached and spoken with.  This room knows bytes and ids, not caches.

**Participants.**  A *node* has one PeerId (its node key).  A node that offers something is a
*provider* of a key; a node that asks is a *reader*.  Every node is both.

**Goals.**  Any node can be asked for what it has by content id; what it answers is never believed,
only checked; a peer that is slow, silent, or wrong costs one bounded time-out.

**Non-goals.**  Anonymity, global search, payment, and hiding from peers what one asks for.

`transport` is the contract, `memory` its readable reference, `libp2p` the real one, `messages` the
bytes (sans-IO), `client` and `server` the two ends of a request.
"""

from kvswap.net.transport import Announcement, PeerAddress, Stream, StreamClosed, Transport, Unreachable

__all__ = ["Announcement", "PeerAddress", "Stream", "StreamClosed", "Transport", "Unreachable"]
