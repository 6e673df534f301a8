"""What a running job says and is told: read into its type, or an error of ours."""

from __future__ import annotations

import io
from typing import Any

import pytest

from kvswap.api.events import OtherEvent, PrefillEvent, ReservationEvent
from kvswap.artifact.manifest import ChunkRef
from kvswap.core import wire
from kvswap.core.errors import MalformedMessage, WorkerFailed
from kvswap.core.ids import Cid
from kvswap.worker import protocol
from kvswap.worker.conversation import (
    ArrivalNotice,
    Cancellation,
    ChunkEvent,
    EndNotice,
    FingerprintEvent,
    Heartbeat,
    JobEvent,
    LogFrame,
    Notice,
    NoticeFrame,
    PredictorEvent,
    RateNotice,
    SignOfLife,
    job_event,
    notice_of,
    sign_of_life,
)

_DATA = bytes(range(256))


def carried(value: Any) -> Any:
    return protocol.read(io.BytesIO(protocol.frame(wire.plain(value))))


def a_chunk() -> ChunkRef:
    return ChunkRef(
        block=0, run=0, codec="planes", cid=bytes(Cid.of(_DATA)), length=len(_DATA), raw=bytes(32), raw_length=512
    )


@pytest.mark.parametrize(
    "event",
    [
        FingerprintEvent(data=_DATA),
        PredictorEvent(data=_DATA),
        PrefillEvent(block=1, blocks=2, tokens=64),
        ReservationEvent(unit=3),
    ],
)
def test_an_event_is_read_as_it_was_sent(event: JobEvent) -> None:
    assert job_event(carried(event)) == event


def test_a_chunk_is_read_as_it_was_sent_and_may_say_more() -> None:
    event = ChunkEvent(ref=a_chunk(), data=_DATA, us=7)
    message = carried(event)
    assert job_event(message) == event
    assert job_event(message | {"of_a_newer_engine": 1}) == event


def test_an_event_of_another_version_is_passed_on() -> None:
    assert job_event({"event": "resting", "until": 3}) == OtherEvent(kind="resting", more={"until": 3})


@pytest.mark.parametrize(
    "message",
    [
        {"event": 5},
        {"event": b"chunk"},
        {},
        {"event": "chunk", "data": b""},
        {"event": "fingerprint", "data": "text"},
        {"event": "predictor"},
    ],
)
def test_what_is_no_event_is_an_error_of_the_type_that_was_asked_for(message: dict[str, Any]) -> None:
    with pytest.raises(WorkerFailed):
        job_event(message)
    with pytest.raises(MalformedMessage):
        job_event(message, MalformedMessage)


@pytest.mark.parametrize("us", [-1, 1 << 53])
def test_a_time_that_cannot_be_is_refused(us: int) -> None:
    message = carried(ChunkEvent(ref=a_chunk(), data=_DATA, us=us))
    with pytest.raises(MalformedMessage, match="us"):
        job_event(message, MalformedMessage)


@pytest.mark.parametrize("notice", [ArrivalNotice(unit=3), EndNotice(why="gone"), RateNotice(bytes=9, arriving=1)])
def test_a_notice_is_read_as_it_was_sent(notice: Notice) -> None:
    assert notice_of(carried(notice)) == notice


@pytest.mark.parametrize("message", [5, {}, {"unit": 1}, {"tell": "x"}, {"tell": "unit", "unit": "1"}])
def test_what_is_no_notice_is_refused(message: Any) -> None:
    with pytest.raises(WorkerFailed):
        notice_of(message)


def test_the_frames_of_the_node_are_as_they_were() -> None:
    assert carried(Cancellation()) == {"cancel": True}
    assert carried(NoticeFrame(notice=ArrivalNotice(unit=3))) == {"tell": {"tell": "unit", "unit": 3}}


@pytest.mark.parametrize(
    "sign",
    [
        Heartbeat(cpu_us=7),
        LogFrame(level=20, logger="kvswap", message="x"),
        LogFrame(level=1, logger="", message="", trace="t"),
    ],
)
def test_a_sign_of_life_is_read_as_it_was_sent(sign: SignOfLife) -> None:
    assert sign_of_life(carried(sign)) == sign


def test_what_a_job_says_is_no_sign_of_life() -> None:
    assert sign_of_life(carried(PrefillEvent(block=1, blocks=2, tokens=64))) is None
    assert sign_of_life({"event": b"alive"}) is None


@pytest.mark.parametrize(
    "message",
    [
        {"event": "alive"},
        {"event": "alive", "cpu_us": -1},
        {"event": "alive", "cpu_us": "1"},
        {"event": "log", "level": "20", "logger": "kvswap", "message": "x"},
        {"event": "log", "level": 20, "logger": "kvswap"},
    ],
)
def test_a_sign_of_life_of_another_form_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(WorkerFailed):
        sign_of_life(message)
