"""`kvswap trust ls|add|rm`."""

from __future__ import annotations

import click

from kvswap.cli.output import Output, verb


@click.group("trust", help="Publishers whose artifacts this node uses.  Its own are always trusted.")
def trust_command() -> None:
    pass


@trust_command.command("ls", help="List trusted publishers.")
@verb
def ls(output: Output) -> None:
    found = output.client.trust_ls()
    rows = [(p["peer"], p["how"], p["label"]) for p in found["publishers"]]
    rows += [(p["peer"], "CAUGHT", p["why"]) for p in found["distrusted"]]
    rows += [
        (p["peer"], "lifted", f"caught by older rules, judged again when used: {p['why']}") for p in found["lifted"]
    ]
    output.result(found, lambda: output.table(("PUBLISHER", "HOW", "LABEL"), [(found["own"], "own", ""), *rows]))


@trust_command.command("audits", help="What verifying found, here or by auditors that are trusted.")
@click.argument("peerid", required=False)
@verb
def audits(output: Output, peerid: str | None) -> None:
    found = output.client.audits(peerid)
    rows = [
        (
            "void" if a["void"] else a["verdict"],
            a["step"],
            f"{a['samples']}/{a['tokens']}",
            f"{a['worst']:.2f}",
            a["artifact"],
            a["auditor"],
            a["why"],
        )
        for a in found
    ]
    headers = ("VERDICT", "STEP", "POSITIONS", "WORST", "ARTIFACT", "AUDITOR", "WHY")
    output.result({"audits": found}, lambda: output.table(headers, rows))


@trust_command.command("add", help="Trust the publisher PEERID from now on.")
@click.argument("peerid")
@click.option("--label", default="", help="A name for your own use.")
@verb
def add(output: Output, peerid: str, label: str) -> None:
    done = output.client.trust_add(peerid, label)
    output.result(done, f"trusted {done['peer']}")


@trust_command.command("rm", help="Stop trusting the publisher PEERID.")
@click.argument("peerid")
@verb
def rm(output: Output, peerid: str) -> None:
    done = output.client.trust_rm(peerid)
    output.result(done, f"no longer trusted: {done['peer']}")


@trust_command.command("rotate", help="Publish with a new key from now on; who trusts the old one follows.")
@verb
def rotate(output: Output) -> None:
    done = output.client.trust_rotate()
    output.result(done, f"publisher {done['old']} goes on as {done['new']}")
