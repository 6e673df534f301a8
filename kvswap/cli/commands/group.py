"""`kvswap group new|import|export|ls|rm`."""

from __future__ import annotations

import click

from kvswap.cli.completing import GroupType
from kvswap.cli.output import Output, naming, secret_of, verb


@click.group("group", help="Groups: what is published for one can be found and read by the holders of its key alone.")
def group_command() -> None:
    """Group the verbs of groups."""


@group_command.command("new", help="Make a group called NAME, and its key.")
@click.argument("name")
@verb
def new(output: Output, name: str) -> None:
    """Make a group with a key of its own."""
    done = output.client.group_new(name)
    output.result(done, f"group {done.name}")
    output.note(f"kvswap group export {name}  prints the key: whoever has it is a member, for ever")
    output.note(f"kvswap publish FILE --group {name}")


@group_command.command("import", help="Join the group whose key is in FILE (default: standard input).")
@click.argument("file", default="-")
@click.option("--name", help="What to call it here (default: as its maker does).")
@verb
def import_(output: Output, file: str, name: str | None) -> None:
    """Join a group by its key, from a file or standard input."""
    key = secret_of(file, "a group's key", "kvswap group export NAME, where the group was made")
    with naming(file):
        done = output.client.group_import(key, name)
    output.result(done, f"joined group {done.name}")


@group_command.command("export", help="Print the key of NAME, which is a secret, for a new member to import.")
@click.argument("name", type=GroupType())
@verb
def export(output: Output, name: str) -> None:
    """Print the key of a group."""
    done = output.client.group_export(name)
    output.result(done, done.key)


@group_command.command("ls", help="List the groups this node is in.")
@verb
def ls(output: Output) -> None:
    """List the groups of this node."""
    from kvswap.api.trust import GroupRows

    found = output.client.groups()
    rows = [(g.name, g.tag) for g in found]
    output.result(GroupRows(groups=found), lambda: output.table(("GROUP", "TAG"), rows))


@group_command.command("rm", help="Forget the key of NAME: what is sealed for it cannot be read here any more.")
@click.argument("name", type=GroupType())
@verb
def rm(output: Output, name: str) -> None:
    """Forget the key of a group."""
    done = output.client.group_remove(name)
    output.result(done, f"left group {done.name}")
