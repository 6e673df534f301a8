"""Removal of a model that was pulled: its directory below the models of this user, unless a process has it open."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from kvswap.core.errors import NotFound, UsageError
from kvswap.core.failures import as_kvswap_error
from kvswap.core.text import printable
from kvswap.model import catalogue

_GOING = ".removing-"
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Pulled:
    """A model on this machine that may be removed: its name, its directory, and the bytes that would be free."""

    name: str
    directory: Path
    bytes: int


def find_pulled(name: str, models: Path) -> Pulled:
    """Find a model below `models`.

    Raises `NotFound` for one that is not here, `UsageError` for a directory of the user's own, which is not kvswap's to
    delete.
    """
    here = catalogue.pulled(models)
    if name not in here:
        if name.startswith((".", "/", "~")):
            raise UsageError(
                f"{printable(name)} is a directory of yours",
                cause="only models that kvswap pulled are removed by name",
                hint="kvswap model ls",
            )
        raise NotFound(f"model {name!r} is not on this machine", hint="kvswap model ls")
    return Pulled(name, here[name], _size(here[name]))


def _size(directory: Path) -> int:
    if directory.is_symlink():  # what it leads to stays
        return 0
    return sum(path.lstat().st_size for path in directory.rglob("*") if not path.is_dir())


def processes_with(directory: Path) -> list[int]:
    """List the processes of this user that have a file of the directory open or mapped; none where that is not told."""
    real = os.path.realpath(directory) + "/"
    found = []
    for process in _PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(process.name) != os.getpid() and (_maps(process, real) or _opens(process, real)):
                found.append(int(process.name))
    return sorted(found)


def _maps(process: Path, prefix: str) -> bool:
    return any(prefix in line for line in (process / "maps").read_text(errors="replace").splitlines())


def _opens(process: Path, prefix: str) -> bool:
    for link in (process / "fd").iterdir():
        with contextlib.suppress(OSError):
            if str(link.readlink()).startswith(prefix):
                return True
    return False


def remove(model: Pulled) -> None:
    """Delete a model: it is gone at once, whatever its many files take.  Raises `LocalFault`."""
    directory = model.directory
    try:
        if directory.is_symlink():
            directory.unlink()
            return
        going = directory.with_name(f"{_GOING}{os.getpid()}-{directory.name}")
        os.replace(directory, going)
        shutil.rmtree(going)
    except OSError as error:
        raise as_kvswap_error(error, f"removing {printable(str(directory))}") from error
