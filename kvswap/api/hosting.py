"""The results of the verbs about a node's own host, which speak to its database and not to a daemon."""

from __future__ import annotations

from msgspec import field

from kvswap.api.result import Result


class HostReady(Result, frozen=True, kw_only=True):
    """The word of a host that it answers."""

    ready: bool
    url: str
    host: str
    """The PeerId that its offers and records are signed with."""
    model: str


class HostingResult(Result, frozen=True, kw_only=True):
    """The result of `kvswap host add`."""

    document: str
    artifact: str
    published: bool
    """True if its cache had to be published first."""


class UnhostingResult(Result, frozen=True, kw_only=True):
    """The result of `kvswap host rm`."""

    document: str
    removed: bool


class HostedRow(Result, frozen=True, kw_only=True):
    """A document that clients can ask about."""

    document: str
    name: str
    """The name of its file."""
    artifact: str


class HostedResult(Result, frozen=True, kw_only=True):
    """The documents that clients can ask about."""

    documents: list[HostedRow]


class InvitationResult(Result, frozen=True, kw_only=True):
    """An invitation, which is a secret: it is shown once."""

    client: str
    url: str
    host: str
    """The PeerId of the host."""
    token: str
    """The secret alone, for programs that speak to the host themselves."""
    invitation: str
    """The text that `kvswap host join` takes."""


class ClientRow(Result, frozen=True, kw_only=True):
    """A client that was invited, its limits, and what it used."""

    name: str
    id: str
    """The id of the invitation."""
    daily_tokens: int
    """The tokens a day, read or made; 0: no bound."""
    concurrent: int
    """The requests at a time; 0: no bound."""
    used: int
    """The tokens that it used today (UTC)."""


class ClientsResult(Result, frozen=True, kw_only=True):
    """The clients that were invited."""

    clients: list[ClientRow]


class RevokeResult(Result, frozen=True, kw_only=True):
    """The result of `kvswap host revoke`."""

    client: str
    revoked: bool


class ReceiptRow(Result, frozen=True, kw_only=True):
    """The signed record of one hosted request; digests in hex."""

    version: int
    host: str
    number: int
    previous: str
    """The digest of the record before it."""
    client: str
    """The id of the client's invitation."""
    document: str | None
    """None: the request named no document."""
    model: str
    offer: str
    """The digest of the offer that priced it."""
    read: int
    """The prompt tokens that came from the cache."""
    prefilled: int
    """The prompt tokens that had to be computed."""
    made: int
    picodollars: int
    ended: int
    """The Unix time of the end."""
    dollars: float
    name: str
    """The name that the client was invited by."""


class ReceiptsResult(Result, frozen=True, kw_only=True):
    """The newest records of hosted requests, all of which were checked."""

    records: int
    """The number of all records."""
    receipts: list[ReceiptRow] = field(name="reads")
