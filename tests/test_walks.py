"""The walks of use cases are straight, but for returns with a reason, and written down as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvswap.exchange.fetch import fetch
from kvswap.exchange.request import STRICT
from tests.exchange.test_fetch import DOCUMENT, world
from tests.support import make_artifact, run
from tests.walking import Walk, walking
from tests.walks import exchange_walks, progress, tool

WALKS = tool().load()


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, Path]) -> dict[str, Walk]:
    return exchange_walks(tmp_path_factory.mktemp("walks"), tiny_models["llama"])


@pytest.mark.parametrize("name", ["publish", "fetch", "ask"])
def test_a_walk_is_as_it_is_written_down(name: str, traced: dict[str, Walk]) -> None:
    walk, written = traced[name], WALKS[name]
    said = "python -m tests.walks; the calls:\n" + "\n".join(walk.calls)
    assert walk.files == written["files"], said
    assert walk.again.keys() == written["again"].keys(), said


def test_what_is_entered_again_has_a_reason_and_no_reason_is_idle() -> None:
    assert {(name, file) for name, walk in WALKS.items() for file in walk["again"]} == tool().WHY.keys()


def test_picture_and_page_are_made_from_the_walks() -> None:
    assert tool().main(check=True) == 0


def test_the_picture_has_a_ring_for_every_return() -> None:
    in_legend = 1
    assert tool().PICTURE.read_text().count('class="ring ') == in_legend + len(tool().WHY)


def test_every_use_case_has_a_walk() -> None:
    assert list(WALKS) == list(tool().USE_CASES)


def test_the_files_are_in_an_order_in_which_every_walk_goes_down() -> None:
    made = tool()
    for folder in {folder for _, folder, _ in made.USE_CASES.values()}:
        lists = [WALKS[name]["files"] for name, (_, of, _) in made.USE_CASES.items() if of == folder]
        steps = [[file for file in files if not made.is_part(file)] for files in lists]
        order = made.merged(steps)
        assert all(files == sorted(files, key=order.index) for files in steps)


def test_a_fetch_of_what_is_here_is_straight(tmp_path: Path) -> None:
    async def body() -> Walk:
        async with world(tmp_path) as w:
            reader = await w.node()
            w.give(reader, make_artifact(tokens=100))
            with walking("exchange", "fetch") as walk:
                await fetch(reader, DOCUMENT, STRICT, progress)
            return walk

    walk = run(body())
    assert walk.again == {} and walk.files[:2] == ["transfer/choosing", "discovery/resolve"]
