"""`kvswap trust ls|add|rm`."""

from __future__ import annotations

import click

from kvswap.cli.completing import PeerType
from kvswap.cli.output import Output, verb
from kvswap.core.words import in_words


@click.group("trust", help="Publishers whose artifacts this node uses.  Its own are always trusted.")
def trust_command() -> None:
    """Group the verbs of trust."""


@trust_command.command("ls", help="List trusted publishers.")
@verb
def ls(output: Output) -> None:
    """List the publishers that are trusted, and those that were banned."""
    found = output.client.trust_ls()
    rows = [(p.peer, p.how, p.label) for p in found.publishers]
    rows += [(p.peer, "BANNED", in_words(p.why)) for p in found.banned]
    rows += [
        (p.peer, "lifted", f"banned by older rules, judged again when used: {in_words(p.why)}") for p in found.lifted
    ]
    output.result(found, lambda: output.table(("PUBLISHER", "HOW", "LABEL"), [(found.own, "own", ""), *rows]))


@trust_command.command("audits", help="What verifying found, here or by auditors that are trusted.")
@click.argument("peerid", required=False, type=PeerType())
@verb
def audits(output: Output, peerid: str | None) -> None:
    """List what verifying found."""
    from kvswap.api.trust import AuditsResult

    found = output.client.audits(peerid)
    rows = [
        (
            "void" if a.void else a.verdict,
            a.level,
            f"{a.samples}/{a.tokens}",
            f"{a.worst:.2f}",
            a.artifact,
            a.auditor,
            a.why,
        )
        for a in found
    ]
    headers = ("VERDICT", "LEVEL", "POSITIONS", "WORST", "ARTIFACT", "AUDITOR", "WHY")
    output.result(AuditsResult(audits=found), lambda: output.table(headers, rows))


@trust_command.command("add", help="Trust the publisher PEERID from now on.")
@click.argument("peerid", type=PeerType())
@click.option("--label", default="", help="A name for your own use.")
@verb
def add(output: Output, peerid: str, label: str) -> None:
    """Trust a publisher."""
    done = output.client.trust_add(peerid, label)
    output.result(done, f"trusted {done.peer}")


@trust_command.command("rm", help="Stop trusting the publisher PEERID.")
@click.argument("peerid", type=PeerType())
@verb
def rm(output: Output, peerid: str) -> None:
    """Stop trusting a publisher."""
    done = output.client.trust_rm(peerid)
    output.result(done, f"no longer trusted: {done.peer}")


@trust_command.command("rotate", help="Publish with a new key from now on; who trusts the old one follows.")
@verb
def rotate(output: Output) -> None:
    """Make a new publisher key, which the old one names as its successor."""
    done = output.client.trust_rotate()
    output.result(done, f"publisher {done.old} goes on as {done.new}")
