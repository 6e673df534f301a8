"""What is known of slots, and of the requests that used them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from kvswap.integrations.llamacpp.proxy.prompts import RequestPrompt
from kvswap.integrations.llamacpp.proxy.ranges import common_length
from kvswap.integrations.llamacpp.proxy.watching import AnswerWatcher


@dataclass(slots=True)
class Turn:
    """A request that was forwarded."""

    text: str = ""
    ids: tuple[int, ...] = ()
    restored: int = 0
    slot: int | None = None
    alone: bool = True  # no other request was answered meanwhile
    watcher: AnswerWatcher = field(default_factory=AnswerWatcher)


@dataclass(slots=True)
class KnownSlot:
    """The state of a slot as it is known: its ids once saved or restored, else the prompt that it was last used for."""

    id: int
    task: int = -1
    dirty: bool = False
    ids: tuple[int, ...] | None = ()
    checkpoints: tuple[int, ...] = ()
    turn: Turn | None = None
    used: float = 0.0


def continues(turn: Turn | None, prompt: RequestPrompt) -> bool:
    """Return True if a prompt goes on from what a slot was last used for, and adds no more than there is."""
    if turn is None:
        return False
    if prompt.ids:
        return bool(turn.ids) and 2 * len(turn.ids) >= len(prompt.ids) and prompt.ids[: len(turn.ids)] == turn.ids
    return bool(turn.text) and 2 * len(turn.text) >= len(prompt.text) and prompt.text.startswith(turn.text)


def usable_tokens(slot: KnownSlot, ids: Sequence[int], slides: bool) -> int:
    """Return the tokens of a prompt that the server can go on from in a slot."""
    held = slot.ids or ()
    shared = common_length(held, ids)
    if not slides or shared == len(held):
        return shared
    return max((point for point in slot.checkpoints if point <= shared), default=0)


def worth(slot: KnownSlot) -> tuple[bool, float]:
    """Order slots by what is lost when they are restored into: empty ones first, then those not used for longest."""
    return (bool(slot.ids) or slot.ids is None, slot.used)
