"""What a running job says, and what it is told: structs, known by their tags `event` and `tell`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

import msgspec

from kvswap.api.events import ProgressEvent, event_of
from kvswap.artifact.manifest import ChunkRef
from kvswap.core import wire
from kvswap.core.errors import KvswapError, WorkerFailed
from kvswap.worker.messages import PipeMessage


class SentBytes(PipeMessage, frozen=True, kw_only=True, tag_field="event", forbid_unknown_fields=False):
    """The base of events that carry bytes, which an engine sends as well, perhaps of a newer version."""


class ChunkEvent(SentBytes, frozen=True, kw_only=True, tag="chunk"):
    """A chunk: its entry in the manifest, its bytes, and the microseconds of its coding."""

    ref: ChunkRef
    data: bytes
    us: Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]


class FingerprintEvent(SentBytes, frozen=True, kw_only=True, tag="fingerprint"):
    """The fingerprint of a cache that is being published."""

    data: bytes


class PredictorEvent(SentBytes, frozen=True, kw_only=True, tag="predictor"):
    """A predictor that was trained."""

    data: bytes


FileEvent = ChunkEvent | FingerprintEvent | PredictorEvent
JobEvent = FileEvent | ProgressEvent
_FILES = {str(kind.__struct_config__.tag): kind for kind in get_args(FileEvent)}


def job_event(message: dict[str, Any], error_type: type[KvswapError] = WorkerFailed) -> JobEvent:
    """Read what a job says while it runs: bytes to keep, or how far it is.  Raises `error_type`."""
    kind = _FILES.get(str(message.get("event")))
    if kind is not None:
        event: FileEvent = wire.convert(message, kind, error_type)
        return event
    try:
        return event_of(message)
    except msgspec.ValidationError as error:
        raise error_type(f"not a valid event: {error}", field="event") from error


# -- what the process says of itself -----------------------------------------------------------------


class Heartbeat(PipeMessage, frozen=True, kw_only=True, tag_field="event", tag="alive"):
    """The word of a process that is at work, sent every few seconds whatever the job does."""

    cpu_us: Annotated[int, msgspec.Meta(ge=0)]
    """The processor time that it used so far, in microseconds."""


class LogFrame(PipeMessage, frozen=True, kw_only=True, tag_field="event", tag="log"):
    """A record for the node's log."""

    level: int
    logger: str
    message: str
    trace: str | None = None
    """The traceback, where it is about an exception."""


SignOfLife = Heartbeat | LogFrame
_SIGNS = {str(kind.__struct_config__.tag): kind for kind in get_args(SignOfLife)}


def sign_of_life(message: dict[str, Any]) -> SignOfLife | None:
    """Read what a process says of itself; None for what its job says.  Raises `WorkerFailed`."""
    kind = _SIGNS.get(str(message.get("event")))
    if kind is None:
        return None
    sign: SignOfLife = wire.convert(message, kind, WorkerFailed)
    return sign


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


class Cancellation(PipeMessage, frozen=True, kw_only=True):
    """The word that the running job has to stop."""

    cancel: Literal[True] = True


class NoticeFrame(PipeMessage, frozen=True, kw_only=True):
    """A notice on its way to the job that is running."""

    notice: Notice = msgspec.field(name="tell")


def notice_of(message: Any) -> Notice:
    """Read what a running job is told.  Raises `WorkerFailed`."""
    notice: Notice = wire.convert(message, Notice, WorkerFailed)  # type: ignore[arg-type]
    return notice
