"""The vectors of artifacts that are sealed for a group; see `make_vectors.py`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from kvswap.artifact import dsse, sealing
from kvswap.artifact.manifest import FileRef
from kvswap.core import wire
from kvswap.core.ids import Cid
from tests.support import FULL, Ingested, group, key, make_artifact, seal_for

NOW = 1_760_000_000
SALT = hashlib.sha256(b"a salt for vectors").digest()


def sealed_vectors(out: Path, write: Callable[..., None]) -> None:
    """Of one group, whose key is among the vectors."""
    from kvswap.artifact.assembly import load
    from kvswap.artifact.fingerprint import fingerprint

    members, others = group("vectors"), group("others", 2)
    for readers in (members, others):
        (out / f"{readers.name}.group").write_text(readers.to_text() + "\n")
    ours, theirs = f"{members.name}.group", f"{others.name}.group"
    plain = make_artifact(now=NOW, tokens=40)
    made = seal_for(plain, members, salt=SALT)

    def good(name: str, why: str, of: Ingested, chunks: bool = True) -> None:
        write("valid", name, of.statement.envelope, 0, why, of.chunks if chunks else None, group=ours)

    def bad(name: str, why: str, exit_code: int, envelope: bytes, *, by: str | None = ours, **more: Any) -> None:
        write("hostile", name, envelope, exit_code, why, group=by, **more)

    good("sealed", "sealed for a group, whose key is given", made)
    good(
        "sealed-private",
        "sealed, and without a reference to its text",
        seal_for(make_artifact(now=NOW, document=None), members, salt=SALT),
    )
    raw = make_artifact(now=NOW, tokens=9, codec="raw", dtype="float32")
    good("sealed-raw", "raw chunks: 16 bytes longer when sealed", seal_for(raw, members, salt=SALT))
    predicted = make_artifact(now=NOW, tokens=300, block_tokens=256, specs=(FULL, FULL), codec="predictive")
    good("sealed-predictive", "the predictor is sealed with the chunks", seal_for(predicted, members, salt=SALT))
    marks = make_artifact(now=NOW, tokens=70, block_tokens=64, specs=(FULL, FULL))
    data = fingerprint(load(marks.manifest, marks.chunks.__getitem__))
    file = FileRef(bytes(Cid.of(data)), len(data))
    marked = make_artifact(now=NOW, tokens=70, block_tokens=64, specs=(FULL, FULL), fingerprint=file)
    marked.chunks[Cid.of(data)] = data
    good("sealed-fingerprint", "and so is the fingerprint", seal_for(marked, members, salt=SALT))

    bad("sealed-outsider", "of a group whose key is not given", 4, made.statement.envelope, by=None)
    bad("sealed-others", "of a group, and the key of another is given", 4, made.statement.envelope, by=theirs)
    bad("sealed-signature", "the signature is another's", 6, signed(made, number=1, by=key(9)))
    bad("sealed-publisher", "somebody signs what another published for the group", 6, signed(made, number=9))
    payload = wire.parse(dsse.open_envelope(made.statement.envelope, sealing.KIND).payload)

    def changed(name: str, why: str, exit_code: int, **fields: Any) -> None:
        bad(name, why, exit_code, of_payload(wire.pack(payload | fields)))

    flipped = bytes([payload["body"][0] ^ 1]) + payload["body"][1:]
    changed("sealed-bit", "one bit of what is sealed is flipped, and well signed", 6, body=flipped)
    changed("sealed-empty", "nothing is sealed", 6, body=b"")
    changed("sealed-version", "version 2", 7, version=2)
    changed("sealed-unknown", "a field of tomorrow", 7, note="")
    changed("sealed-salt", "a salt that is too short", 7, salt=SALT[:-1])
    other = hashlib.sha256(b"another salt").digest()
    changed("sealed-resalted", "the mark is ours, what is sealed is not", 6, salt=other, mark=members.tag(other))
    inner = members.seal(SALT)
    no_manifest = inner.close(sealing.MANIFEST, wire.pack({"version": 1}))
    changed("sealed-malformed", "what is sealed is no manifest", 7, body=no_manifest)
    unsealed = inner.close(sealing.MANIFEST, raw.manifest.encode())
    changed("sealed-lengths", "files as long as their codec made them: they are not sealed", 7, body=unsealed)
    as_manifest = dsse.seal(wire.pack(payload), str(key().peer_id), key().sign)
    bad("sealed-type", "what is sealed in a manifest's envelope", 7, as_manifest)
    manifest = dsse.seal(plain.manifest.encode(), str(key().peer_id), key().sign, sealing.KIND)
    bad("sealed-plain", "a manifest in the envelope of what is sealed", 7, manifest)

    chunks = list(made.manifest.chunks)
    first = chunks[0]
    cut = {**made.chunks, first.id: made.chunks[first.id][:-1]}
    bad("sealed-chunk-cut", "a chunk is one byte short", 6, made.statement.envelope, chunks=cut)
    other = next(ref for ref in chunks[1:] if ref.run == first.run)
    chunks[0] = msgspec.structs.replace(first, cid=other.cid, length=other.length)
    moved = seal_for(plain, members, salt=SALT, chunks=chunks)
    bad("sealed-moved", "a chunk that was sealed for another place", 6, moved.statement.envelope, chunks=made.chunks)


def signed(made: Ingested, number: int, by: Any = None) -> bytes:
    """The payload as it is, in the name of a key, with a signature by that or another."""
    name = key(number)
    payload = dsse.open_envelope(made.statement.envelope, sealing.KIND).payload
    return dsse.seal(payload, str(name.peer_id), (by or name).sign, sealing.KIND)


def of_payload(payload: bytes) -> bytes:
    return dsse.seal(payload, str(key().peer_id), key().sign, sealing.KIND)
