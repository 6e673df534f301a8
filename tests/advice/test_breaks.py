"""What breaks sharing is found, named, and counted."""

from __future__ import annotations

import pytest

from kvswap.advice.breaks import Breaks, CutPrompt

LONG = " and all that follows is the same" * 20


def prompt(line: int, *pieces: str, compared: tuple[str, ...] = (), tools: str = "") -> CutPrompt:
    """A prompt whose tokens are its characters."""
    ends = [sum(map(len, pieces[: n + 1])) for n in range(len(pieces))]
    messages = [{"role": "system", "content": piece} for piece in pieces]
    return CutPrompt(line, pieces, compared or pieces, ends, messages, tools)


def test_a_piece_is_of_the_message_whose_text_it_has() -> None:
    pieces = ["<a>system\nHelp.", "<e>\n", "<a>user\nWhat?", "<e>\n"]
    messages = [{"role": "system", "content": "Help."}, {"role": "user", "content": "What?"}]
    made = CutPrompt(1, pieces, pieces, [1, 2, 3, 4], messages)
    assert [made.message_of(number) for number in range(4)] == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [
        ("Time: 2026-11-28T10:20:30Z.", "Time: 2026-11-28T10:21:07Z.", "timestamp"),
        ("Today is 28 November 2026.", "Today is 29 November 2026.", "timestamp"),
        ("It is 10:20.", "It is 11:05.", "timestamp"),
        ("Session 0f8fad5b-d9cd-469f-a165-70867728950e.", "Session 7c9e6679-7425-40de-944b-e07fc1f90ae7.", "id"),
        ("Trace req_01HXYZ8A7B6C5D4E3F2G.", "Trace req_99HXYZ8A7B6C5D4E3F2G.", "id"),
        ("You are worker 7 of many.", "You are worker 12 of many.", "number"),
    ],
)
def test_a_detail_that_changes_costs_all_that_follows(one: str, other: str, kind: str) -> None:
    breaks = Breaks()
    breaks.add(prompt(1, "You help. " + one, LONG), 0)
    at = next(n for n, (a, b) in enumerate(zip("You help. " + one, "You help. " + other, strict=False)) if a != b)
    breaks.add(prompt(2, "You help. " + other, LONG), at)
    (found,) = breaks.worst(1, 5)
    assert (found.kind, found.requests, found.line, found.message) == (kind, 1, 2, 0)
    assert found.lost == len("You help. " + other + LONG) - at
    assert found.one != found.other and "You help. ".endswith(found.before[-1:]) is not None


def test_another_question_breaks_nothing() -> None:
    breaks = Breaks()
    breaks.add(prompt(1, "You help.", "What is in the box?"), 0)
    breaks.add(prompt(2, "You help.", "Who made the box?"), len("You help."))
    assert breaks.worst(1, 5) == []


def test_tools_in_another_order_are_named_so() -> None:
    breaks = Breaks()
    breaks.add(prompt(1, "tools: read write", LONG), 0)
    breaks.add(prompt(2, "tools: write read", LONG, compared=("tools: read write", LONG), tools="tool order"), 7)
    (found,) = breaks.worst(1, 5)
    assert found.kind == "tool order" and found.lost > len(LONG)
    assert found.one.startswith("write") and found.other.startswith("read")


def test_the_same_place_is_counted_together_and_the_worst_come_first() -> None:
    breaks = Breaks()
    for line in range(1, 6):
        breaks.add(prompt(line, f"Now 10:2{line}.", LONG), 0 if line == 1 else len("Now 10:2"))
    breaks.add(prompt(9, "Now 10:21.", f"ticket {9}", "end"), 10)
    breaks.add(prompt(10, "Now 10:21.", "ticket 8", "end"), 10 + len("ticket "))
    first, second = breaks.worst(1, 5)
    assert (first.requests, first.kind) == (4, "timestamp")
    assert first.lost > second.lost
    assert breaks.worst(first.lost, 5) == [first]
