"""Everything that parses bytes of a stranger, as functions of bytes: any error but our own is a bug.

`CORPUS` gives seeds that are right, so that mutations reach past the first check.  `test_targets.py` runs
all of them with Hypothesis, `fuzz.py` with a coverage-guided fuzzer for as long as one likes.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from kvswap.artifact import dsse, sealing
from kvswap.artifact.archive import ArchiveReader
from kvswap.artifact.consistency import parse_manifest
from kvswap.codec import decode, predictive
from kvswap.core import wire
from kvswap.core.errors import KvswapError
from kvswap.core.ids import Cid, PeerId, parse_reference
from kvswap.exchange.node.prefix_index import holds
from kvswap.integrations import llamacpp
from kvswap.integrations.llamacpp.gguf import parse_gguf
from kvswap.net import messages
from kvswap.net.bulk import Tokens
from kvswap.net.host_connection import Invitation
from kvswap.trust import Group, read_statement
from kvswap.trust.agreement import apart
from kvswap.trust.audit import Audit, read_audit
from kvswap.trust.envelopes import kind_of
from kvswap.trust.groups import keys_of
from kvswap.trust.hosting import read_offer, read_receipt, sign_offer, sign_receipt
from kvswap.trust.status_record import StatusRecord, read_status_record
from tests.integrations.llamacpp.goldens import STATES, slot_file
from tests.llama import tiny
from tests.support import group
from tests.trust.test_hosting import HOST, offer, read

VECTORS = Path(__file__).resolve().parents[2] / "manifests" / "vectors"
MOST_ALLOCATED = 64 << 20  # bytes; what a chunk may decode to
Target = Callable[[bytes], None]
TARGETS: dict[str, Target] = {}
CORPUS: dict[str, Callable[[], list[bytes]]] = {}


def target(name: str, corpus: Callable[[], list[bytes]]) -> Callable[[Target], Target]:
    def add(function: Target) -> Target:
        def quiet(data: bytes) -> None:
            try:
                function(data)
            except KvswapError:
                pass

        TARGETS[name], CORPUS[name] = quiet, corpus
        return function

    return add


def _vectors(folder: str) -> Iterator[bytes]:
    for path in sorted((VECTORS / folder).glob("*.kvm")):
        if path.stat().st_size < 20_000:
            yield path.read_bytes()


@lru_cache(maxsize=1)
def _envelopes() -> list[bytes]:
    return [*_vectors("valid"), *_vectors("hostile")]


def _payloads() -> list[bytes]:
    of_manifests = [data for data in _vectors("valid") if kind_of(data) == dsse.PAYLOAD_TYPE]
    return [dsse.open_envelope(data).payload for data in of_manifests]


@target("envelope", _envelopes)
def envelope(data: bytes) -> None:
    """Envelope, signature, what is sealed, manifest."""
    read_statement(data, keys_of([group()]))


def _archives() -> list[bytes]:
    return [path.read_bytes() for path in sorted((VECTORS / "archives").glob("*.tar"))]


@target("archive", _archives)
def archive(data: bytes) -> None:
    """A tar, in pieces of all sizes, of which no more is kept than came."""
    reader, step = ArchiveReader(), 1
    while data:
        piece, data, step = data[:step], data[step:], step * 3 % 5003
        for entry in reader.feed(piece):
            assert len(entry.data) == entry.size <= reader.length
    reader.end()


def _slot_files() -> list[bytes]:
    names = ("dense-f16", "dense-q8_0", "dense-f16-noflash", "dense-f16-slot2of3", "sliding-f16")
    return [slot_file(name) for name in names] + [slot_file("dense-f16", "v0.4.0")]


@target("slot file", _slot_files)
def slot(data: bytes) -> None:
    """What llama-server saved: what is taken is written back as it came, and can be cut."""
    parsed = llamacpp.parse_slot_file(data)
    assert llamacpp.write_slot_file(parsed) == data
    if parsed.state.tokens:
        shape = llamacpp.shape_of(parsed)
        assert llamacpp.shape_of(llamacpp.refit(parsed, shape)) == shape
        llamacpp.cut(parsed, 1 + parsed.state.tokens // 2, 32)


@lru_cache(maxsize=1)
def _ggufs() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        whole = tiny.write(Path(folder) / "tiny.gguf", layers=1).read_bytes()
    return [whole[: len(whole) - start] for start in (0, 600_000)]


@target("gguf", _ggufs)
def gguf_header(data: bytes) -> None:
    """The header of a model that somebody downloaded."""
    found = parse_gguf(io.BytesIO(data), len(data), Path("fuzzed.gguf"))
    assert all(tensor.at + tensor.length <= len(data) for tensor in found.tensors)


@target("llama state", lambda: [path.read_bytes() for path in STATES])
def llama_state(data: bytes) -> None:
    """What llama.cpp's own interface saves."""
    assert llamacpp.write_state(llamacpp.parse_state(data)) == data


