"""`kvswap find`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvswap.cli.completing import GroupType, ModelType, PeerType, ReferenceType
from kvswap.cli.output import Output, read_document, reference, size, sources, verb
from kvswap.core.errors import UsageError
from kvswap.core.ids import document_digest

if TYPE_CHECKING:
    from kvswap.api.find import FindResult, FoundArtifact


@click.command("find", help="Say who has REF, or the document in a file, here, at peers and origins.  Fetches nothing.")
@click.argument("ref", required=False, type=ReferenceType())
@click.option(
    "--text",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A document: where nobody has it, the longest published prefix of it is looked for.",
)
@click.option(
    "--model", type=ModelType(), help="Only what was made for this model: its label, or 8 digits of its identity."
)
@click.option("--publisher", metavar="PEER", type=PeerType(), help="Only what this publisher signed.")
@click.option("--group", metavar="NAME", type=GroupType(), help="Look only among what is sealed for this group.")
@verb
def find_command(
    output: Output,
    ref: str | None,
    file: Path | None,
    model: str | None,
    publisher: str | None,
    group: str | None,
) -> None:
    """Print who has an artifact or a document, and why it would not be used here."""
    if (ref is None) == (file is None):
        raise UsageError("give a reference, or --text FILE", cause="one of both says what to look for")
    text = None
    if file is not None:
        data = read_document(file)
        name, text = document_digest(data), data.decode()
    else:
        name = reference(str(ref))[0]
    found = output.client.find(name, text=text, model=model, publisher=publisher, group=group)
    output.result(found, lambda: _shown(output, found))
    if found.left_out:
        output.note(f"{found.left_out} more of another model or publisher")
    usable = [a for a in found.artifacts if a.problem is None]
    if usable and usable[0].here != "complete":
        output.note(f"kvswap fetch {usable[0].artifact}")


def _shown(output: Output, found: FindResult) -> str:
    lines = []
    if found.artifacts:
        headers = ("ARTIFACT", "MODEL", "TOKENS", "SIZE", "PUBLISHER", "WHO HAS IT", "")
        lines = [output.table(headers, [_row(artifact) for artifact in found.artifacts])]
    lines += [f"{a.artifact}: not used here as things are: {a.problem}" for a in found.artifacts if a.problem]
    if (prefix := found.prefix) is not None:
        where = "this node" if prefix.here else sources(prefix.peers)
        lines.append(
            f"nobody has the document; its first {prefix.tokens} of {prefix.of} tokens are those of "
            f"{prefix.artifact}, which {where} has"
        )
    return "\n".join(lines)


def _row(artifact: FoundArtifact) -> tuple[object, ...]:
    holders = [holder.peer for holder in artifact.holders]
    who = [{"complete": "this node", "partial": "this node (part)"}[artifact.here]] if artifact.here else []
    who += holders[:2] + ([f"{len(holders) - 2} more"] if len(holders) > 2 else [])
    return (
        artifact.artifact,
        artifact.label or artifact.model[:16],
        artifact.tokens or "",
        size(artifact.wire_bytes),
        artifact.publisher,
        ", ".join(who),
        ("" if artifact.signed else "not checked, ")
        + ("trusted" if artifact.trusted else "not trusted")
        + (f", for {artifact.group}" if artifact.group else ""),
    )
