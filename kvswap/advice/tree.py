"""The prefixes of many prompts: a tree of their tokens, and which of its places are worth publishing."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from kvswap.model.chat import alike


@dataclass(slots=True, eq=False)
class Place:
    """A place in the tree: what all prompts through it begin with, up to the end of `ids`."""

    ids: array[int]
    """The tokens since the place before."""
    depth: int
    """The tokens up to its end."""
    line: int
    """The line of the first prompt that came through."""
    requests: int = 0
    below: dict[int, Place] = field(default_factory=dict)
    """The places after it, by their first token."""


@dataclass(frozen=True, slots=True)
class Worth:
    """A place that is worth publishing: the tokens in whole blocks, and what that saves beside those before it."""

    place: Place
    tokens: int
    saved: int


class PrefixTree:
    """The tree of all prompts that were added."""

    def __init__(self) -> None:
        self._root = Place(array("I"), 0, 0)

    def add(self, ids: array[int], line: int) -> int:
        """Add a prompt, and return how many of its tokens an earlier one begins with as well."""
        place, at = self._root, 0
        place.requests += 1
        while at < len(ids):
            below = place.below.get(ids[at])
            if below is None:
                place.below[ids[at]] = Place(ids[at:], len(ids), line, 1)
                return at
            shared = alike(below.ids, ids[at : at + len(below.ids)])
            if shared < len(below.ids):
                below = self._split(place, below, shared)
            below.requests += 1
            place, at = below, at + shared
        return at

    @staticmethod
    def _split(above: Place, below: Place, shared: int) -> Place:
        """Put a place between two, after the first `shared` tokens of the lower one."""
        between = Place(below.ids[:shared], below.depth - len(below.ids) + shared, below.line, below.requests)
        below.ids = below.ids[shared:]
        between.below[below.ids[0]] = below
        above.below[between.ids[0]] = between
        return between

    @property
    def tokens(self) -> int:
        """The tokens of the tree: each prefix counted once."""
        return sum(len(place.ids) for place in self._places())

    def _places(self) -> Iterator[Place]:
        todo = [self._root]
        while todo:
            place = todo.pop()
            todo.extend(place.below.values())
            yield place

    def worth_publishing(self, block_tokens: int, most: int) -> list[Worth]:
        """Return up to `most` places, each the one that saves most beside those before it.

        Only whole blocks are shared.  Publishing computes once what it adds to the published prefix before it.
        """
        chosen: dict[int, int] = {}  # id of a place -> its tokens in whole blocks
        out: list[Worth] = []
        while len(out) < most:
            found = self._best(block_tokens, chosen)
            if found is None:
                break
            chosen[id(found.place)] = found.tokens
            out.append(found)
        return out

    def _best(self, block_tokens: int, chosen: dict[int, int]) -> Worth | None:
        best: Worth | None = None
        covered: dict[int, int] = {}  # id of a place -> prompts through it that a chosen place at or below it serves
        order: list[tuple[Place, int]] = []  # with the tokens of the chosen place above
        todo: list[tuple[Place, int]] = [(self._root, 0)]
        while todo:
            place, above = todo.pop()
            order.append((place, above))
            own = max(above, chosen.get(id(place), 0))
            todo += [(below, own) for below in place.below.values() if below.requests > 1]
        for place, above in reversed(order):
            served = sum(covered.get(id(below), 0) for below in place.below.values())
            if id(place) in chosen:
                covered[id(place)] = place.requests
                continue
            covered[id(place)] = served
            tokens = place.depth // block_tokens * block_tokens
            saved = (place.requests - served - 1) * (tokens - above)
            if tokens > above and saved > 0 and (best is None or saved > best.saved):
                best = Worth(place, tokens, saved)
        return best