def _hosting() -> list[bytes]:
    signed = sign_offer(offer(), HOST)
    return [signed.envelope, sign_receipt(read(signed), HOST).envelope]


@target("hosting", _hosting)
def hosting(data: bytes) -> None:
    """What a host signs."""
    for parse in (read_offer, read_receipt):
        try:
            parse(data)
        except KvswapError:
            pass


def _invitations() -> list[bytes]:
    return [Invitation("https://example.org", str(HOST.peer_id), "token").to_text().encode()]


@target("invitation", _invitations)
def invitation(data: bytes) -> None:
    """Of a host, as somebody pasted it."""
    Invitation.from_text(data.decode("utf-8", "replace"))


def _sealed() -> list[bytes]:
    of_groups = [data for data in _vectors("valid") if kind_of(data) == sealing.KIND]
    return [dsse.open_envelope(data, sealing.KIND).payload for data in of_groups]


@target("sealed", _sealed)
def sealed(data: bytes) -> None:
    """The payload of a sealed artifact by itself."""
    parsed = sealing.Sealed.parse(data)
    group("vectors").seal(parsed.salt).open_manifest(parsed)


@target("group", lambda: [group().to_text().encode()])
def group_key(data: bytes) -> None:
    """A key that somebody sent."""
    assert Group.from_text(data.decode(errors="replace")).key


@target("manifest", _payloads)
def manifest(data: bytes) -> None:
    """The payload by itself: what a publisher with a valid signature can send."""
    parsed = parse_manifest(data)
    assert parse_manifest(parsed.encode()) == parsed
    parsed.to_json()


def _requests() -> list[bytes]:
    me = messages.Provider("12D3KooW" + "a" * 44, ["/ip4/127.0.0.1/tcp/1"])
    cid = str(Cid.of(b"x"))
    return [
        messages.encode_request(r)
        for r in (
            messages.Find("a", document="sha256:" + "0" * 64),
            messages.Find("a", chain=[bytes(32)] * 3, model=bytes(32), dtype="bfloat16"),
            messages.GetManifest(cid),
            messages.Join(cid, me, True),
            messages.Have(cid),
            messages.GetChunk(cid),
            messages.GetPrefixIndex(7),
        )
    ]


@target("request", _requests)
def request(data: bytes) -> None:
    messages.decode_request(data)


def _responses() -> list[bytes]:
    me = messages.Provider("12D3KooW" + "a" * 44, ["/ip4/127.0.0.1/tcp/1"])
    found = messages.Found(str(Cid.of(b"x")), bytes(32), "bfloat16", 9, 9, me.peer, True, 1, b"envelope")
    reply = messages.FindReply("a", me.peer, [found], [me], 5, _heads()[:1], _audits()[:1])
    return [messages.encode_ok(reply), messages.encode_ok(messages.HaveReply(b"\x0f", [me]))]


@target("response", _responses)
def response(data: bytes) -> None:
    for kind in (messages.FindReply, messages.JoinReply, messages.HaveReply, messages.PrefixIndexReply, bytes):
        try:
            messages.decode_response(data, kind)
        except KvswapError:
            continue


def _announcements() -> list[bytes]:
    me = messages.Provider("12D3KooW" + "a" * 44, ["/ip4/127.0.0.1/tcp/1"])
    return [messages.encode_announce(messages.Announce(str(Cid.of(b"x")), "sha256:" + "0" * 64, me))]


@target("announcement", _announcements)
def announcement(data: bytes) -> None:
    heard = messages.decode_announce(data)
    PeerId.parse(heard.provider.peer)
    Cid.parse(heard.artifact)


@lru_cache(maxsize=1)
def _audits() -> list[bytes]:
    from kvswap.trust.audit import sign_audit
    from tests.support import key

    who = key(5)
    made = Audit(
        1, bytes(Cid.of(b"a")), str(who.peer_id), str(who.peer_id), 5, 99, 8, bytes(32), 1, "passed", "", [], 1
    )
    return [sign_audit(made, who).envelope]


@target("audit", lambda: _audits() + [wire.pack(wire.plain(read_audit(d).audit)) for d in _audits()])
def audit(data: bytes) -> None:
    try:
        wire.unpack(data, Audit)  # past the signature
    except KvswapError:
        pass
    read_audit(data)


@lru_cache(maxsize=1)
def _heads() -> list[bytes]:
    from kvswap.trust.status_record import make_status_record
    from tests.support import key

    cid = str(Cid.of(b"a"))
    return [make_status_record(key(5), 3, 1000, [cid], {cid: "why"}, key(6)).envelope]


@target("head", lambda: _heads() + [wire.pack(wire.plain(read_status_record(d).record)) for d in _heads()])
def head(data: bytes) -> None:
    try:
        wire.unpack(data, StatusRecord)
    except KvswapError:
        pass
    read_status_record(data)


