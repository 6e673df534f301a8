"""The chunks of a node as a job reads them: by id, from the directory that the node names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kvswap.artifact.assembly import ChunkSource
from kvswap.core.ids import Cid
from kvswap.worker.inbox import JobContext


def chunk_source(directory: str | None) -> ChunkSource:
    """Return a function that reads the file of a chunk."""
    from kvswap.store.files import chunk_reader

    return chunk_reader(Path(str(directory)))


def known_predictor(context: JobContext, predictor: str | None, source: ChunkSource) -> Any:
    """Return the predictor of this CID, read from `source` unless an earlier job read it; None for None."""
    from kvswap.artifact.assembly import read_predictor

    return read_predictor(Cid.parse(predictor), source, context.predictors) if predictor else None
