from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvswap.core import wire
from kvswap.core.errors import IntegrityError, MalformedManifest
from kvswap.trust.envelopes import sign
from kvswap.trust.hosting import (
    OFFER,
    READ,
    Offer,
    Receipt,
    SignedOffer,
    Tariff,
    check_price,
    read_offer,
    read_receipt,
    sign_offer,
    sign_receipt,
)
from tests.support import key

HOST = key(8)
TARIFF = Tariff.of_dollars(0.03, 0.3, 0.6)


def offer(**changes: Any) -> Offer:
    made = Offer(
        version=1,
        host=str(HOST.peer_id),
        model=bytes(32),
        label="m",
        dtype="bfloat16",
        tariff=TARIFF,
        issued=1_700_000_000,
        expires=1_700_003_600,
    )
    return msgspec.structs.replace(made, **changes)


def read(signed: SignedOffer, **changes: Any) -> Receipt:
    made = Receipt(
        version=1,
        host=str(HOST.peer_id),
        number=1,
        previous=bytes(32),
        client="alice",
        document=bytes(32),
        model=bytes(32),
        offer=signed.digest,
        read=3_774,
        prefilled=20,
        made=64,
        picodollars=TARIFF.picodollars(3_774, 20, 64),
        ended=1_700_000_100,
    )
    return msgspec.structs.replace(made, **changes)


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**6))
def test_a_price_is_a_whole_number_and_that_of_the_offer(cached: int, prefilled: int, made: int) -> None:
    signed = sign_offer(offer(), HOST)
    cost = TARIFF.picodollars(cached, prefilled, made)
    assert cost / 1e12 == pytest.approx((cached * 0.03 + prefilled * 0.3 + made * 0.6) / 1e6)
    record = read(signed, read=cached, prefilled=prefilled, made=made, picodollars=cost)
    check_price(sign_receipt(record, HOST).read, signed)
    with pytest.raises(IntegrityError):
        check_price(msgspec.structs.replace(record, picodollars=cost + 1), signed)


def test_of_another_offer_or_another_host() -> None:
    signed = sign_offer(offer(), HOST)
    with pytest.raises(IntegrityError):
        check_price(read(signed), sign_offer(offer(issued=1_700_000_001), HOST))
    with pytest.raises(IntegrityError):
        check_price(read(signed, host=str(key(9).peer_id)), signed)


@pytest.mark.parametrize("changes", [{"version": 2}, {"expires": 1}, {"tariff": Tariff(0, 0, 10**12 + 1)}])
def test_what_is_no_offer_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedManifest):
        read_offer(sign(wire.pack(wire.plain(offer(**changes))), HOST, OFFER))


@pytest.mark.parametrize("changes", [{"version": 2}, {"read": -1}, {"document": b"short"}])
def test_what_is_no_read_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedManifest):
        read_receipt(sign(wire.pack(wire.plain(read(sign_offer(offer(), HOST), **changes))), HOST, READ))


def test_by_somebody_else() -> None:
    with pytest.raises(IntegrityError):
        sign_offer(offer(), key(9))
    with pytest.raises(IntegrityError):
        sign_receipt(read(sign_offer(offer(), HOST)), key(9))
