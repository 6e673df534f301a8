"""The predictors of this node: one for each model, trained here or shipped, referred to by what it publishes.

A predictor is a file named by the model identity, in the node's home or beside the model catalogue.  Publishing
puts it into the store, as a file of the artifact like its chunks; readers fetch it once, and what they fetch
stays with the artifacts that need it.
"""

from __future__ import annotations

from pathlib import Path

import kvswap.model
from kvswap.artifact.manifest import Manifest
from kvswap.core.atomic import write_atomic
from kvswap.core.errors import UsageError
from kvswap.core.ids import Cid
from kvswap.exchange.model_port import ModelChoice
from kvswap.exchange.node.node import Node

SHIPPED = Path(kvswap.model.__file__).parent / "predictors"  # by model identity


def trained(node: Node, choice: ModelChoice) -> Path:
    """Return the path of the predictor that this node trains for a model; the file need not exist."""
    return node.settings.home / "predictors" / choice.identity.digest.hex()


def path(node: Node, choice: ModelChoice) -> Path | None:
    """Return the file of a model's predictor: one trained here, else the one that comes with kvswap, else None."""
    shipped = SHIPPED / choice.identity.digest.hex()
    return next((p for p in (trained(node, choice), shipped) if p.is_file()), None)


def own(node: Node, choice: ModelChoice) -> bytes:
    """Return the bytes of this node's predictor for a model.  Raises `UsageError` when there is none here."""
    found = path(node, choice)
    if found is None:
        raise UsageError(
            f"this node has no predictor for {choice.identity.label}",
            cause="it was never trained",
            hint="kvswap codec train --corpus DIR",
        )
    return found.read_bytes()


def supply(node: Node, manifest: Manifest) -> None:
    """Put the predictor that an artifact refers to into the store, if it is the one that comes with kvswap."""
    wanted = manifest.predictor
    file = SHIPPED / manifest.model.digest.hex()
    if wanted is not None and file.is_file() and node.store.missing([wanted.id]):
        data = file.read_bytes()
        if Cid.of(data) == wanted.id:
            node.store.put_chunk(data, wanted.id)


def keep(path: Path, data: bytes) -> None:
    """Check that a trained predictor loads, and write it to `path` in one step."""
    from kvswap.codec import predictive  # numpy, which this process has no other use for

    predictive.load(data)  # what readers will do with it
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, data)
