"""`kvswap manifest check`: judge a manifest, status record or audit in a file; needs neither daemon nor network."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvswap.cli.output import Output, naming, secret_of, verb
from kvswap.core.errors import MalformedManifest
from kvswap.core.files import read_file
from kvswap.core.limits import LIMITS

if TYPE_CHECKING:
    from kvswap.core.ids import Cid
    from kvswap.trust import Group


@click.group("manifest", help="Judge a manifest file, a status record or an audit.")
def manifest_command() -> None:
    """Group the verbs of files that hold signed statements."""


@manifest_command.command(
    "check",
    help="Check FILE: 0 valid, 4 expired or not yet issued, 6 signature or digest, 7 malformed or another version.",
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--at", type=int, help="Unix time to judge its life at (default: now).")
@click.option(
    "--chunks",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Directory with chunk files named by CID: check and decode them as well.",
)
@click.option(
    "--group",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with the key of the group that a sealed manifest is for.",
)
@verb
def check(output: Output, file: Path, at: int | None, chunks: Path | None, group: Path | None) -> None:
    """Check a signed statement in a file, of whatever kind it is."""
    member = None
    if group is not None:
        with naming(group):
            member = _member(group)
    with naming(file):
        _check(output, file, int(time.time()) if at is None else at, chunks, member)


def _member(file: Path) -> Group:
    from kvswap.trust import Group

    return Group.from_text(secret_of(str(file), "a group's key", "kvswap group export NAME, where the group was made"))


def _check(output: Output, file: Path, now: int, chunks: Path | None, member: Group | None) -> None:
    from kvswap.api.machine import SignedFile
    from kvswap.core import wire
    from kvswap.trust import audit, hosting, status_record, verify_envelope
    from kvswap.trust.envelopes import kind_of
    from kvswap.trust.groups import keys_of

    data = read_file(file, LIMITS.manifest_bytes)
    if len(data) > LIMITS.manifest_bytes:
        raise MalformedManifest(f"{file} has over {LIMITS.manifest_bytes} bytes, which is the cap")
    kind = kind_of(data)
    if kind == status_record.KIND:
        record = status_record.read_status_record(data).record
        status_record.check_life(record, now)
        output.result(
            SignedFile(valid=True, status_record=wire.jsonable(wire.plain(record))),
            f"valid: status record {record.sequence} of {record.publisher}, {len(record.withdrawn)} withdrawn",
        )
        return
    if kind == audit.KIND:
        found = audit.read_audit(data).audit
        shown = wire.jsonable(wire.plain(found)) | {"artifact": str(found.cid), "positions": found.positions}
        output.result(
            SignedFile(valid=True, audit=shown),
            f"valid: V{found.level} of {found.cid} {found.verdict}, by {found.auditor}",
        )
        return
    if kind == hosting.OFFER:
        offer = hosting.read_offer(data).offer
        hosting.check_life(offer, now)
        shown = wire.jsonable(wire.plain(offer))
        output.result(SignedFile(valid=True, offer=shown), f"valid: {offer.host} offers {offer.label} ({offer.dtype})")
        return
    if kind == hosting.READ:
        read = hosting.read_receipt(data).read
        output.result(SignedFile(valid=True, receipt=read.to_json()), f"valid: read {read.number} of {read.host}")
        return
    statement = verify_envelope(data, now, keys_of([member] if member is not None else []))
    manifest = statement.manifest
    checked = 0
    if chunks is not None:
        from kvswap.artifact.assembly import load
        from kvswap.artifact.fingerprint import check_fingerprint
        from kvswap.artifact.tensors import verify_tensors

        def chunk(cid: Cid) -> bytes:
            return read_file(chunks / str(cid), LIMITS.chunk_frame_bytes)

        tensors = load(manifest, chunk, seal=statement.seal)
        verify_tensors(manifest, tensors)
        if (fingerprint := manifest.fingerprint) is not None:
            check_fingerprint(fingerprint, tensors, chunk(fingerprint.id), statement.seal)
        checked = len(manifest.chunks)
    output.result(
        SignedFile(valid=True, artifact=str(statement.artifact), chunks_checked=checked, manifest=manifest.to_json()),
        f"valid: {statement.artifact}\n  signed by {manifest.publisher}, {manifest.prefix.tokens} tokens, "
        f"{len(manifest.chunks)} chunks" + (f", {checked} checked" if checked else ""),
    )
