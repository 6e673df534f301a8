"""The tree of prompts, against counting by hand: what is shared, and what publishing saves."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from kvswap.advice.tree import PrefixTree
from kvswap.model.chat import alike

PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), max_size=12)


def tree_of(prompts: list[list[int]]) -> tuple[PrefixTree, list[int]]:
    tree = PrefixTree()
    return tree, [tree.add(array("I", prompt), line) for line, prompt in enumerate(prompts, 1)]


@given(PROMPTS)
def test_each_prompt_shares_what_the_most_alike_before_it_has(prompts: list[list[int]]) -> None:
    tree, shared = tree_of(prompts)
    for number, prompt in enumerate(prompts):
        assert shared[number] == max((alike(prompt, other) for other in prompts[:number]), default=0)
    assert tree.tokens == len({tuple(prompt[:n]) for prompt in prompts for n in range(1, len(prompt) + 1)})


@given(PROMPTS, st.integers(1, 3))
def test_what_is_said_to_be_saved_is_saved(prompts: list[list[int]], block: int) -> None:
    tree, _ = tree_of(prompts)
    chosen = tree.worth_publishing(block, 4)
    published: list[list[int]] = []
    cost_before = sum(map(len, prompts))
    for worth in chosen:
        example = prompts[worth.place.line - 1][: worth.tokens]
        covered = max((len(p) for p in published if example[: len(p)] == p), default=0)
        published.append(example)
        left = sum(
            len(prompt) - max((len(p) for p in published if prompt[: len(p)] == p), default=0) for prompt in prompts
        )
        made = sum(
            len(p) - max((len(q) for q in published if q is not p and len(q) < len(p) and p[: len(q)] == q), default=0)
            for p in published
        )
        assert worth.tokens % block == 0 and worth.tokens > covered and worth.saved > 0
        assert cost_before - (left + made) >= sum(one.saved for one in chosen[: len(published)])


def test_the_common_beginning_comes_first_and_growing_ones_after_it() -> None:
    system = list(range(100))
    prompts = [[*system, 200 + n, *range(300, 350)] for n in range(20)]
    prompts += [[*prompts[0], *range(400, 420)]] * 3
    tree, _ = tree_of(prompts)
    first, second, *_ = tree.worth_publishing(10, 5)
    assert (first.tokens, first.place.requests, first.saved) == (100, 23, 22 * 100)
    assert second.place.requests in (3, 4) and second.tokens > 100


def test_nothing_is_worth_it_where_nothing_is_shared() -> None:
    tree, _ = tree_of([[1, 2, 3], [2, 3, 4]])
    assert tree.worth_publishing(1, 5) == []
    assert PrefixTree().worth_publishing(1, 5) == []