def _chunks(codec: str) -> list[bytes]:
    from kvswap.codec import encode

    parts = [np.arange(2 * 16 * 8, dtype=np.uint16).reshape(2, 16, 8) % 64 + 0x3F00 for _ in range(2)]
    return [encode(parts, "bfloat16", codec)[1], bytes(64)]


def _decode(codec: str) -> Target:
    def run(data: bytes) -> None:
        parts = [np.zeros((2, 16, 8), np.uint16) for _ in range(2)]
        decode(codec, data, parts, "bfloat16")

    return run


for _codec in ("raw", "planes", "int8", "int8-channel"):
    target(f"codec-{_codec}", lambda codec=_codec: _chunks(codec))(_decode(_codec))


_DTYPES = ("bfloat16", "float16", "float32")


@lru_cache(maxsize=1)
def _coding() -> tuple[predictive.Predictor, list[np.ndarray]]:
    from tests.support import FULL, plain_predictor

    parts = [np.arange(2 * 16 * 8, dtype=np.uint16).reshape(2, 16, 8) % 64 + 0x3F00 for _ in range(4)]
    return plain_predictor((FULL, FULL)), parts


@lru_cache(maxsize=1)
def _predictive_chunks() -> list[bytes]:
    """A byte says of which dtype, and whether the layer before is known; a chunk follows."""
    from kvswap.codec.predictive.codec import encode

    predictor_, parts = _coding()
    out = []
    for number, dtype in enumerate(_DTYPES):
        given = [part.astype(np.uint32) << 16 for part in parts] if dtype == "float32" else parts
        out.append(bytes([number]) + encode(_context(predictor_, []), given, dtype))
        out.append(bytes([number + 4]) + encode(_context(predictor_, given[:2]), given[2:], dtype))
    return out


def _context(predictor_: predictive.Predictor, before: list[np.ndarray]) -> predictive.Context:
    return predictive.Context(predictor_, predictor_.stacks[0], len(before) // 2, before, 0)


@target("codec-predictive", _predictive_chunks)
def predictive_chunk(data: bytes) -> None:
    """By both forms, in C and in numpy: they agree on what is damaged, and on every bit of what is not."""
    from kvswap.codec.predictive import fast, plain
    from kvswap.codec.predictive.codec import decode as decode_chunk

    head, wire_bytes = (data[:1] or b"\0")[0], data[1:]
    dtype, second = _DTYPES[head % 4 % 3], bool(head & 4)
    kind = np.uint32 if dtype == "float32" else np.uint16
    predictor_, parts = _coding()
    before = [part.astype(np.uint32) << 16 if kind is np.uint32 else part for part in parts[:2]] if second else []
    found = []
    for engine in [plain, *([fast] if fast.AVAILABLE else [])]:
        out = [np.zeros((2, 16, 8), kind) for _ in range(2 if second else 4)]
        try:
            decode_chunk(_context(predictor_, before), wire_bytes, out, dtype, engine)
            found.append([part.tobytes() for part in out])
        except KvswapError:
            found.append([])
    assert all(other == found[0] for other in found)


@target("scan", lambda: [*_requests(), *_responses(), *_payloads(), *_predictors(), b"\xdf\0\0\0\1\xa1a\x90"])
def scanned(data: bytes) -> None:
    """Both forms of the pass before decoding say what msgpack's own parser says."""
    from tests.core.test_scan import agrees

    agrees(data)


@lru_cache(maxsize=1)
def _predictors() -> list[bytes]:
    from tests.support import FULL, plain_predictor

    return [predictive.dump(plain_predictor((FULL, FULL)))]


@target("predictor", _predictors)
def predictor(data: bytes) -> None:
    predictive.load(data)


@target("token", lambda: [Tokens().issue("12D3KooW" + "a" * 44).encode()])
def token(data: bytes) -> None:
    Tokens().check(data.decode("latin-1"))


@target("reference", lambda: [b"sha256:" + b"0" * 64, str(Cid.of(b"x")).encode(), b"12D3KooW" + b"a" * 44])
def reference(data: bytes) -> None:
    text = data.decode("latin-1")
    try:
        parse_reference(text)
    except KvswapError:
        pass
    PeerId.parse(text)


@target("catalogue", lambda: [bytes(range(64)), b""])
def catalogue(data: bytes) -> None:
    holds(data[: len(data) // 8 * 8], bytes(32))


@target("fingerprint", lambda: [bytes(80), bytes(range(80)) * 2])
def fingerprint(data: bytes) -> None:
    states = len(data) % 3 if len(data) >= 32 else 0
    at = len(data) - 16 * states
    whole: Any = data[: at // 64 * 64] + data[at:]
    apart(whole, whole, (4, states))
