"""`kvswap model ls|pull|check|rm`: needs no daemon."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from kvswap.cli.completing import ModelType, PulledModelType
from kvswap.cli.output import Output, size, verb
from kvswap.core.errors import KvswapError, LocalFault, UsageError

if TYPE_CHECKING:
    from kvswap.api.models import LayerRow
    from kvswap.artifact.specs import LayerSpec
    from kvswap.model.families import Checked
    from kvswap.model.removal import Pulled


@click.group("model", help="Models: list, pull, check, remove.")
def model_command() -> None:
    """Group the verbs of models."""


@model_command.command("ls", help="Models of the catalogue and models on this machine.")
@verb
def ls(output: Output) -> None:
    """List the models that are here and those that can be pulled."""
    from kvswap.api.models import ModelRows
    from kvswap.api.node import ModelRow
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
            ModelRow(
                name=name,
                here=name in here,
                identity=identity,
                license=entry.license if entry else None,
                directory=str(here[name]) if name in here else None,
            )
        )
    cells = [
        (row.name, "yes" if row.here else "no", (row.identity or "-")[:16], row.license or "-", row.directory or "-")
        for row in rows
    ]
    headers = ("NAME", "HERE", "IDENTITY", "LICENSE", "DIRECTORY")
    output.result(ModelRows(models=rows), lambda: output.table(headers, cells))


@model_command.command("pull", help="Get a model: a catalogue name, or a hub id (org/name).")
@click.argument("name", default="smollm2-135m", type=ModelType())
@verb
def pull(output: Output, name: str) -> None:
    """Download a model, convert it and print its identity."""
    from kvswap.api.models import PullResult
    from kvswap.core.directories import models_directory
    from kvswap.model import catalogue, needs
    from kvswap.model.identity import directory_identity
    from kvswap.model.pull import pull as pull_model

    name = catalogue.typed(name, models_directory())
    needs.require("`model pull`")
    entry = catalogue.entries().get(name)
    if entry is not None and entry.terms:
        output.note(f"model {name}: {entry.terms}")
    directory = pull_model(name, models_directory(), lambda stage, _: output.note(f"model {name}: {stage}"))
    identity = directory_identity(directory, name)
    output.result(
        PullResult(
            name=name,
            directory=str(directory),
            identity=identity.digest.hex(),
            parameters=identity.parameters,
        ),
        f"{name}: {identity.parameters / 1e6:.0f} M parameters, identity {identity.digest.hex()[:16]}, in {directory}",
    )


@model_command.command(
    "check", help="Say what a model's cache is made of and what works with it: a directory, or a name."
)
@click.argument("name", type=ModelType())
@click.option("--dtype", type=click.Choice(["bfloat16", "float16", "float32"]), default="bfloat16", show_default=True)
@verb
def check(output: Output, name: str, dtype: str) -> None:
    """Say what a model's cache is made of, by its configuration alone."""
    from kvswap.api.models import ModelCheck
    from kvswap.core.directories import models_directory
    from kvswap.core.files import exists
    from kvswap.model import adapters, catalogue, files
    from kvswap.model.families import check as check_config

    models = models_directory()
    path = catalogue.local_directory(catalogue.typed(name, models), models)
    if not exists(path / "config.json"):  # weights are not needed here
        path = catalogue.resolve(catalogue.typed(name, models), models)
    adapter = adapters.adapter_in(path)
    path = path if adapter is None else adapter.base
    config = files.read_json(path / "config.json")
    if not isinstance(config, dict):
        raise files.unfit(f"{path / 'config.json'} is not a configuration", "config")
    found = check_config(config, dtype)
    value = ModelCheck(
        model_type=found.model_type,
        names=found.names,
        tested=found.known,
        exchanged=not found.refused,
        refused=found.refused or None,
        adapter=adapter is not None,
        dtype=dtype,
        layers=[_layer(layer) for layer in found.layers],
        token_bytes=found.token_bytes,
        window_bytes=found.window_bytes,
        state_bytes=found.state_bytes,
        latent=found.latent,
        sampled=found.sampled or None,
        by_digest=found.by_digest or None,
        checkpoint_tokens=found.checkpoint_tokens,
        without=list(found.without),
    )
    output.result(value, lambda: _shown(found, dtype, str(path) if adapter is not None else ""))


