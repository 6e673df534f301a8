"""The database of a host, `host.sqlite3`: clients, documents, offers, and the chained usage log.

Several processes use it: the host, and the commands that add clients and documents while it runs.  A usage record is on
disk (`synchronous=FULL`) before the end of its answer is sent.
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kvswap.core.errors import IntegrityError, NotFound, UsageError
from kvswap.core.limits import LIMITS
from kvswap.store.index import Index
from kvswap.trust.hosting import (
    NOTHING,
    Receipt,
    SignedOffer,
    SignedReceipt,
    check_price,
    read_offer,
    read_receipt,
    sign_receipt,
)
from kvswap.trust.keys import Key

# Append only: a migration that was ever released is never edited.
_MIGRATIONS = (
    """
    CREATE TABLE clients (
        name TEXT PRIMARY KEY, token BLOB NOT NULL UNIQUE, daily_tokens INTEGER NOT NULL, concurrent INTEGER NOT NULL,
        added REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE documents (
        document TEXT PRIMARY KEY, name TEXT NOT NULL, text TEXT NOT NULL, artifact TEXT NOT NULL, added REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE offers (digest BLOB PRIMARY KEY, envelope BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE reads (
        number INTEGER PRIMARY KEY, client TEXT NOT NULL, day INTEGER NOT NULL, tokens INTEGER NOT NULL,
        envelope BLOB NOT NULL
    );
    CREATE INDEX reads_client ON reads (client, day);
    """,
    # A client is identified by the id of its invitation.  Older clients keep their name as id; new ids are never names.
    """
    ALTER TABLE clients ADD COLUMN id TEXT NOT NULL DEFAULT '';
    UPDATE clients SET id = name;
    CREATE UNIQUE INDEX clients_id ON clients (id);
    CREATE TABLE guests (id TEXT PRIMARY KEY, name TEXT NOT NULL, added REAL NOT NULL) WITHOUT ROWID;
    INSERT INTO guests SELECT id, name, added FROM clients;
    INSERT OR IGNORE INTO guests SELECT DISTINCT client, client, 0 FROM reads;
    CREATE INDEX guests_name ON guests (name);
    """,
)
_DAY = 86_400


@dataclass(frozen=True, slots=True)
class HostClient:
    """An invited client and its limits: tokens a day (UTC), read or generated, and requests at a time; 0 for no limit.

    `id` identifies one invitation, and all records of the client; `name` is for display.
    """

    id: str
    name: str
    daily_tokens: int
    concurrent: int


@dataclass(frozen=True, slots=True)
class HostedDocument:
    """A text that can be asked about, and the artifact with its cache."""

    document: str  # sha256:<hex>
    name: str
    text: str
    artifact: str


def today(now: float | None = None) -> int:
    """Return the number of days since 1970, UTC."""
    return int(time.time() if now is None else now) // _DAY


def until_tomorrow(now: float | None = None) -> float:
    """Return the seconds until the next day, UTC."""
    return _DAY - (time.time() if now is None else now) % _DAY


class UsageLog:
    """The database of one host, which several threads and processes may use at a time."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            path.touch(mode=0o600)
        self._index = Index(path, _MIGRATIONS, "FULL")

    def close(self) -> None:
        """Close the database."""
        self._index.close()

    # -- clients ---------------------------------------------------------------------------------

    def invite(self, name: str, daily_tokens: int = 0, concurrent: int = 0) -> str:
        """Add a client and return its token, of which only a digest is stored.

        Raises `UsageError` if the name is taken or malformed, or there are too many clients.
        """
        if not name or len(name) > 64 or not name.isprintable():
            raise UsageError(f"{name[:80]!r} is no name for a client")
        token, now = secrets.token_urlsafe(32), time.time()
        number = f"guest-{secrets.token_hex(16)}"
        try:
            with self._index.transaction() as db:
                (count,) = db.execute("SELECT COUNT(*) FROM clients").fetchone()
                if count >= LIMITS.host_clients:
                    raise UsageError(f"a host has {LIMITS.host_clients} clients at most", hint="kvswap host revoke")
                row = (name, _digest(token), daily_tokens, concurrent, now, number)
                db.execute("INSERT INTO clients VALUES (?, ?, ?, ?, ?, ?)", row)
                db.execute("INSERT INTO guests VALUES (?, ?, ?)", (number, name, now))
        except sqlite3.IntegrityError:
            raise UsageError(f"there is a client {name!r} already", hint=f"kvswap host revoke {name}") from None
        return token

    def revoke(self, name: str) -> None:
        """Remove a client, whose token is refused from then on.  Raises `NotFound`."""
        with self._index.transaction() as db:
            if not db.execute("DELETE FROM clients WHERE name = ?", (name,)).rowcount:
                raise NotFound(f"there is no client {name[:80]!r}", hint="kvswap host clients")

    def client(self, token: str) -> HostClient | None:
        """Return the client that holds this token, or None.

        It is looked up by its digest, so that the time of the look-up discloses nothing about other tokens.
        """
        rows = self._index.rows("SELECT * FROM clients WHERE token = ?", _digest(token))
        return _client(rows[0]) if rows else None

    def clients(self) -> list[HostClient]:
        """Return all clients, sorted by name."""
        return [_client(row) for row in self._index.rows("SELECT * FROM clients ORDER BY name")]

    def name_of(self, client: str) -> str:
        """Return the name under which the client with this id was invited, even if it is revoked by now."""
        rows = self._index.rows("SELECT name FROM guests WHERE id = ?", client)
        return str(rows[0]["name"]) if rows else client

    def used(self, client: str, day: int) -> int:
        """Return the tokens that the client with this id has used on a day."""
        (row,) = self._index.rows(
            "SELECT COALESCE(SUM(tokens), 0) n FROM reads WHERE client = ? AND day = ?", client, day
        )
        return int(row["n"])

    # -- documents -------------------------------------------------------------------------------

    def add_document(self, document: HostedDocument) -> None:
        """Store a document, replacing an older entry for it."""
        row = (document.document, document.name, document.text, document.artifact, time.time())
        with self._index.transaction() as db:
            db.execute("INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?, ?)", row)

    def remove_document(self, document: str) -> None:
        """Delete a document.  Raises `NotFound`."""
        with self._index.transaction() as db:
            if not db.execute("DELETE FROM documents WHERE document = ?", (document,)).rowcount:
                raise NotFound(f"{document[:80]} is not hosted here", hint="kvswap host ls")

    def document(self, document: str) -> HostedDocument:
        """Return a document with its text.  Raises `NotFound`."""
        rows = self._index.rows("SELECT * FROM documents WHERE document = ?", document)
        if not rows:
            raise NotFound(f"{document[:80]} is not hosted here", cause="the host has not added it")
        return _document(rows[0])

    def named(self, document: str) -> tuple[str, str]:
        """Return a document's name and artifact without its text, which may be large.  Raises `NotFound`."""
        rows = self._index.rows("SELECT name, artifact FROM documents WHERE document = ?", document)
        if not rows:
            raise NotFound(f"{document[:80]} is not hosted here", cause="the host has not added it")
        return str(rows[0]["name"]), str(rows[0]["artifact"])

    def references(self) -> list[str]:
        """Return the references of all documents, oldest first, without their texts, which may be large."""
        return [str(row["document"]) for row in self._index.rows("SELECT document FROM documents ORDER BY added")]

    # -- reads -----------------------------------------------------------------------------------

    def add_offer(self, offer: SignedOffer) -> None:
        """Store a signed offer, to which usage records refer for their prices."""
        with self._index.transaction() as db:
            db.execute("INSERT OR IGNORE INTO offers VALUES (?, ?)", (offer.digest, offer.envelope))

    def add_receipt(self, receipt: Receipt, key: Key, quota: int | None = None) -> SignedReceipt:
        """Assign the next number to a usage record, chain, sign and store it; it is on disk when this returns.

        The fields `number` and `previous` are filled in.  `quota` is the number of tokens to count against the client's
        day, if it differs from the record's.
        """
        with self._index.transaction() as db:
            last = db.execute("SELECT number, envelope FROM reads ORDER BY number DESC LIMIT 1").fetchone()
            number, previous = (last["number"] + 1, read_receipt(last["envelope"]).digest) if last else (1, NOTHING)
            signed = sign_receipt(msgspec.structs.replace(receipt, number=number, previous=previous), key)
            tokens = receipt.read + receipt.prefilled + receipt.made if quota is None else quota
            row = (number, receipt.client, today(receipt.ended), tokens, signed.envelope)
            db.execute("INSERT INTO reads VALUES (?, ?, ?, ?, ?)", row)
        return signed

    def receipts(self, client: str | None = None, after: int = 0, most: int = 1_000) -> list[SignedReceipt]:
        """Return at most `most` usage records with numbers above `after`, in order; `client` is an id."""
        where, arguments = ("AND client = ?", (client,)) if client is not None else ("", ())
        query = f"SELECT envelope FROM reads WHERE number > ? {where} ORDER BY number LIMIT ?"
        return [read_receipt(row["envelope"]) for row in self._index.rows(query, after, *arguments, most)]

    def last_receipts(self, client: str | None, most: int) -> list[SignedReceipt]:
        """Return the `most` newest usage records, in order.

        `client` is an id, or a name, which stands for all clients that were ever invited under it.
        """
        by_name = "WHERE client = ? OR client IN (SELECT id FROM guests WHERE name = ?)"
        where, arguments = (by_name, (client, client)) if client is not None else ("", ())
        query = f"SELECT envelope FROM reads {where} ORDER BY number DESC LIMIT ?"
        return [read_receipt(row["envelope"]) for row in self._index.rows(query, *arguments, most)][::-1]

    def check(self) -> int:
        """Verify every usage record: signature, number, hash chain and price.

        Returns how many there are.  Raises `IntegrityError` for the first that is missing or wrong.
        """
        offers = {bytes(row["digest"]): read_offer(row["envelope"]) for row in self._index.rows("SELECT * FROM offers")}
        number, previous = 0, NOTHING
        while receipts := self.receipts(after=number):
            for signed in receipts:
                number += 1
                if (signed.read.number, signed.read.previous) != (number, previous):
                    raise IntegrityError(f"receipt {number} is missing or changed", cause="the usage log was edited")
                if signed.read.offer not in offers:
                    raise IntegrityError(f"the offer of receipt {number} is missing", cause="the usage log was edited")
                check_price(signed.read, offers[signed.read.offer])
                previous = signed.digest
        return number


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()  # a header may hold any characters


def _client(row: sqlite3.Row) -> HostClient:
    return HostClient(row["id"], row["name"], row["daily_tokens"], row["concurrent"])


def _document(row: sqlite3.Row) -> HostedDocument:
    return HostedDocument(row["document"], row["name"], row["text"], row["artifact"])
