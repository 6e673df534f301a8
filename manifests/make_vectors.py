"""Writes `vectors/valid` and `vectors/hostile`, and `vectors/index.json` that says how each is judged.

Run from the repository's root:  python manifests/make_vectors.py
Keys and tensors are seeded, so a run reproduces the committed files; a vector that was released is
never changed, only added to.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard
from msgspec import structs

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kvswap.artifact import dsse  # noqa: E402
from kvswap.artifact.manifest import Divergence, FileRef, Probe  # noqa: E402
from kvswap.artifact.specs import LayerSpec  # noqa: E402
from kvswap.codec import planes  # noqa: E402
from kvswap.core import wire  # noqa: E402
from kvswap.core.ids import Cid, blake3_digest  # noqa: E402
from manifests.llama_vectors import llama_vectors  # noqa: E402
from manifests.named_vectors import named_vectors  # noqa: E402
from manifests.sealed_vectors import sealed_vectors  # noqa: E402
from manifests.stream_vectors import stream_vectors  # noqa: E402
from tests.support import FULL, SLIDING, Ingested, key, make_artifact  # noqa: E402

NOW = 1_760_000_000
AT = NOW + 100
OUT = ROOT / "manifests" / "vectors"
INDEX: list[dict[str, Any]] = []
WIDE = LayerSpec.key_value("sliding", 1, 4, 4, 19)


def write(
    folder: str,
    name: str,
    data: bytes,
    exit_code: int,
    why: str,
    chunks: dict[Cid, bytes] | None = None,
    kind: str = "manifest",
    group: str | None = None,
) -> None:
    path = OUT / folder / f"{name}.kvm"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    entry: dict[str, Any] = {"file": f"{folder}/{name}.kvm", "at": AT, "exit": exit_code, "why": why}
    if kind != "manifest":
        entry["kind"] = kind
    if group is not None:
        entry["group"] = group
    if chunks is not None:
        directory = OUT / folder / f"{name}.chunks"
        directory.mkdir()
        for cid, body in chunks.items():
            (directory / str(cid)).write_bytes(body)
        entry["chunks"] = f"{folder}/{name}.chunks"
    INDEX.append(entry)


def valid() -> None:
    def good(name: str, why: str, with_chunks: bool = False, **options: Any) -> None:
        made = make_artifact(now=NOW, **options)
        write("valid", name, made.statement.envelope, 0, why, made.chunks if with_chunks else None)

    for dtype in ("bfloat16", "float16", "float32"):
        for codec in ("raw", "planes"):
            good(f"{dtype}-{codec}", f"{dtype} chunks in codec {codec}", True, dtype=dtype, codec=codec, tokens=40)
    good("one-token", "a document of one token", True, tokens=1)
    good("predictive", "chunks coded against a predictor, which is a file beside them", True, **PREDICTIVE)
    good("int8", "an inexact artifact, which says so", True, **LOSSY_CODECS)
    good("whole-blocks", "the last block is full", True, tokens=16)
    good(
        "sliding",
        "layers of three kinds; windows smaller and larger than a block",
        True,
        tokens=61,
        specs=(FULL, SLIDING, WIDE, FULL),
    )
    good("one-block", "a block larger than the document", tokens=5, block_tokens=512)
    good("private", "a private document: no reference to its text", document=None)
    good("tolerance", "a claim weaker than bitwise", numerics=with_claim("tolerance"))
    good("other-publisher", "signed by another key", signer=key(7))
    engine = Probe(question=[], tokens=[], logits=blake3_digest(b""))
    good("engine", "made by an engine: no document, and no probe", document=None, probe=engine, **of_engine())
    life = make_artifact(now=NOW).manifest.life
    good(
        "supersedes",
        "replaces an earlier artifact",
        life=type(life)(life.issued, life.expires, life.sequence + 1, bytes(Cid.of(b"earlier"))),
    )
    made = make_artifact(now=NOW)
    tree = wire.parse(made.manifest.encode())
    write(
        "valid",
        "extension",
        sealed({**tree, "note": "ignored", "extensions": ["note"]}),
        0,
        "a declared extension is ignored by readers that do not know it",
    )


def of_engine() -> dict[str, Any]:
    return {"numerics": structs.replace(with_claim("tolerance"), schedule="vllm 0.32.0")}


def with_claim(claim: str) -> Any:
    numerics = make_artifact(now=NOW).manifest.numerics
    return type(numerics)(**{n: getattr(numerics, n) for n in numerics.__struct_fields__} | {"claim": claim})


def sealed(tree: Any, number: int = 1) -> bytes:
    """Sign a changed payload: a publisher who lies, not a courier."""
    payload = tree if isinstance(tree, bytes) else wire.pack(tree)
    signer = key(number)
    return dsse.seal(payload, str(signer.peer_id), signer.sign)


PREDICTIVE: dict[str, Any] = {"tokens": 300, "block_tokens": 256, "specs": (FULL, FULL), "codec": "predictive"}


LOSSY_CODECS: dict[str, Any] = {
    "tokens": 40,
    "codec": "int8",
    "divergence": Divergence(steps=32, equal=16, first=9, kl=1234),
}


def divergence_liars() -> None:
    made = make_artifact(now=NOW, **LOSSY_CODECS)
    lossless = make_artifact(now=NOW)

    def lie(name: str, why: str, change: dict[str, Any], of: Any = made) -> None:
        tree = {k: v for k, v in (wire.parse(of.manifest.encode()) | change).items() if v != "absent"}
        write("hostile", name, sealed(tree), 7, why)

    told = wire.plain(LOSSY_CODECS["divergence"])
    lie("divergence-missing", "inexact chunks that nobody owns up to", {"divergence": "absent"})
    lie("divergence-null", "a divergence that is null", {"divergence": None})
    lie("divergence-unused", "exact chunks with a divergence", {"divergence": told}, lossless)
    lie("divergence-over", "more equal tokens than there are", {"divergence": told | {"equal": 33}})
    lie("divergence-steps", "a divergence over more tokens than the cap", {"divergence": told | {"steps": 65}})


def predictor_liars() -> None:
    made = make_artifact(now=NOW, **PREDICTIVE)
    cid = made.manifest.predictor.id  # type: ignore[union-attr]

    def lie(
        name: str, why: str, change: Callable[[Any], Any], chunks: dict[Cid, bytes] | None = None, exit_code: int = 7
    ) -> None:
        tree = wire.parse(made.manifest.encode())
        change(tree)
        write("hostile", name, sealed(tree), exit_code, why, chunks)

    def refer(data: bytes) -> Callable[[Any], Any]:
        return lambda tree: tree["predictor"].update(cid=bytes(Cid.of(data)), length=len(data))

    lie("predictor-missing", "predictive chunks and no predictor", lambda tree: tree.pop("predictor"))
    lie("predictor-null", "a predictor that is null", lambda tree: tree.update(predictor=None))
    lie("predictor-length", "a predictor of 1 TiB", lambda tree: tree["predictor"].update(length=1 << 40))
    lie("predictor-cid", "a predictor without a digest", lambda tree: tree["predictor"].update(cid=bytes(36)))
    plain = make_artifact(now=NOW)
    tree = wire.parse(plain.manifest.encode()) | {"predictor": {"cid": bytes(cid), "length": 5}}
    write("hostile", "predictor-unused", sealed(tree), 7, "a predictor that no chunk is coded against")
    data = made.chunks[cid]
    lie(
        "predictor-changed", "a file of another digest", lambda tree: None, {**made.chunks, cid: data[:-1] + b"\xff"}, 6
    )
    for name, why, bad in (
        ("predictor-noise", "a signed predictor that is none", b"\x80" + bytes(100)),
        ("predictor-cut", "a signed predictor that ends early", data[:-1]),
    ):
        lie(name, why, refer(bad), {**made.chunks, Cid.of(bad): bad}, 6)
    other = made.chunks[made.manifest.chunks[0].id]
    damaged = other[:700] + bytes([other[700] ^ 1]) + other[701:]

    def swap(tree: Any) -> None:
        tree["chunks"][0] |= {"cid": bytes(Cid.of(damaged)), "length": len(damaged)}

    lie(
        "predictive-damaged",
        "a predictive chunk with a bit changed, well signed",
        swap,
        {**made.chunks, Cid.of(damaged): damaged},
        6,
    )


def hostile() -> None:
    made = make_artifact(now=NOW, tokens=40)
    envelope = made.statement.envelope
    payload = made.manifest.encode()

    def tree() -> Any:
        return wire.parse(payload)

    def lie(name: str, why: str, change: Callable[[Any], Any], exit_code: int = 7) -> None:
        value = tree()
        changed = change(value)
        write("hostile", name, sealed(value if changed is None else changed), exit_code, why)

    def put(*path: Any) -> Callable[[Any], Callable[[Any], None]]:
        def to(value: Any) -> Callable[[Any], None]:
            def change(root: Any) -> None:
                for step in path[:-1]:
                    root = root[step]
                root[path[-1]] = value

            return change

        return to

    outer = wire.parse(envelope)
    signature = bytearray(outer["signatures"][0]["sig"])
    signature[5] ^= 1

    def outside(name: str, why: str, exit_code: int, **changes: Any) -> None:
        write("hostile", name, wire.pack({**outer, **changes}), exit_code, why)

    one = outer["signatures"][0]
    # -- couriers: the envelope was changed on the way
    outside("signature-bit", "one bit of the signature is flipped", 6, signatures=[{**one, "sig": bytes(signature)}])
    outside("signature-short", "the signature has 63 bytes", 6, signatures=[{**one, "sig": one["sig"][:63]}])
    changed = bytearray(payload)
    changed[-3] ^= 1
    outside("payload-bit", "one bit of the payload is flipped", 6, payload=bytes(changed))
    outside("keyid-other", "keyid names another key than signed", 6, signatures=[{**one, "keyid": str(key(2).peer_id)}])
    outside("keyid-path", "keyid is a path", 7, signatures=[{**one, "keyid": "../../node.key"}])
    outside("signatures-none", "nobody signed", 7, signatures=[])
    outside("signatures-two", "v1 has one signature", 7, signatures=[one, one])
    outside("payload-type", "a statement of another type", 7, payload_type="application/vnd.kvswap.offer.v1+msgpack")
    outside("envelope-extra", "an unknown key in the envelope", 7, comment="hello")
    write("hostile", "empty", b"", 7, "an empty file")
    write("hostile", "truncated", envelope[: len(envelope) // 2], 7, "half of the file")
    write("hostile", "trailing", envelope + b"\0", 7, "a byte after the end")
    write("hostile", "text", b'{"payload": "this is JSON"}', 7, "JSON instead of msgpack")
    write(
        "hostile",
        "envelope-duplicate",
        b"\x84" + envelope[1:] + b"\xa7payload\xc4\x00",
        7,
        "a key twice in the envelope",
    )
    write("hostile", "huge-array", b"\x93" + b"\xdd\xff\xff\xff\xff", 7, "an array that announces 2^32-1 elements")
    write("hostile", "huge-bytes", b"\x81\xa7payload\xc6\xff\xff\xff\xff", 7, "4 GiB of bytes announced")
    write("hostile", "deep", b"\x91" * 100_000, 7, "nesting 100,000 deep")
    small = (1).to_bytes(32, "little")
    from kvswap.core.ids import PeerId

    forged = {**tree(), "publisher": str(PeerId(small))}
    write(
        "hostile",
        "small-order-key",
        wire.pack(
            {
                "payload_type": dsse.PAYLOAD_TYPE,
                "payload": wire.pack(forged),
                "signatures": [{"keyid": str(PeerId(small)), "sig": small + bytes(32)}],
            }
        ),
        6,
        "a key of small order, under which one signature fits any message",
    )
    # -- liars: correctly signed, and wrong
    lie("publisher-other", "signed by one, published by another", put("publisher")(str(key(2).peer_id)), 6)
    lie("publisher-path", "the publisher is a path", put("publisher")("../../../etc/passwd"))
    write("hostile", "payload-truncated", sealed(payload[:-20]), 7, "a truncated payload, well signed")
    write(
        "hostile",
        "payload-duplicate",
        sealed(bytes([payload[0] + 1]) + payload[1:] + b"\xa7version\x01"),
        7,
        "a key twice",
    )
    write(
        "hostile", "payload-extension-type", sealed(b"\x81\xa7version\xc7\x04\x01abcd"), 7, "a msgpack extension type"
    )
    lie("version", "a version of the future", put("version")(2))
    lie("unknown-field", "an undeclared field", put("price")(1))
    lie("extension-shadow", "an extension that takes a field's name", put("extensions")(["model"]))
    lie("missing-field", "no numerics", lambda root: {k: v for k, v in root.items() if k != "numerics"})
    lie("nan", "NaN where a count belongs", put("prefix", "tokens")(float("nan")))
    lie("claim-nan", "NaN as a claim", put("numerics", "claim")(float("nan")))
    lie("claim-unknown", "a claim that does not exist", put("numerics", "claim")("exact, trust me"))
    lie("float-count", "a count as a float", put("prefix", "tokens")(40.0))
    lie("negative", "a negative length", put("chunks", 0, "length")(-1))
    lie("start", "a prefix that does not start at position 0", put("prefix", "start")(8))
    lie("tokens-huge", "2^53 tokens", put("prefix", "tokens")(2**53))
    lie("block-huge", "a block over the cap", put("prefix", "block_tokens")(1 << 30))
    lie("chain-short", "fewer chain digests than blocks", lambda root: root["prefix"]["chain"].pop() and None)
    lie("digest-short", "a digest of 31 bytes", put("prefix", "token_digest")(b"\0" * 31))
    lie(
        "digest-text",
        "a digest as base64 text",
        put("prefix", "token_digest")("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
    )
    lie("dtype", "a dtype that is not exchanged", put("layout", "dtype")("int8"))
    lie("dtype-float32", "another dtype than the raw lengths say", put("layout", "dtype")("float32"))
    lie("axes", "another axis order", put("layout", "axes")("layer,kv,token,head,dim"))
    lie("shape", "one more head than the raw lengths say", put("layout", "layers", 0, "heads")(3))
    lie("dimension-huge", "a head dimension of 2^40", put("layout", "layers", 0, "k_dim")(2**40))
    lie("kind", "an unknown layer kind", put("layout", "layers", 0, "kind")("linear"))
    lie("window-missing", "a sliding layer without a window", put("layout", "layers", 2, "window")(None))
    lie("window-full", "a full layer with a window", put("layout", "layers", 0, "window")(4))
    lie("runs-twice", "a layer in two runs", put("layout", "runs")([[0, 1], [1, 2]]))
    lie("runs-mixed", "a run of two kinds", put("layout", "runs")([[0, 1, 2]]))
    lie("runs-beyond", "a run of a layer that does not exist", put("layout", "runs")([[0, 1], [99]]))
    lie("tensors-short", "a layer without tensor digests", lambda root: root["tensors"].pop() and None)
    lie("chunks-none", "no chunks", put("chunks")([]))
    lie("chunks-short", "one chunk missing", lambda root: root["chunks"].pop() and None)
    lie("chunks-extra", "one chunk too many", lambda root: root["chunks"].append(root["chunks"][-1]))
    lie("chunks-order", "two chunks in each other's place", lambda root: root["chunks"].reverse())
    lie("chunk-raw-length", "a raw length that is not the shape's product", put("chunks", 0, "raw_length")(2**40))
    lie("chunk-expanding", "more wire bytes than raw bytes", put("chunks", 0, "length")(2**30))
    lie("chunk-raw-codec", "codec raw with another length", put("chunks", 0, "codec")("raw"))
    lie("cid-path", "a path where a CID belongs", put("chunks", 0, "cid")(b"../../../../etc/passwd".ljust(36, b"/")))
    lie("cid-text", "a CID as text", put("chunks", 0, "cid")("bafkr4i"))
    lie("cid-codec", "a CID of another codec", put("chunks", 0, "cid")(b"\x01\x70\x1e\x20" + bytes(32)))
    lie("life-order", "expires before it is issued", put("life", "expires")(NOW - 1))
    lie("life-long", "a life of 100 years", put("life", "expires")(NOW + 100 * 365 * 86_400))
    write("hostile", "expired", make_artifact(now=NOW - 10**6, lifetime=1000).statement.envelope, 4, "expired")
    write("hostile", "future", make_artifact(now=NOW + 10**6).statement.envelope, 4, "issued in the future")
    chunk_liars(made)
    predictor_liars()
    divergence_liars()
    fingerprints()
    statements()
    hosting_statements()


def fingerprints() -> None:
    """A fingerprint sums float32 in a fixed order over few numbers: its bytes are the same everywhere."""
    from kvswap.artifact.assembly import load
    from kvswap.artifact.fingerprint import fingerprint

    shape: dict[str, Any] = {"specs": (FULL, FULL), "tokens": 70, "block_tokens": 32}
    plain = make_artifact(now=NOW, **shape)
    right = fingerprint(load(plain.manifest, plain.chunks.__getitem__))

    def marked(name: str, why: str, exit_code: int, chunks: dict[Cid, bytes] | None, **changes: Any) -> None:
        file = {"cid": bytes(Cid.of(right)), "length": len(right)} | changes
        tree = wire.parse(plain.manifest.encode()) | {"fingerprint": file}
        write("hostile", name, sealed(tree), exit_code, why, chunks)

    with_it = {**plain.chunks, Cid.of(right): right}
    good = make_artifact(now=NOW, fingerprint=FileRef(bytes(Cid.of(right)), len(right)), **shape)
    why = "with a fingerprint, which is a file beside the chunks"
    write("valid", "fingerprint", good.statement.envelope, 0, why, with_it)
    marked("fingerprint-length", "a fingerprint that is longer than the layout says", 7, None, length=len(right) + 16)
    marked("fingerprint-cid", "a fingerprint without a digest", 7, None, cid=bytes(36))
    other = bytes(len(right))
    sent_invalid_data = {**plain.chunks, Cid.of(other): other}
    marked("fingerprint-other", "a signed fingerprint of other tensors", 6, sent_invalid_data, cid=bytes(Cid.of(other)))
    tree = wire.parse(plain.manifest.encode()) | {"fingerprint": None}
    write("hostile", "fingerprint-null", sealed(tree), 7, "a fingerprint that is null")


def statements() -> None:
    """Head records and audits."""
    from kvswap.trust import audit, status_record
    from kvswap.trust.envelopes import sign

    signer, auditor = key(), key(5)
    artifact = str(Cid.of(b"an artifact"))
    made = status_record.make_status_record(
        signer, 7, NOW, [artifact], {str(Cid.of(b"withdrawn")): "a typing error"}, key(6)
    )
    write("valid", "head", made.envelope, 0, "a head record with a withdrawal and a successor", kind="head")
    told = wire.plain(made.record)

    def headed(name: str, why: str, exit_code: int, by: Any = signer, **changes: Any) -> None:
        write("hostile", name, sign(wire.pack(told | changes), by, status_record.KIND), exit_code, why, kind="head")

    later = sign(wire.pack(told | {"note": ""}), signer, status_record.KIND)
    write("valid", "head-unknown", later, 0, "a head record with a field of tomorrow, which is skipped", kind="head")
    headed("head-expired", "a head record of last week", 4, issued=NOW - 700_000, expires=NOW - 600_000)
    headed("head-future", "a head record of tomorrow", 4, issued=NOW + 80_000, expires=NOW + 90_000)
    headed("head-long", "a head record that lives for a week", 7, expires=NOW + 604_800)
    headed("head-version", "a head record of version 2", 7, version=2)
    headed("head-signer", "somebody signs for another publisher", 6, by=key(9))
    headed("head-successor", "a successor that did not sign", 6, successor=told["successor"] | {"sig": bytes(64)})
    headed("head-withdrawn", "a withdrawal of what is no CID", 7, withdrawn=[{"artifact": bytes(36), "why": ""}])
    fields = {
        "version": 1,
        "artifact": bytes(Cid.of(b"an artifact")),
        "publisher": str(signer.peer_id),
        "auditor": str(auditor.peer_id),
        "level": 5,
        "tokens": 1024,
        "samples": 32,
        "seed": bytes(range(32)),
        "worst": 900_000,
        "verdict": "passed",
        "why": "",
        "environment": ["bfloat16", "cpu"],
        "issued": NOW,
    }

    def audited(name: str, why: str, exit_code: int, by: Any = auditor, kind: str = audit.KIND, **changes: Any) -> None:
        folder = "valid" if exit_code == 0 else "hostile"
        write(folder, name, sign(wire.pack(fields | changes), by, kind), exit_code, why, kind="audit")

    audited("audit", "an audit that found nothing wrong", 0)
    audited("audit-failed", "an audit that found something wrong", 0, verdict="failed")
    ruled = [*fields["environment"], "rules 2"]
    audited("audit-rules", "an audit that names the rules it was made by", 0, verdict="failed", environment=ruled)
    audited("audit-signer", "somebody signs for another auditor", 6, by=signer)
    audited("audit-verdict", "a verdict that is none", 7, verdict="perhaps")
    audited("audit-level", "an audit of the probe, which proves nothing", 7, level=4)
    audited("audit-samples", "more samples than the cap", 7, samples=1 << 40)
    audited("audit-artifact", "an audit of what is no CID", 7, artifact=bytes(36))
    audited("audit-type", "an audit in a manifest's envelope", 7, kind=dsse.PAYLOAD_TYPE)


def hosting_statements() -> None:
    """Offers and reads of a host."""
    from kvswap.trust import hosting
    from kvswap.trust.envelopes import sign

    host = key(8)
    tariff = hosting.Tariff.of_dollars(0.03, 0.3, 0.6)
    made = hosting.Offer(
        version=1,
        host=str(host.peer_id),
        model=bytes(range(32)),
        label="smollm2-135m",
        dtype="bfloat16",
        tariff=tariff,
        issued=NOW,
        expires=NOW + 3_600,
    )
    offer = hosting.sign_offer(made, host)
    read = hosting.Receipt(
        version=1,
        host=str(host.peer_id),
        number=1,
        previous=hosting.NOTHING,
        client="alice",
        document=bytes(range(32)),
        model=bytes(range(32)),
        offer=offer.digest,
        read=3_774,
        prefilled=20,
        made=64,
        picodollars=tariff.picodollars(3_774, 20, 64),
        ended=NOW,
    )

    def told(kind: str, name: str, why: str, exit_code: int, by: Any = host, **changes: Any) -> None:
        fields, form = (made, hosting.OFFER) if kind == "offer" else (read, hosting.READ)
        folder = "valid" if exit_code == 0 else "hostile"
        data = sign(wire.pack(wire.plain(fields) | changes), by, form)
        write(folder, name, data, exit_code, why, kind=kind)

    told("offer", "offer", "a host's offer", 0)
    told("offer", "offer-expired", "an offer of yesterday", 4, issued=NOW - 90_000, expires=NOW - 86_400)
    told("offer", "offer-future", "an offer of tomorrow", 4, issued=NOW + 86_400, expires=NOW + 90_000)
    told("offer", "offer-backwards", "an offer that ends before it begins", 7, expires=NOW)
    told("offer", "offer-version", "an offer of version 2", 7, version=2)
    told("offer", "offer-price", "a price below nothing", 7, tariff={"read": -1, "prefill": 0, "make": 0})
    told("offer", "offer-float", "a price that is no whole number", 7, tariff={"read": 0.5, "prefill": 0, "make": 0})
    told("offer", "offer-signer", "somebody signs for another host", 6, by=key(9))
    told("read", "read", "the record of a read", 0)
    told("read", "read-plain", "of a read without a document", 0, document=None)
    told("read", "read-signer", "somebody signs for another host", 6, by=key(9))
    told("read", "read-negative", "tokens below nothing", 7, made=-1)
    told("read", "read-unknown", "a record with a field of tomorrow", 7, note="")
    told("read", "read-document", "a digest that is none", 7, document=b"short")


def chunk_liars(made: Ingested) -> None:
    first, second = made.manifest.chunks[:2]
    good = made.chunks

    def bad(name: str, why: str, chunks: dict[Cid, bytes], exit_code: int = 6) -> None:
        write("hostile", name, made.statement.envelope, exit_code, why, chunks)

    bad("chunk-swapped", "one chunk's bytes under another's name", {**good, first.id: good[second.id]})
    bad(
        "chunk-bit",
        "one bit of a chunk is flipped",
        {**good, first.id: bytes([good[first.id][0] ^ 1]) + good[first.id][1:]},
    )
    bad("chunk-cut", "a chunk is one byte short", {**good, first.id: good[first.id][:-1]})
    bad("chunk-long", "a chunk is one byte long", {**good, first.id: good[first.id] + b"\0"})

    def signed(name: str, why: str, chunk: int, wire_bytes: bytes, **changes: Any) -> None:
        tree = wire.parse(made.manifest.encode())
        tree["chunks"][chunk] |= {"cid": bytes(Cid.of(wire_bytes)), "length": len(wire_bytes), **changes}
        chunks = {**good, Cid.of(wire_bytes): wire_bytes}
        exit_code = 7 if changes.get("codec") else 6
        write("hostile", name, sealed(tree), exit_code, why, chunks)

    body = good[first.id]
    version, width, flags, zero, channels, tokens, length = planes._HEADER.unpack_from(body)
    start = planes._HEADER.size + 2 * channels
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(4 << 20))
    header = planes._HEADER.pack(version, width, flags, zero, channels, tokens, len(bomb))
    signed(
        "chunk-bomb",
        "a zstd frame that declares 4 MiB in a chunk of under 2 KiB, well signed",
        0,
        header + body[planes._HEADER.size : start] + bomb + body[start + length :],
    )
    order = bytearray(body)
    order[planes._HEADER.size : start] = bytes(start - planes._HEADER.size)
    signed("chunk-order", "a channel order that is no permutation", 0, bytes(order))
    signed("chunk-codec", "a codec that does not exist", 0, body, codec="pickle")
    signed("chunk-raw-digest", "decodes to other bytes than signed", 0, body, raw=bytes(32))
    tree = wire.parse(made.manifest.encode())
    tree["tensors"][1]["v"] = bytes(32)
    write("hostile", "tensor-digest", sealed(tree), 6, "a layer's tensor digest is wrong", good)


if __name__ == "__main__":
    for folder in ("valid", "hostile"):
        shutil.rmtree(OUT / folder, ignore_errors=True)
    valid()
    hostile()
    sealed_vectors(OUT, write)
    named_vectors(write, sealed, NOW)
    llama_vectors(write, sealed, NOW)
    stream_vectors(write, sealed, NOW)
    (OUT / "index.json").write_text(json.dumps(INDEX, indent=1) + "\n")
    counts = {f: sum(e["file"].startswith(f) for e in INDEX) for f in ("valid", "hostile")}
    print(counts)
