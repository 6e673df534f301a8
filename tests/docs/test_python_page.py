"""The page of the Python client names every verb, with what it returns."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from kvswap import Client, api

PAGE = (Path(__file__).parents[2] / "docs/python.md").read_text()


def test_every_verb_is_there_with_what_it_returns() -> None:
    rows = [line.split("|")[1:3] for line in PAGE.splitlines() if line.startswith("| `")]
    returned = {verb: types for verbs, types in rows for verb in re.findall(r"`(\w+)`", verbs)}
    public = {n: f for n, f in inspect.getmembers(Client, inspect.isfunction) if not n.startswith("_")}
    assert returned.keys() == public.keys() - {"close"}
    for name, function in public.items():
        for kind in re.findall(r"api\.(\w+)", str(inspect.signature(function).return_annotation)):
            assert f"`{kind}`" in returned[name], name


def test_every_struct_that_it_names_is_one() -> None:
    named = set(re.findall(r"`([A-Z]\w+(?:Result|Event|Row|Check))`", PAGE))
    assert named and named <= set(api.__all__)
