"""The TLS certificate of a node, made with its node key, and the signed record that names it.

The certificate is self-signed and valid for all time (RFC 5280, 4.1.2.5): what is trusted is its digest, not its dates,
so a clock that is days off changes nothing.
"""

from __future__ import annotations

import datetime
import os
import ssl
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from kvswap.core import wire
from kvswap.core.errors import IntegrityError
from kvswap.core.ids import PeerId
from kvswap.net.messages import BulkRecord
from kvswap.trust.keys import Key, check_signature

_CONTEXT = b"kvswap bulk record v1\0"
_FROM = datetime.datetime(1970, 1, 2, tzinfo=datetime.UTC)
_UNTIL = datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC)  # RFC 5280: no well-defined end


@contextmanager
def _path_of(secret: bytes) -> Iterator[str]:
    """Yield a path to read a secret from, as Python's ssl takes keys from files only.

    It is a memory file where the system has such, so that no disk ever holds the secret; elsewhere a file that nobody
    else can read, and that is deleted at the end of the block.
    """
    if hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir():
        descriptor, on_disk = os.memfd_create("kvswap-key"), False
        path = f"/proc/self/fd/{descriptor}"
    else:
        descriptor, path = tempfile.mkstemp(prefix="kvswap-")
        on_disk = True
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secret)
            file.flush()
            yield path
    finally:
        if on_disk:
            Path(path).unlink()


@dataclass(frozen=True, slots=True)
class BulkIdentity:
    """A node's key, the digest of its certificate, and the TLS context that serves it."""

    key: Key
    certificate: bytes  # SHA-256 of the DER form
    context: ssl.SSLContext

    @classmethod
    def create(cls, key: Key) -> BulkIdentity:
        """Make a new self-signed certificate with the node key."""
        private = Ed25519PrivateKey.from_private_bytes(key.seed)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(key.peer_id))])
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(private.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_FROM)
            .not_valid_after(_UNTIL)
            .sign(private, None)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        with _path_of(pem + made.public_bytes(Encoding.PEM)) as path:
            context.load_cert_chain(path)
        return cls(key, made.fingerprint(hashes.SHA256()), context)

    def record(self, port: int) -> BulkRecord:
        """Return the signed record for a server on this port."""
        issued = int(time.time())
        peer = str(self.key.peer_id)
        signature = self.key.sign(_signed(peer, port, self.certificate, issued))
        return BulkRecord(peer=peer, port=port, certificate=self.certificate, issued=issued, signature=signature)


def _signed(peer: str, port: int, certificate: bytes, issued: int) -> bytes:
    return _CONTEXT + wire.pack([peer, port, certificate, issued])


def check_record(record: BulkRecord, peer: str) -> None:
    """Check that `peer`'s own key signed the record, whatever its time.  Raises `IntegrityError` if it did not."""
    if record.peer != peer:
        raise IntegrityError(f"{peer} gave the bulk record of {record.peer}", cause="a lying peer")
    message = _signed(record.peer, record.port, record.certificate, record.issued)
    check_signature(PeerId.parse(peer).public_key, record.signature, message)
