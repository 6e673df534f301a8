from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvswap.core import wire
from kvswap.core.errors import MalformedMessage, NotFound, PeerError
from kvswap.net import messages
from kvswap.net.client import bitmap, from_bitmap

REQUESTS = [
    messages.Find("kvswap/1", document="sha256:" + "a" * 64),
    messages.Find("kvswap/1", artifact="bafkr4i", model=b"\2" * 32, dtype="bfloat16"),
    messages.Find("kvswap/1", chain=[b"\0" * 32, b"\1" * 32], bulk=True),
    messages.GetManifest("bafkr4i"),
    messages.Join("bafkr4i", messages.Provider("12D3KooW", ["/ip4/127.0.0.1/tcp/1"]), True),
    messages.Have("bafkr4i"),
    messages.GetChunk("bafkr4i"),
    messages.GetPrefixIndex(7),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: type(r).__name__)
def test_requests_round_trip(request_: messages.Request) -> None:
    assert messages.decode_request(messages.encode_request(request_)) == request_


@given(st.binary(max_size=400))
def test_any_bytes_are_a_request_or_one_error(data: bytes) -> None:
    for decode in (messages.decode_request, messages.decode_announce, lambda d: messages.decode_response(d, bytes)):
        try:
            decode(data)
        except (MalformedMessage, PeerError, NotFound):
            pass


@pytest.mark.parametrize(
    "value",
    [
        {"kind": "shutdown"},
        {"kind": "chunk"},
        {"kind": "chunk", "cid": "x" * 1000},
        {"kind": "chunk", "cid": "x", "more": 1},
        {"kind": "find", "chain": [b"short"]},
        {"kind": "find", "chain": [b"\0" * 32] * 5000},
        {"cid": "x"},
        [],
        5,
    ],
)
def test_malformed_requests_are_refused(value: object) -> None:
    with pytest.raises(MalformedMessage):
        messages.decode_request(wire.pack(value))


def test_responses_carry_a_body_or_an_error() -> None:
    assert messages.decode_response(messages.encode_ok(b"abc"), bytes) == b"abc"
    with pytest.raises(NotFound, match="gone"):
        messages.decode_response(messages.encode_error(NotFound("gone")), bytes)
    with pytest.raises(PeerError, match="no"):
        messages.decode_response(messages.encode_error(PeerError("no")), bytes)
    with pytest.raises(MalformedMessage):
        messages.decode_response(messages.encode_ok("text"), bytes)
    with pytest.raises(MalformedMessage):
        messages.decode_response(wire.pack({"ok": b"", "error": {}}), bytes)


@given(st.lists(st.booleans(), max_size=50))
def test_bitmaps_round_trip(flags: list[bool]) -> None:
    assert from_bitmap(bitmap(flags), len(flags)) == flags
    assert from_bitmap(b"", 3) == [False] * 3
