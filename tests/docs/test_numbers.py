"""Numbers that pages say of the tests are those of the tests."""

from __future__ import annotations

import re

from tests.attacks.kit import ATTACKS, EXACTNESS_CLAIMS
from tests.families import FAMILIES
from tests.support import ROOT


def test_pages_count_as_the_tests_do() -> None:
    security = (ROOT / "docs" / "security.md").read_text()
    faults = (ROOT / "docs" / "results" / "faults.md").read_text()
    assert re.findall(r"artifacts of (\d+) families", security) == [str(len(FAMILIES))]
    assert re.findall(r"each of (\d+) claims on each of (\d+) lies", faults) == [
        (str(len(EXACTNESS_CLAIMS)), str(len(ATTACKS)))
    ]
