"""`kvswap model ls|pull|check`: needs no daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from kvswap.cli.output import Output, verb

if TYPE_CHECKING:
    from kvswap.model.families import Checked


@click.group("model", help="Models: list, pull, check.")
def model_command() -> None:
    pass


@model_command.command("ls", help="Models of the catalogue and models on this machine.")
@verb
def ls(output: Output) -> None:
    from kvswap.core.directories import models_directory
    from kvswap.core.failures import as_kvswap_error
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
    from kvswap.core.directories import models_directory
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


@model_command.command(
    "check", help="Say what a model's cache is made of and what works with it: a directory, or a name."
)
@click.argument("name")
@click.option("--dtype", type=click.Choice(["bfloat16", "float16", "float32"]), default="bfloat16", show_default=True)
@verb
def check(output: Output, name: str, dtype: str) -> None:
    from kvswap.core.directories import models_directory
    from kvswap.core.files import exists
    from kvswap.model import catalogue, files
    from kvswap.model.families import check as check_config

    models = models_directory()
    path = catalogue.local_directory(catalogue.typed(name, models), models)
    if not exists(path / "config.json"):  # weights are not needed here
        path = catalogue.resolve(catalogue.typed(name, models), models)
    config = files.read_json(path / "config.json")
    if not isinstance(config, dict):
        raise files.unfit(f"{path / 'config.json'} is not a configuration", "config")
    found = check_config(config, dtype)
    value = {
        "model_type": found.model_type,
        "names": found.names,
        "tested": found.known,
        "exchanged": not found.refused,
        "refused": found.refused or None,
        "dtype": dtype,
        "layers": [msgspec.to_builtins(layer) for layer in found.layers],
        "token_bytes": found.token_bytes,
        "window_bytes": found.window_bytes,
        "without": list(found.without),
    }
    output.result(value, lambda: _shown(found, dtype))


def _shown(found: Checked, dtype: str) -> str:
    from collections import Counter

    lines = [f"model    {found.model_type}" + (f" ({found.names})" if found.names else "")]
    if found.refused:
        return "\n".join([*lines, f"refused  {found.refused}"])
    kinds = Counter(
        f"{spec.kind}{f' of {spec.window}' if spec.window else ''}, {spec.heads} x {spec.k_dim}"
        + (f" and {spec.v_dim}" if spec.v_dim != spec.k_dim else "")
        for spec in found.layers
    )
    lines.append("cache    " + "; ".join(f"{count} layers {kind}" for kind, count in kinds.items()))
    windows = f", and {found.window_bytes / 1e6:.1f} MB of windows" if found.window_bytes else ""
    whole = (4096 * found.token_bytes + found.window_bytes) / 1e6
    lines.append(f"size     {found.token_bytes:,} bytes a token in {dtype}{windows}; 4,096 tokens: {whole:,.0f} MB")
    untested = "by its layers; this model type is not among those tested"
    lines.append("works    " + ("publish, fetch, ask, verify" if found.known else untested))
    return "\n".join([*lines, *(f"without  {what}" for what in found.without)])
