"""What was checked and what was not, in words."""

from __future__ import annotations

import pytest

from kvswap.core.words import LEVELS, in_words, verified
from kvswap.trust.levels import Level


def test_each_level_has_its_words() -> None:
    assert [level.words for level in Level] == list(LEVELS) and len(set(LEVELS)) == len(Level)
    assert in_words("V5: it differs; V2") == "sampled positions: it differs; structure"
    assert in_words("DeepSeek V32, V8, xV5") == "DeepSeek V32, V8, xV5"


@pytest.mark.parametrize(
    ("passed", "said"),
    [
        (["V0", "V1"], "signed by ada, every chunk unchanged; not checked: whether it belongs to this text"),
        (
            ["V0", "V1", "V2", "V3"],
            "signed by ada, every chunk unchanged, layer 0 is that of its text; not checked: the layers above the first",
        ),
        (
            ["V0", "V1", "V2", "V3", "V5"],
            "signed by ada, every chunk unchanged, layer 0 is that of its text, "
            "sampled positions of every layer computed again; not checked: the positions that were not sampled",
        ),
        (["V0", "V1", "V7"], "signed by ada, every chunk unchanged, all of it computed again"),
    ],
)
def test_it_is_said_what_was_checked_and_what_was_not(passed: list[str], said: str) -> None:
    assert verified(passed, "ada", trusted=True) == said
    assert verified(passed, "ada", trusted=False) == said.replace("by ada", "by ada, who is not trusted")
