"""Writes `vectors/archives`: artifacts as one file, right and wrong, and `index.json` there.

Run from the repository's root:  python manifests/archive_vectors.py
Keys and tensors are seeded, so a run reproduces the committed files; a vector that was released is never changed.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kvswap.artifact.archive import END, file_name, header, manifest_name, pack, packed  # noqa: E402
from kvswap.artifact.layout import needed_files  # noqa: E402
from kvswap.core.ids import Cid  # noqa: E402
from tests.support import FULL, Ingested, group, key, make_artifact, seal_for  # noqa: E402

NOW = 1_760_000_000
AT = NOW + 100
OUT = ROOT / "manifests" / "vectors" / "archives"
SALT = hashlib.sha256(b"a salt for vectors").digest()
INDEX: list[dict[str, Any]] = []


def write(
    name: str, data: bytes, exit_code: int, why: str, of: Ingested | None = None, group: str | None = None
) -> None:
    """Keep an archive, with the exit code of importing it at `AT`."""
    (OUT / f"{name}.tar").write_bytes(data)
    entry: dict[str, Any] = {"file": f"{name}.tar", "at": AT, "exit": exit_code, "why": why}
    entry["sha256"] = hashlib.sha256(data).hexdigest()
    if of is not None:
        entry["artifact"] = of.id
    if group is not None:
        entry["group"] = group
    INDEX.append(entry)


def whole(made: Ingested, only: set[Cid] | None = None) -> bytes:
    """The archive of an artifact, its files in the manifest's order; `only`: these of them."""
    files = dict.fromkeys(file.id for file in made.manifest.files)
    kept = [(cid, made.chunks[cid]) for cid in files if only is None or cid in only]
    return b"".join(pack(made.statement.artifact, made.statement.envelope, kept))


def member(name: str, data: bytes = b"", **fields: Any) -> bytes:
    """A file as Python's tarfile writes it."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def valid(made: Ingested, sealed: Ingested) -> None:
    """What is imported."""
    write("plain", whole(made), 0, "as kvswap export writes it", made)
    write("sealed", whole(sealed), 0, "sealed for a group, whose key is given", sealed, "../vectors.group")
    files = made.manifest.files
    needed = {files[i].id for i in needed_files(made.manifest)}
    write("needed", whole(made, needed), 0, "only the files that a reader of the whole document needs", made)
    record = 20 * 512
    data = whole(made)
    write("filled", data + bytes(-len(data) % record), 0, "filled up to a record with zeros, as tar programs do", made)
    backwards = [*packed(manifest_name(made.statement.artifact), made.statement.envelope)]
    for cid in reversed(list(made.chunks)):
        backwards += packed(file_name(cid), made.chunks[cid])
    write("backwards", b"".join([*backwards, END]), 0, "the files in another order", made)
    gnu = io.BytesIO()
    with tarfile.open(fileobj=gnu, mode="w", format=tarfile.GNU_FORMAT) as tar:
        named = [(manifest_name(made.statement.artifact), made.statement.envelope)]
        for name, body in named + [(file_name(cid), made.chunks[cid]) for cid in made.chunks]:
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime, info.uname = len(body), 0o600, NOW, "ada"
            tar.addfile(info, io.BytesIO(body))
    write("gnu", gnu.getvalue(), 0, "by another program: times, owners and modes say nothing", made)


def hostile(made: Ingested, sealed: Ingested, other: Ingested) -> None:
    """What is refused."""
    data, artifact, envelope = whole(made), made.statement.artifact, made.statement.envelope
    first = b"".join(packed(manifest_name(artifact), envelope))
    cid = made.manifest.files[0].id
    name, chunk = file_name(cid), made.chunks[cid]
    rest = data[len(first) :]

    write("sealed-outsider", whole(sealed), 4, "sealed for a group, and no key is given")
    write("expired", whole(make_artifact(now=NOW - 90_000, tokens=9)), 4, "its artifact has expired")
    wrong = chunk[:-1] + bytes([chunk[-1] ^ 1])
    write("chunk-bit", data.replace(chunk, wrong, 1), 6, "one bit of a chunk is another")
    broken = bytearray(envelope)
    broken[-1] ^= 1
    write("signature-bit", b"".join([*packed(manifest_name(artifact), bytes(broken)), rest]), 6, "the signature is not")
    renamed = b"".join(packed(manifest_name(other.statement.artifact), envelope))
    write("renamed-manifest", renamed + rest, 6, "the manifest has the name of another artifact")
    for title, extra, why in (
        ("dotdot", member("chunks/../../x", b"x"), "a name leads out of the archive"),
        ("absolute", member("/etc/x", b"x"), "an absolute name"),
        ("symlink", member(name, type=tarfile.SYMTYPE, linkname="/etc/passwd"), "a symbolic link"),
        ("hardlink", member(name, type=tarfile.LNKTYPE, linkname="x"), "a hard link"),
        ("device", member(name, type=tarfile.CHRTYPE), "a device"),
        ("directory", member("chunks/", type=tarfile.DIRTYPE), "a directory"),
        ("sparse", member(name, type=tarfile.GNUTYPE_SPARSE), "a sparse file"),
        ("pax", member("x", b"13 path=../y\n", type=tarfile.XHDTYPE), "an extended header, which renames a file"),
        ("huge", header(name, 8**11 - 1), "a file of 8 GiB, of which nothing follows"),
        ("length", header(name, len(chunk) + 1), "a chunk that is longer than its manifest says"),
        ("stranger", b"".join(packed(file_name(Cid.of(b"x")), b"x")), "a file that the manifest does not name"),
        ("second-manifest", first, "a second manifest"),
    ):
        write(title, first + extra + rest, 7, why)
    write("twice", first + b"".join(packed(name, chunk)) + rest, 7, "a file twice")
    write("manifest-last", rest[: -len(END)] + first + END, 7, "the manifest is not the first file")
    write("missing-chunk", first + rest[len(b"".join(packed(name, chunk))) :], 7, "a chunk is missing")
    write("no-end", data[: -len(END)], 7, "cut off before its end")
    write("cut-off", data[: len(data) // 2 + 7], 7, "cut off in the middle")
    write("after-end", data + first, 7, "something after its end")
    write("gzip", bytes.fromhex("1f8b08000000000002ff") + bytes(502), 7, "compressed")
    write("empty", END, 7, "no file at all")


def main() -> None:
    """Write all of them."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    made = make_artifact(now=NOW, tokens=21)
    sealed = seal_for(make_artifact(now=NOW, tokens=9, specs=(FULL,)), group("vectors"), salt=SALT)
    other = make_artifact(key(2), now=NOW, tokens=9, seed=2)
    valid(made, sealed)
    hostile(made, sealed, other)
    (OUT / "index.json").write_text(json.dumps(INDEX, indent=1) + "\n")
    print(len(INDEX))


if __name__ == "__main__":
    main()
