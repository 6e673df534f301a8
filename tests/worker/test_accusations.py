"""Nobody who is honest is accused: every family x what a reader does x lengths x what is different at the reader's."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.families import FAMILIES
from tests.pairs import all_pairs
from tests.worker.honest import AXES, Shelf, condemned

SEED = int(os.environ.get("KVSWAP_TEST_SEED") or random.SystemRandom().randrange(10**6))
CORE = ("llama", "gemma3-80", "gpt2", "deepseek-v3")  # of those that were condemned once, and one that never was


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def accused(shelf: Shelf, cases: list[dict[str, str]]) -> list[str]:
    out = []
    for case in cases:
        if said := condemned(shelf, case):
            out.append(f"{case}: {said}")
    return out


@pytest.mark.parametrize("family", CORE)
def test_an_honest_publisher_is_not_accused(tmp_path: Path, family: str) -> None:
    print(f"KVSWAP_TEST_SEED={SEED}")
    few = {"family": (family,), "length": ("block + 1", "window"), "extent": ("whole",)}
    cases = all_pairs({**AXES, **few, "reader": ("same", "no text", "wrong text")}, SEED)
    assert accused(Shelf(tmp_path, noise_tokens=256), cases) == []


def test_a_window_that_moves_during_an_answer_accuses_nobody(tmp_path: Path) -> None:
    """The document fits the window of 512 tokens of layer 0, the answer goes beyond it."""
    case = {"family": "gemma3-512", "way": "ask", "length": "window - 1"}
    cases = [case | {"extent": extent, "reader": "same"} for extent in ("whole", "prefix")]
    assert accused(Shelf(tmp_path), cases) == []


@pytest.mark.faults
def test_no_pair_of_circumstances_makes_an_accusation(tmp_path: Path) -> None:
    print(f"KVSWAP_TEST_SEED={SEED}")
    rng = random.Random(SEED)
    shelf = Shelf(tmp_path, {family: rng.choice(("float32", "bfloat16")) for family in FAMILIES})
    assert accused(shelf, all_pairs(AXES, SEED)) == []
