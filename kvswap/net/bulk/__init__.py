"""The bulk plane: chunks over HTTPS, several times faster than over a libp2p stream and at a quarter of the CPU.

**How it is bound to the peer.**  A node makes a certificate with its own node key and signs a record
of port and certificate digest.  A reader gets the record over libp2p, from the peer itself, and goes
to the address that it already has a libp2p connection to; so a peer can send nobody to a third host.
The TLS handshake is accepted for that certificate only.  There is no certificate authority, no host
name and no clock in this.

**Who may read.**  A bearer token, signed by the serving node, handed over on a libp2p stream and good
only while that stream is open.  It names the reader: limits, fairness and the ledger go by it.

**Non-goals.**  Being reachable through NAT: where this plane cannot be reached, chunks go over libp2p.

`identity` makes certificate and record, `tokens` the tokens, `server` and `client` are the two ends, both
with blocking sockets in threads; `tls` is the reading one's.
"""

from kvswap.net.bulk.client import BulkClient, BulkTarget
from kvswap.net.bulk.identity import BulkIdentity, check_record
from kvswap.net.bulk.server import BulkServer, Chunks
from kvswap.net.bulk.tokens import Tokens

__all__ = ["BulkClient", "BulkIdentity", "BulkServer", "BulkTarget", "Chunks", "Tokens", "check_record"]
