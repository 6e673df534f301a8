"""The home that 2b501d5 wrote, unpacked for a test, and ways to spoil what lies on a disk."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import Any

FIXTURE = Path(__file__).resolve().parent.parent / "fixtures" / "home-2b501d5.tar.gz"


def old_home(directory: Path) -> tuple[Path, dict[str, Any]]:
    """A copy of the home that 2b501d5 left behind, and what it held."""
    with tarfile.open(FIXTURE) as tar:
        tar.extractall(directory, filter="data")
    home = directory / "home"
    return home, json.loads((home / "expected.json").read_text())


def without_journal(database: Path) -> None:
    for suffix in ("-wal", "-shm"):
        Path(f"{database}{suffix}").unlink(missing_ok=True)


def garbage(database: Path) -> None:
    """Nothing of it is left."""
    without_journal(database)
    database.write_bytes(os.urandom(8192))


def half(database: Path) -> None:
    """Cut off in the middle."""
    without_journal(database)
    data = database.read_bytes()
    database.write_bytes(data[: len(data) // 2])


def holes(database: Path) -> None:
    """Every other page but the first is overwritten."""
    without_journal(database)
    data = bytearray(database.read_bytes())
    for at in range(4096, len(data), 8192):
        data[at : at + 4096] = os.urandom(4096)
    database.write_bytes(data)


def emptied(database: Path) -> None:
    """A file of no bytes, as a loss of power leaves."""
    without_journal(database)
    database.write_bytes(b"")


def deleted(database: Path) -> None:
    without_journal(database)
    database.unlink()


DAMAGES = (garbage, half, holes, emptied, deleted)
