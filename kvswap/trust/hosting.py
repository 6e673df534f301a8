"""The statements that a host signs: the offer that names its prices, and a record of every hosted request.

Prices are in millionths of a US dollar for a million tokens, so that a token costs a whole number of picodollars and no
sum is rounded.  Records are numbered and each names the digest of the one before: one that is left out or changed later
shows (after Haber and Stornetta, 1991).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from kvswap.artifact.specs import Count, Digest, Text
from kvswap.core import wire
from kvswap.core.errors import IntegrityError, MalformedManifest, Untrusted
from kvswap.core.ids import blake3_digest
from kvswap.core.limits import LIMITS
from kvswap.trust.envelopes import open_signed, require_signer, sign_value
from kvswap.trust.keys import Key

OFFER = "application/vnd.kvswap.host-offer.v1+msgpack"
READ = "application/vnd.kvswap.host-read.v1+msgpack"
VERSION = 1
PICO = 1e12
NOTHING = bytes(32)  # the digest that the first record names as the one before it

Price = Annotated[int, Meta(ge=0, le=10**12)]
Peer = Annotated[str, Meta(max_length=64)]


class Tariff(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The prices of a host in millionths of a US dollar for a million tokens, which is picodollars for one token.

    `read`: a prompt token that was in the cache; `prefill`: one that had to be computed; `make`: a token of the answer.
    """

    read: Price
    prefill: Price
    make: Price

    @classmethod
    def of_dollars(cls, read: float, prefill: float, make: float) -> Tariff:
        """Make a tariff from prices in dollars for a million tokens."""
        return cls(*(round(price * 1e6) for price in (read, prefill, make)))

    def picodollars(self, read: int, prefilled: int, made: int) -> int:
        """Return the price of a request in picodollars, given its cached, prefilled and generated tokens."""
        return read * self.read + prefilled * self.prefill + made * self.make

    def to_json(self) -> dict[str, float]:
        """Return the prices in dollars for a million tokens."""
        return {name: getattr(self, name) / 1e6 for name in self.__struct_fields__}


class Offer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The model that a host serves, its prices, and until when they hold (Unix seconds)."""

    version: int
    host: Peer
    model: Digest
    label: Text
    dtype: Text
    tariff: Tariff
    issued: Count
    expires: Count


class Receipt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The record of one hosted request.

    `read` prompt tokens came from the cache, `prefilled` had to be computed, `made` tokens were generated.
    """

    version: int
    host: Peer
    number: Count
    previous: Digest
    client: Text
    document: Digest | None  # sha256; None: no document was named
    model: Digest
    offer: Digest
    read: Count
    prefilled: Count
    made: Count
    picodollars: Count
    ended: Count  # Unix seconds

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, with the price in dollars beside that in picodollars."""
        out: dict[str, Any] = wire.jsonable(wire.plain(self))
        out["document"] = f"sha256:{out['document']}" if out["document"] else None
        return out | {"dollars": self.picodollars / PICO}


@dataclass(frozen=True, slots=True)
class SignedOffer:
    """An offer with its envelope; `digest` is the BLAKE3 digest of the payload, by which records name it."""

    digest: bytes
    offer: Offer
    envelope: bytes


@dataclass(frozen=True, slots=True)
class SignedReceipt:
    """A record of a hosted request with its envelope; `digest` (BLAKE3) is how the next record names it."""

    digest: bytes
    read: Receipt
    envelope: bytes


def sign_offer(offer: Offer, key: Key) -> SignedOffer:
    """Sign an offer.  Raises `UsageError` for a text with control characters, which no reader would show."""
    return read_offer(sign_value(offer, key, OFFER))


def read_offer(data: bytes) -> SignedOffer:
    """Parse an offer and check its signature and form, but not its time.

    Raises `MalformedManifest` or `IntegrityError`.
    """
    signer, payload = open_signed(data, OFFER, LIMITS.statement_bytes)
    offer = wire.unpack(payload, Offer)
    if offer.version != VERSION or offer.issued >= offer.expires:
        raise MalformedManifest("not an offer of version 1", field="version")
    require_signer(signer, offer.host, "host")
    return SignedOffer(blake3_digest(payload), offer, data)


def check_life(offer: Offer, now: float) -> None:
    """Raise `Untrusted` for an offer that does not hold at `now` (Unix seconds)."""
    if now > offer.expires + LIMITS.clock_skew_seconds or now < offer.issued - LIMITS.clock_skew_seconds:
        raise Untrusted(f"the offer of {offer.host} has expired, or is of tomorrow", cause="a clock is wrong")


def sign_receipt(read: Receipt, key: Key) -> SignedReceipt:
    """Sign a record of a hosted request.

    Raises `UsageError` for a text with control characters, which no reader would show.
    """
    return read_receipt(sign_value(read, key, READ))


def read_receipt(data: bytes) -> SignedReceipt:
    """Parse a record of a hosted request and check its signature and form.

    Raises `MalformedManifest` or `IntegrityError`.
    """
    signer, payload = open_signed(data, READ, LIMITS.statement_bytes)
    read = wire.unpack(payload, Receipt)
    if read.version != VERSION:
        raise MalformedManifest("not a read record of version 1", field="version")
    require_signer(signer, read.host, "host")
    return SignedReceipt(blake3_digest(payload), read, data)


def check_price(read: Receipt, offer: SignedOffer) -> None:
    """Raise `IntegrityError` unless a record names this offer and costs what it says."""
    if read.offer != offer.digest or read.host != offer.offer.host:
        raise IntegrityError(f"read {read.number} was priced by another offer", cause="the host changed its prices")
    wanted = offer.offer.tariff.picodollars(read.read, read.prefilled, read.made)
    if read.picodollars != wanted:
        raise IntegrityError(
            f"read {read.number} costs ${read.picodollars / PICO:.9f}, by the offer ${wanted / PICO:.9f}",
            cause="the host charges more than it offered",
        )
