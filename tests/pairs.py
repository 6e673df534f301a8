"""Test cases that cover all pairs: any two values of any two axes occur together in one case at least."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence


def all_pairs(axes: Mapping[str, Sequence[str]], seed: int) -> list[dict[str, str]]:
    """Returns cases, a value for each axis, in which every pair of values of two axes occurs.

    Greedy: each case starts from a pair that is still missing and takes for every other axis, in random order, the
    value that brings the most missing pairs.  The same seed gives the same cases.
    """
    rng = random.Random(seed)
    names = list(axes)
    missing = {
        (one, a, other, b)
        for one, other in itertools.combinations(names, 2)
        for a, b in itertools.product(axes[one], axes[other])
    }

    def pair(one: str, a: str, other: str, b: str) -> tuple[str, str, str, str]:
        return (one, a, other, b) if names.index(one) < names.index(other) else (other, b, one, a)

    cases = []
    while missing:
        one, a, other, b = rng.choice(sorted(missing))
        case = {one: a, other: b}
        for name in rng.sample([n for n in names if n not in case], len(names) - 2):
            values = rng.sample(list(axes[name]), len(axes[name]))
            case[name] = max(values, key=lambda v: sum(pair(name, v, n, w) in missing for n, w in case.items()))
        for x, y in itertools.combinations(names, 2):
            missing.discard((x, case[x], y, case[y]))
        cases.append({name: case[name] for name in names})
    return cases
