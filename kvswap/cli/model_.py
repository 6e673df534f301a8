"""`kvswap model ls|pull`: needs no daemon."""

from __future__ import annotations

import click

from kvswap.cli.output import Output, verb


@click.group("model", help="Models: list, pull.")
def model_command() -> None:
    pass


@model_command.command("ls", help="Models of the catalogue and models on this machine.")
@verb
def ls(output: Output) -> None:
    from kvswap.core.failures import as_kvswap_error
    from kvswap.core.places import models_directory
    from kvswap.model import catalogue
    from kvswap.model.identity import directory_identity

    models = models_directory()
    here = catalogue.pulled(models)
    rows = []
    for name in sorted(set(catalogue.entries()) | set(here)):
        entry = catalogue.entries().get(name)
        identity = None
        if name in here:
            try:
                identity = directory_identity(here[name], name).digest.hex()
            except Exception as error:  # noqa: BLE001 - one directory that is not right hides no other
                output.note(f"model {name}: {as_kvswap_error(error).message}")
        rows.append(
            {
                "name": name,
                "here": name in here,
                "identity": identity,
                "license": entry.license if entry else None,
                "directory": str(here[name]) if name in here else None,
            }
        )
    cells = [
        (
            r["name"],
            "yes" if r["here"] else "no",
            (str(r["identity"] or "-"))[:16],
            r["license"] or "-",
            r["directory"] or "-",
        )
        for r in rows
    ]
    output.result({"models": rows}, lambda: output.table(("NAME", "HERE", "IDENTITY", "LICENSE", "DIRECTORY"), cells))


@model_command.command("pull", help="Get a model: a catalogue name, or a hub id (org/name).")
@click.argument("name", default="smollm2-135m")
@verb
def pull(output: Output, name: str) -> None:
    from kvswap.core.places import models_directory
    from kvswap.model import catalogue, needs
    from kvswap.model.identity import directory_identity
    from kvswap.model.pull import pull as pull_model

    name = catalogue.typed(name, models_directory())
    needs.require("`model pull`")
    directory = pull_model(name, models_directory(), lambda stage, _: output.note(f"model {name}: {stage}"))
    identity = directory_identity(directory, name)
    output.result(
        {
            "name": name,
            "directory": str(directory),
            "identity": identity.digest.hex(),
            "parameters": identity.parameters,
        },
        f"{name}: {identity.parameters / 1e6:.0f} M parameters, identity {identity.digest.hex()[:16]}, in {directory}",
    )