@model_command.command("rm", help="Delete the pulled model NAME from this machine; not while a process uses it.")
@click.argument("name", type=PulledModelType())
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@verb
def rm(output: Output, name: str, yes: bool) -> None:
    """Delete a model that was pulled.  Raises `LocalFault` while it is in use."""
    from kvswap.api.models import ModelRemoval
    from kvswap.core.directories import models_directory
    from kvswap.model import removal

    model = removal.find_pulled(name, models_directory())
    _refuse_in_use(output, model)
    what = f"{name} ({size(model.bytes)} in {model.directory})"
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("removing a model needs a yes", hint=f"kvswap model rm -y {name}")
        click.confirm(f"delete {what}?", abort=True, err=True)
    removal.remove(model)
    done = ModelRemoval(removed=name, directory=str(model.directory), freed_bytes=model.bytes)
    output.result(done, f"deleted {what}")
    output.note(f"kvswap model pull {name}  gets it again")


def _refuse_in_use(output: Output, model: Pulled) -> None:
    """Raise `LocalFault` for a model that the daemon has loaded, or that another process has open."""
    from kvswap.model import removal

    loaded: list[int] = []
    with suppress(KvswapError):  # no daemon
        running = output.client.status().model.processes
        names = (model.name, str(model.directory))
        loaded = [process.pid for process in running if process.model in names and process.pid is not None]
    users = sorted({*loaded, *removal.processes_with(model.directory)})
    if users:
        raise LocalFault(
            f"model {model.name} is in use by process {', '.join(map(str, users))}",
            cause="a daemon, a host or vLLM has it loaded",
            hint="kvswap stop, or wait until the model process was idle for some minutes (idle_unload_seconds)",
        )


def _layer(spec: LayerSpec) -> LayerRow:
    """Return a layer's fields for scripts, with heads and widths where it keeps keys and values alone."""
    from kvswap.api.models import LayerRow, TensorRow

    plain = spec.is_key_value
    return LayerRow(
        kind=spec.kind,
        tensors=[TensorRow(name=t.name, per=t.per, shape=list(t.shape), dtype=t.dtype) for t in spec.tensors],
        window=spec.window,
        heads=spec.heads if plain else None,
        k_dim=spec.k_dim if plain else None,
        v_dim=spec.v_dim if plain else None,
    )


def _shown(found: Checked, dtype: str, base: str) -> str:
    from collections import Counter

    lines = [f"model    {found.model_type}" + (f" ({found.names})" if found.names else "")]
    if base:
        lines.append(f"adapter  a LoRA on the model in {base}; together they are another model than it")
    if found.refused:
        return "\n".join([*lines, f"refused  {found.refused}"])
    from kvswap.artifact.specs import layer_words

    kinds = Counter(layer_words(spec) for spec in found.layers)
    lines.append("cache    " + "; ".join(f"{count} layers {kind}" for kind, count in kinds.items()))
    windows = f", and {found.window_bytes / 1e6:.1f} MB of windows" if found.window_bytes else ""
    whole = (4096 * found.token_bytes + found.window_bytes) / 1e6
    lines.append(f"size     {found.token_bytes:,} bytes a token in {dtype}{windows}; 4,096 tokens: {whole:,.0f} MB")
    if found.latent:
        lines.append("latents  (MLA) a latent for all heads and a rotary key; never the heads that they expand to")
    if found.state_bytes:
        every = f"every {found.checkpoint_tokens:,} tokens and at" if found.checkpoint_tokens else "at"
        lines.append(f"states   {found.state_bytes / 1e6:,.1f} MB {every} the end, whatever the length")
        share = found.state_bytes / (whole * 1e6 + found.state_bytes)
        lines.append(f"end      its state is {share:.0%} of a cache of 4,096 tokens")
    lines.append(f"verified V5 by drawn {found.sampled}; by the document's digest alone: {found.by_digest}")
    untested = "by its layers; this model type is not among those tested"
    lines.append("works    " + ("publish, fetch, ask, verify" if found.known else untested))
    return "\n".join([*lines, *(f"without  {what}" for what in found.without)])
