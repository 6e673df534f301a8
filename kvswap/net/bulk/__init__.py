"""The bulk channel: chunks over HTTPS, several times faster than over a libp2p stream and at a quarter of the CPU.

**How it is bound to the peer.**  A node makes a certificate with its own node key and signs a record of port and
certificate digest.  A reader gets the record over libp2p, from the peer itself, and connects to the address of its
existing libp2p connection; so a peer cannot send anybody to a third host.  The TLS handshake is accepted for that
certificate only.  No certificate authority, host name or clock is involved.

**Who may read.**  The holder of a bearer token, which the serving node issues on a libp2p stream and which is valid
only while that stream is open.  It names the reader: limits, fairness and the ledger are kept by that name.

**Non-goals.**  Being reachable through NAT: where this plane cannot be reached, chunks go over libp2p.

`identity` makes the certificate and the record, `tokens` the tokens; `server` and `client` are the two ends, both with
blocking sockets in threads; `tls` is the TLS socket of both.
"""

from kvswap.net.bulk.client import BulkClient, BulkTarget
from kvswap.net.bulk.identity import BulkIdentity, check_record
from kvswap.net.bulk.server import BulkServer, Chunks
from kvswap.net.bulk.tokens import Tokens

__all__ = ["BulkClient", "BulkIdentity", "BulkServer", "BulkTarget", "Chunks", "Tokens", "check_record"]
