"""The golden files, and what is said of them in their names."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "golden"
FILES = sorted(FOLDER.glob("*.bin"))
STATES = sorted(FOLDER.glob("*.state"))
RELEASES = {"b11549": 4, "v0.4.0": 3}


def slot_file(name: str, release: str = "b11549") -> bytes:
    """Return a golden slot file."""
    return (FOLDER / f"{release}-{name}.bin").read_bytes()
