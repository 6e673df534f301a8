"""What a running job says, and what it is told: structs, known by their tags `event` and `tell`."""

from __future__ import annotations

from typing import Annotated, Any, get_args

import msgspec

from kvswap.api.events import ProgressEvent, event_of
from kvswap.artifact.manifest import ChunkRef
from kvswap.core import wire
from kvswap.core.errors import KvswapError, WorkerFailed
from kvswap.worker.messages import PipeMessage


class ChunkEvent(PipeMessage, frozen=True, kw_only=True, tag_field="event", tag="chunk"):
    """A chunk: its entry in the manifest, its bytes, and the microseconds of its coding."""

    ref: ChunkRef
    data: bytes
    us: Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]


class FingerprintEvent(PipeMessage, frozen=True, kw_only=True, tag_field="event", tag="fingerprint"):
    """The fingerprint of a cache that is being published."""

    data: bytes


class PredictorEvent(PipeMessage, frozen=True, kw_only=True, tag_field="event", tag="predictor"):
    """A predictor that was trained."""

    data: bytes


FileEvent = ChunkEvent | FingerprintEvent | PredictorEvent
JobEvent = FileEvent | ProgressEvent
_FILES = {str(kind.__struct_config__.tag): kind for kind in get_args(FileEvent)}


def job_event(message: dict[str, Any], error_type: type[KvswapError] = WorkerFailed) -> JobEvent:
    """Read what a job says while it runs: bytes to keep, or how far it is.  Raises `error_type`."""
    kind = _FILES.get(str(message.get("event")))
    return event_of(message) if kind is None else wire.convert(message, kind, error_type)


# -- what a running job is told ------------------------------------------------------------------


class ArrivalNotice(PipeMessage, frozen=True, kw_only=True, tag_field="tell", tag="unit"):
    """The notice that all chunks of a unit are in the store."""

    unit: int


class EndNotice(PipeMessage, frozen=True, kw_only=True, tag_field="tell", tag="ended"):
    """The notice that no further chunk will arrive."""

    why: str


class RateNotice(PipeMessage, frozen=True, kw_only=True, tag_field="tell", tag="bytes"):
    """The bytes that have arrived so far, and those of chunks that are under way."""

    bytes: int
    arriving: int


Notice = ArrivalNotice | EndNotice | RateNotice


def notice_of(message: Any) -> Notice:
    """Read what a running job is told.  Raises `WorkerFailed`."""
    notice: Notice = wire.convert(message, Notice, WorkerFailed)  # type: ignore[arg-type]
    return notice
