"""Of the twenty models that are used most, all but one are exchanged, and tested."""

from __future__ import annotations

import transformers

from kvswap.model.families import FAMILIES
from kvswap.model.named import NAMED
from kvswap.model.page import page
from tests import families as tiny


def test_each_is_tested_or_refused_by_name() -> None:
    built = {getattr(transformers, kind).model_type for kind, _ in tiny.FAMILIES.values()}
    refused = {name for name, kind in NAMED.items() if FAMILIES[kind].refused}
    assert len(NAMED) == 20 and refused == {"DeepSeek V4"}
    assert {kind for name, kind in NAMED.items() if name not in refused} <= built


def test_the_page_says_what_becomes_of_each() -> None:
    lines = page().splitlines()
    for name, kind in NAMED.items():
        line = next(line for line in lines if line.startswith(f"| {name} | `{kind}` |"))
        assert line.endswith("| yes |") or FAMILIES[kind].refused in line
