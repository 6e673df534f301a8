"""Rollback, freeze, fast-forward, equivocation and rotation of head records."""

from __future__ import annotations

import msgspec
import pytest

from kvswap.core import wire
from kvswap.core.errors import IntegrityError, KvswapError, MalformedManifest, Untrusted
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.trust.envelopes import sign
from kvswap.trust.status_record import KIND, accept, make_status_record, read_status_record
from tests.support import key

NOW = 1_700_000_000
KEY = key(9)
IDS = [str(Cid.of(b"artifact %d" % i)) for i in range(3)]


def head(sequence: int = 5, now: int = NOW, withdrawn: dict[str, str] | None = None, **changes: object):
    made = make_status_record(KEY, sequence, now, IDS, withdrawn or {}).record
    return msgspec.structs.replace(made, **changes)


def test_a_head_says_what_was_withdrawn_and_why() -> None:
    signed = make_status_record(KEY, 1, NOW, IDS[:2], {IDS[2]: "a typing error"})
    assert read_status_record(signed.envelope).record.reasons == {IDS[2]: "a typing error"}


def test_the_highest_sequence_is_kept() -> None:
    assert accept(head(5), None, NOW)
    assert accept(head(6), head(5), NOW)
    assert not accept(head(5), head(5), NOW)
    assert not accept(head(4), head(5), NOW)  # rollback


def test_an_expired_head_says_nothing() -> None:
    assert not accept(head(6), head(5), NOW + LIMITS.status_record_seconds)  # freeze


@pytest.mark.parametrize(
    "new",
    [
        head(5 + 2_000_000),  # fast-forward
        head(5, withdrawn={IDS[0]: "another story"}),  # two heads of one number
        head(6, now=NOW + 86_400),  # from the future
    ],
)
def test_what_cannot_be_honest_is_refused(new: object) -> None:
    with pytest.raises(Untrusted):
        accept(new, head(5), NOW)  # type: ignore[arg-type]


def test_a_head_that_lives_too_long_is_refused() -> None:
    payload = wire.pack(wire.plain(head(expires=NOW + LIMITS.status_record_seconds + 1)))
    with pytest.raises(MalformedManifest, match="48 hours"):
        read_status_record(sign(payload, KEY, KIND))


def test_the_old_key_and_the_new_one_sign_a_succession() -> None:
    after = key(10)
    signed = make_status_record(KEY, 1, NOW, IDS, {}, after)
    assert signed.record.successor is not None and signed.record.successor.peer == str(after.peer_id)
    stolen = msgspec.structs.replace(signed.record.successor, peer=str(key(11).peer_id))
    payload = wire.pack(wire.plain(msgspec.structs.replace(signed.record, successor=stolen)))
    with pytest.raises(IntegrityError):
        read_status_record(sign(payload, KEY, KIND))  # the new key did not sign


@pytest.mark.parametrize("position", range(0, 400, 7))
def test_no_flipped_byte_survives(position: int) -> None:
    data = bytearray(make_status_record(KEY, 1, NOW, IDS, {}).envelope)
    data[position % len(data)] ^= 0x55
    with pytest.raises(KvswapError):
        read_status_record(bytes(data))
