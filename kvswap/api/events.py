"""The events that a client sees: how a request goes on, and what the node did."""

from __future__ import annotations

import contextlib
import typing
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import field

from kvswap.api.plans import PlanFigures, ways_of
from kvswap.api.result import OpenResult, Result

if TYPE_CHECKING:
    from kvswap.cost import Plan


class Event:
    """The base of what a request reports while it goes on."""

    __slots__ = ()

    @property
    def kind(self) -> str:
        """The kind of event, which JSON has as `event`."""
        return str(typing.cast(msgspec.Struct, self).__struct_config__.tag)


class PrefillEvent(Event, Result, frozen=True, kw_only=True, tag_field="event", tag="prefill"):
    """A block was computed."""

    block: int
    """Blocks that are done."""
    blocks: int | None = None
    """All blocks; None: not known."""
    tokens: int
    """Tokens that are done."""


class TrainEvent(Event, Result, frozen=True, kw_only=True, tag_field="event", tag="train"):
    """The predictive codec was trained on more tokens."""

    tokens: int
    of: int


class TokenEvent(Event, Result, frozen=True, kw_only=True, tag_field="event", tag="token"):
    """A token, or a host's next few, of an answer."""

    text: str
    id: int | None = None
    """The token's id; None: a host sent the text."""


class FoundEvent(Event, Result, frozen=True, kw_only=True, tag_field="event", tag="found"):
    """The artifact that would be used was found."""

    artifact: str
    peers: list[str]
    """The peers that have it."""


class PlanEvent(Event, PlanFigures, frozen=True, kw_only=True, tag_field="event", tag="plan"):
    """A way was chosen."""


class SourcePeer(Result, frozen=True, kw_only=True):
    """A peer of a transfer."""

    peer: str
    channel: str = field(name="kind")
    """The way its chunks come: `https`, or `libp2p`."""
    rate: float | None
    """Bytes a second; None: not known yet."""
    in_flight: int
    """Chunks that it was asked for."""


class TransferEvent(Event, Result, frozen=True, kw_only=True, tag_field="event", tag="transfer"):
    """The progress of a transfer."""

    done: int
    """Chunks that are here."""
    chunks: int
    bytes: int
    """Bytes of whole chunks that came."""
    arriving: int
    """Bytes of chunks that are under way."""
    total_bytes: int
    rate: int | float
    """Bytes a second, of all peers together."""
    seconds: float
    peers: list[SourcePeer]
    sent: dict[str, int] = field(name="from")
    """The bytes that each peer sent."""
    over: list[str]
    """The channels that they came over."""


class ReservationEvent(Event, Result, frozen=True, kw_only=True, tag_field="event", tag="claim"):
    """A work unit is computed, and not fetched any more."""

    unit: int


class FilledEvent(Event, Result, frozen=True, kw_only=True, tag_field="event", tag="filled"):
    """The cache is whole."""

    tokens: int
    computed: int
    """The tokens of it that were computed here."""


class NoiseEvent(Event, Result, frozen=True, kw_only=True, tag_field="event", tag="noise"):
    """A measurement, made once, of how far apart right caches of a model are on this machine."""

    model: str


class IntervalsEvent(Event, Result, frozen=True, kw_only=True, tag_field="event", tag="intervals"):
    """The intervals that are about to be computed again, as single positions cannot be (V5)."""

    artifact: str
    intervals: int
    """Intervals that were drawn."""
    of: int
    cost: float
    """The part of the document's tokens that is computed."""
    chance: float
    """The least probability that an interval which is wrong is among them."""


class CheckEvent(Event, Result, frozen=True, kw_only=True, tag_field="event", tag="verify"):
    """A level of verification was checked."""

    level: int = field(name="step")
    verdict: str


class DisputeEvent(Event, Result, frozen=True, kw_only=True, tag_field="event", tag="disputed"):
    """A dispute: other publishers made something else of the same tokens, and all of it is computed again."""

    artifacts: list[str] = field(name="with")


class UncheckableEvent(Event, Result, frozen=True, kw_only=True, tag_field="event", tag="uncheckable"):
    """An artifact is used although a part of it cannot be checked."""

    artifact: str
    reason: str


class ExportEvent(Event, Result, frozen=True, kw_only=True, tag_field="event", tag="export"):
    """The progress of an archive that is written."""

    bytes: int
    total_bytes: int | None
    seconds: float


class ImportEvent(Event, Result, frozen=True, kw_only=True, tag_field="event", tag="import"):
    """The progress of an archive that is read."""

    bytes: int
    total_bytes: int | None
    """The length of the archive; None: it is a stream."""
    seconds: float


class PushEvent(Event, Result, frozen=True, kw_only=True, tag_field="event", tag="push"):
    """The progress of a push to an origin."""

    done: int
    """Files that are there."""
    files: int
    uploaded_bytes: int
    """Bytes that were not there before."""
    seconds: float


class OtherEvent(OpenResult, frozen=True, kw_only=True):
    """An event that this version does not know: of a newer daemon."""

    kind: str = field(name="event")


KnownEvent = (
    PrefillEvent
    | TrainEvent
    | TokenEvent
    | FoundEvent
    | PlanEvent
    | TransferEvent
    | ReservationEvent
    | FilledEvent
    | NoiseEvent
    | IntervalsEvent
    | CheckEvent
    | DisputeEvent
    | UncheckableEvent
    | ExportEvent
    | ImportEvent
    | PushEvent
)
ProgressEvent = KnownEvent | OtherEvent
# By the name of an event: msgspec looks through all of a union whenever it converts to one, which takes forty times as
# long as to convert to the one that it is.
_KINDS: dict[str, Any] = {str(kind.__struct_config__.tag): kind for kind in typing.get_args(KnownEvent)}


def event_of(message: dict[str, Any]) -> ProgressEvent:
    """Read the JSON form of an event; one of another version is an `OtherEvent`."""
    kind = _KINDS.get(str(message.get("event")))
    if kind is not None:
        with contextlib.suppress(msgspec.ValidationError):
            event: KnownEvent = msgspec.convert(message, kind)
            return event
    return OtherEvent.from_json(message)


class NodeEvent(OpenResult, frozen=True, kw_only=True):
    """An event of the node: what it did, or what happened to it; `more` has the fields of its kind."""

    id: int
    """The number of the event."""
    time: float
    """Unix seconds."""
    kind: str = field(name="event")


def plan_event(plan: Plan) -> PlanEvent:
    """Make the event that a way was chosen."""
    return PlanEvent(**ways_of(plan))
