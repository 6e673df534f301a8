"""The JSON contract: what every verb answers has the keys and kinds of values that are recorded.

A key that is added is recorded by `python -m tests.api.scenario tests/api/contract.json`; none goes, and none changes.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.api.scenario import nodes, shapes, walk
from tests.api.shapes import differences, either, shape_of

RECORDED = json.loads(Path(__file__).with_name("contract.json").read_text())


def test_every_verb_answers_as_recorded(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    with nodes(tmp_path, tiny_models["llama"]) as given:
        found = shapes(walk(tmp_path, *given))
    answers = {name for name in found if ": " not in name}
    assert answers == {name for name in RECORDED if ": " not in name}
    unknown = {name for name in found.keys() - RECORDED.keys() if not name.startswith("events: ")}
    assert unknown == set()
    for name in sorted(found.keys() & RECORDED.keys()):
        assert differences(found[name], RECORDED[name], name) == []


def test_differences_are_seen() -> None:
    recorded = either(shape_of({"a": 1, "b": {"12D3KooWx": 1.5}}), shape_of({"a": None, "b": {}, "c": [1]}))
    for same in ({"a": 1, "b": {}}, {"a": None, "b": {"12D3KooWy": 0.5}, "c": []}):
        assert differences(shape_of(same), recorded) == []
    for other, why in (
        ({"b": {}}, ".a: is missing"),
        ({"a": "1", "b": {}}, ".a: str"),
        ({"a": 1, "b": {}, "d": 0}, ".d: is new"),
        ({"a": 1, "b": {"12D3KooWx": 1}}, ".b.*: int"),
        ({"a": 1, "b": {}, "c": [""]}, ".c[]: str"),
    ):
        (said,) = differences(shape_of(other), recorded)
        assert why in said
