"""The requests under way, and the last that ended: bounded, whatever comes and goes."""

from __future__ import annotations

from kvswap.api.events import FoundEvent, PrefillEvent, TransferEvent
from kvswap.core.errors import NotFound
from kvswap.daemon.running import Running


def test_what_is_under_way_comes_first_and_what_ended_is_bounded() -> None:
    running = Running()
    works = [running.begin(f"fetch {number}") for number in range(100)]
    assert running.count == 100
    assert [work.verb for work in running.listed()[:2]] == ["fetch 99", "fetch 98"]
    assert len(running.listed()) < 100  # the rest is counted
    for work in works[:60]:
        running.end(work)
    running.end(works[60], NotFound("nobody has it"))
    running.end(works[61], RuntimeError("a secret detail"))
    listed = running.listed()
    assert running.count == 38 and len(listed) < 38 + 30
    assert [work.problem for work in listed if work.problem] == ["given up", "nobody has it"]
    assert all(work.seconds >= 0 for work in listed)


def test_events_say_how_far_it_got() -> None:
    running = Running()
    work = running.begin("fetch")
    work.note(FoundEvent(artifact="x", peers=[]))
    moved = TransferEvent(
        done=1, chunks=2, bytes=3, arriving=0, total_bytes=6, rate=1.0, seconds=3.0, peers=[], sent={}, over=[]
    )
    work.note(moved)
    work.note(PrefillEvent(block=1, tokens=32))
    assert (work.artifact, work.transfer, work.prefilled and work.prefilled.tokens) == ("x", moved, 32)
