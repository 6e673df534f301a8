"""`kvswap verify`."""

from __future__ import annotations

import click

from kvswap.cli.output import Output, reference, verb
from kvswap.core.errors import IntegrityError, UsageError


@click.command("verify", help="Check REF in the store: signature, trust, chunks, tensors, probe.  Or --store.")
@click.argument("ref", required=False)
@click.option("--store", is_flag=True, help="Hash every file of the store; adopt, set aside, report.")
@verb
def verify_command(output: Output, ref: str | None, store: bool) -> None:
    if (ref is None) == (not store):
        raise UsageError("give a reference, or --store")
    report = output.client.verify(reference(ref)[0] if ref else None, store=store)
    output.result(report, lambda: "\n".join(f"{name:22} {value}" for name, value in report.items()))
    if store and not report["clean"]:
        raise IntegrityError(
            f"{report['quarantined']} wrong and {report['missing']} missing chunks; what was wrong is set aside",
            cause="the disk, or somebody, changed files",
            hint="kvswap fetch the incomplete artifacts again",
        )
