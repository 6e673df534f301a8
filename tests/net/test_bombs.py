"""Messages that are small as bytes and large as objects: refused for what they cost to read, nothing more.

Every decoder of a stranger's bytes times every way to make many items of few bytes times the places to put them.
"""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import msgpack
import pytest

from kvswap.artifact import dsse
from kvswap.artifact.consistency import parse_manifest
from kvswap.artifact.manifest import Manifest
from kvswap.artifact.sealing import Sealed
from kvswap.codec import predictive
from kvswap.core import wire
from kvswap.core.errors import KvswapError
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.net import messages
from kvswap.trust.audit import Audit
from kvswap.trust.hosting import Offer, Receipt
from kvswap.trust.status_record import StatusRecord, make_status_record, read_status_record
from tests.support import key, make_artifact, plain_predictor

SIZE = 1 << 18  # bytes of a bomb, where the message may be so large


def _many(item: bytes, size: int) -> bytes:
    return b"\xdd" + struct.pack(">I", (size - 5) // len(item)) + item * ((size - 5) // len(item))


def _keys(size: int) -> bytes:
    count = (size - 5) // 8
    return b"\xdf" + struct.pack(">I", count) + b"".join(b"\xa6%06d\xc0" % (i % 10**6) for i in range(count))


BOMBS: dict[str, Callable[[int], bytes]] = {
    "maps": lambda size: _many(b"\x80", size),
    "arrays": lambda size: _many(b"\x90", size),
    "pairs": lambda size: _many(b"\x81\xa0\x90", size),
    "texts": lambda size: _many(b"\xa3abc", size),
    "numbers": lambda size: _many(b"\xcf" + b"\x7f" * 8, size),
    "bytes": lambda size: _many(b"\xc4\x01x", size),
    "keys": _keys,
    "deep": lambda size: b"\x91" * (size - 1) + b"\x90",
    "trees": lambda size: _many(b"\x92\x92\x80\x80\x92\x80\x80", size),
}


@lru_cache(maxsize=1)
def _manifest() -> Manifest:
    return make_artifact().manifest


def _with(fields: dict[str, Any], name: str, bomb: bytes) -> bytes:
    """A map in which one field's value is these bytes."""
    rest = {k: v for k, v in fields.items() if k != name}
    body = b"".join(msgpack.packb(k) + msgpack.packb(v) for k, v in rest.items())
    return b"\xde" + struct.pack(">H", len(rest) + 1) + body + msgpack.packb(name) + bomb


def _places(fields: dict[str, Any], *names: str) -> list[Callable[[bytes], bytes]]:
    """The bomb itself, and in the place of each field."""
    return [lambda bomb: bomb, *(partial(_with, fields, name) for name in names)]


def _envelope() -> dict[str, Any]:
    return {"payload_type": dsse.PAYLOAD_TYPE, "payload": b"x", "signatures": [{"keyid": "a", "sig": b"b"}]}


def _plain(value: Any) -> dict[str, Any]:
    plain: dict[str, Any] = wire.plain(value) | wire.plain(getattr(value, "_versioned", {}))
    return {k: v for k, v in plain.items() if v is not None}


def _cases() -> dict[str, tuple[Callable[[bytes], Any], list[Callable[[bytes], bytes]], int]]:
    cases: dict[str, tuple[Callable[[bytes], Any], list[Callable[[bytes], bytes]], int]] = {}
    reply = _plain(messages.FindReply("a", "b", [], []))
    for kind in (messages.FindReply, messages.JoinReply, messages.HaveReply, messages.PrefixIndexReply, bytes):
        places = [*_places({}, "ok", "error", "else")]
        places += [lambda bomb, n=name: _with({}, "ok", _with(reply, n, bomb)) for name in reply]
        cases[f"answer {kind.__name__}"] = (lambda data, k=kind: messages.decode_response(data, k), places, SIZE)
    find = {"kind": "find", "agent": "a", "artifact": "b"}
    cases["request"] = (messages.decode_request, _places(find, *find, "chain", "more"), LIMITS.request_bytes // 2)
    cases["announcement"] = (messages.decode_announce, _places({"artifact": "a"}, "provider", "document"), 4_096)
    cases["envelope"] = (dsse.open_envelope, _places(_envelope(), *_envelope(), "more"), SIZE)
    manifest = _plain(_manifest()) | {"extensions": ["more"]}
    cases["manifest"] = (parse_manifest, _places(manifest, *manifest, "more"), SIZE)
    nested = [
        lambda bomb, n=name, inner=inner: _with(manifest, n, _with(manifest[n], inner, bomb))
        for name in ("model", "prefix", "layout", "probe")
        for inner in manifest[name]
    ]
    cases["manifest, inside"] = (parse_manifest, nested, SIZE)
    cases["sealed"] = (Sealed.parse, _places({"version": 1}, "salt", "body"), SIZE)
    predictor = msgpack.unpackb(predictive.dump(plain_predictor(_manifest().layout.layers[:2])))
    cases["predictor"] = (predictive.load, _places(predictor, *predictor), SIZE)
    stack = predictor["stacks"][0]
    in_stack = [lambda bomb, n=n: _with(predictor, "stacks", b"\x91" + _with(stack, n, bomb)) for n in stack]
    cases["predictor, inside"] = (predictive.load, in_stack, SIZE)
    for kind in (StatusRecord, Audit, Offer, Receipt):
        cases[kind.__name__] = (lambda data, k=kind: wire.unpack(data, k), _places({"version": 1}, "issued"), 1 << 17)
    return cases


CASES = _cases()


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("name", CASES)
def test_a_bomb_costs_no_more_than_its_bytes(name: str, bomb: str) -> None:
    decode, places, size = CASES[name]
    charge = BOMBS[bomb](size)
    for place in places:
        data = place(charge)
        tracemalloc.start()
        try:
            decode(data)
        except KvswapError:
            pass
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2 * len(data) + (256 << 10), f"{len(data)} bytes became {peak}"


def test_timestamps_are_refused_in_what_a_manifest_declares_to_be_ignored() -> None:
    fields = _plain(_manifest()) | {"extensions": ["more"]}
    for value in (msgpack.Timestamp(1, 2), [msgpack.Timestamp(1, 0)], {"a": {"b": msgpack.Timestamp(2**34, 0)}}):
        with pytest.raises(KvswapError, match="extension"):
            parse_manifest(_with(fields, "more", msgpack.packb(value)))
    for value in ({"a": [1, None, True, "x", b"y", -5, 1.5]}, [[[]]], {b"k": 1}):
        assert parse_manifest(_with(fields, "more", msgpack.packb(value))).extensions == ["more"]
    with pytest.raises(KvswapError, match="twice"):
        parse_manifest(_with(fields, "more", b"\x82\xa1a\x01\xa1a\x02"))


def test_the_largest_of_each_kind_is_read() -> None:
    one = messages.Provider("p" * 64, ["a" * 256] * 8)
    found = messages.Found("c" * 64, bytes(32), "d" * 16, 2**53, 2**53, "p" * 64, True, 2**53, None)
    with_manifest = messages.Found("c" * 64, bytes(32), "d" * 16, 1, 1, "p" * 64, True, 1, bytes(64 << 10))
    record = messages.BulkRecord("p" * 64, 65_535, bytes(32), 1, bytes(64))
    grant = messages.BulkTicket("t" * 512, 600, record)
    cids = {str(Cid.of(b"%d" % i)): "w" * 64 for i in range(LIMITS.status_record_withdrawals)}
    head = make_status_record(key(5), 3, 1000, [], cids, None).envelope
    assert len(read_status_record(head).record.withdrawn) == LIMITS.status_record_withdrawals
    reply = messages.FindReply(
        "a" * 64, "p" * 64, [with_manifest, *[found] * 63], [one] * 64, 1, [head] * 4, [bytes(4096)] * 8, grant
    )
    data = messages.encode_ok(reply)
    assert len(data) <= messages.cap_of(messages.FindReply).size
    assert messages.decode_response(data, messages.FindReply) == reply
    join = messages.JoinReply(bytes(LIMITS.manifest_chunks // 8), [one] * 64, grant)
    assert len(messages.encode_ok(join)) <= messages.cap_of(messages.JoinReply).size
    assert messages.decode_response(messages.encode_ok(join), messages.JoinReply) == join
    keys = messages.PrefixIndexReply(2**53, bytes(LIMITS.prefix_index_bytes))
    assert len(messages.encode_ok(keys)) <= messages.cap_of(messages.PrefixIndexReply).size
    assert messages.decode_response(messages.encode_ok(keys), messages.PrefixIndexReply) == keys
    for request in (
        messages.Find("a" * 64, chain=[bytes(32)] * LIMITS.chain_digests, model=bytes(32), dtype="d" * 16, bulk=True),
        messages.Join("c" * 64, one, True),
    ):
        assert messages.decode_request(messages.encode_request(request)) == request
