"""Every kind of layer against every lie about it: each is caught by the level that docs/security.md names."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvswap.trust.accusation import accuses
from kvswap.trust.figures import micro
from kvswap.trust.intervals import drawn, intervals_of
from tests.attacks.kinds import ATTACKS, KINDS, KindScene, climbed, signed
from tests.worker.honest import Shelf

DOCS = Path(__file__).parents[2] / "docs" / "security.md"
LEVELS = [2, 3, 5, 7]
# The level that catches it first, and of some kinds another; V5 (all intervals, or 32 positions) and V7 catch all.
CAUGHT_BY: dict[str, tuple[str, dict[str, str]]] = {
    "swapped span": ("V3", {"sliding": "V5", "shared layers": "V5"}),
    "swapped history": ("V5", {"delta net": "V3", "Mamba 2": "V3", "short convolution": "V3"}),
    "nudged at the end": (
        "V3",
        {"delta net": "V5", "Mamba 2": "V5", "short convolution": "V5", "K/V and state": "V5"},
    ),
    "wrong at an inner checkpoint": (
        "V5",
        {"dense": "V3", "ALiBi": "V3", "latent": "V3", "latent and index": "V3"},
    ),
    "zeroed tensor": ("V5", {}),
    "reordered checkpoints": ("V5", {"dense": "V3", "ALiBi": "V3", "latent": "V3", "latent and index": "V3"}),
    "other text": ("V3", {}),
    "slightly other model": (
        "V5",
        {"delta net": "V3", "Mamba 2": "V3", "short convolution": "V3", "latent and index": "-"},
    ),
}
FEW = ("delta net",)
MANY = [kind for kind in KINDS if kind not in FEW]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("kinds"), noise_tokens=512)


def catches(scene: KindScene, lie: str) -> str:
    found = climbed(scene, ATTACKS[lie](scene), LEVELS)
    if all(step.verdict == "passed" for step in found.values()):
        return "-"
    assert found["V7"].verdict == "failed" and accuses(found["V7"]), (lie, found["V7"])
    first = next(name for name, step in found.items() if step.verdict == "failed")
    assert accuses(found[first])
    assert found["V5"].verdict == "failed" and accuses(found["V5"]), (lie, found["V5"])
    return first


def attack_all(shelf: Shelf, kind: str) -> dict[str, str]:
    scene = KindScene.of(shelf, KINDS[kind])
    assert {step.verdict for step in climbed(scene, scene.honest, LEVELS).values()} == {"passed"}
    return {lie: catches(scene, lie) for lie in ATTACKS}


def promised(kind: str) -> dict[str, str]:
    return {lie: others.get(kind, usual) for lie, (usual, others) in CAUGHT_BY.items()}


@pytest.mark.parametrize("kind", FEW)
def test_lies_about_windows_and_states_are_caught(shelf: Shelf, kind: str) -> None:
    assert attack_all(shelf, kind) == promised(kind)


@pytest.mark.model
@pytest.mark.parametrize("kind", MANY)
def test_lies_about_every_kind_are_caught(shelf: Shelf, kind: str) -> None:
    assert attack_all(shelf, kind) == promised(kind)


def table() -> str:
    """The table of docs/security.md."""
    lines = ["| lie | " + " | ".join(KINDS) + " |", "|---" * (len(KINDS) + 1) + "|"]
    lines += [f"| {lie} | " + " | ".join(promised(kind)[lie] for kind in KINDS) + " |" for lie in ATTACKS]
    return "\n".join(lines)


def test_the_table_in_the_docs_is_this_one() -> None:
    assert set(CAUGHT_BY) == set(ATTACKS)
    assert table() in DOCS.read_text()


def test_a_wrong_inner_checkpoint_is_caught_as_often_as_was_told(shelf: Shelf) -> None:
    """Two of five intervals are drawn, and two show this lie: the one that ends there and the one that begins there."""
    scene = KindScene.of(shelf, KINDS["delta net"])
    lie, every = ATTACKS["wrong at an inner checkpoint"](scene), intervals_of(scene.manifest)
    assert len(every) == 5
    statement, _ = signed(scene, lie)
    for number in range(6):
        seed = bytes([number]) * 32
        draw = drawn(scene.manifest, seed, bytes(statement.artifact), 32)
        shows = {every[1], every[2]} & set(draw.intervals)
        found = climbed(scene, lie, [5], samples=32, seed=seed)["V5"]
        assert found.verdict == ("failed" if shows else "passed") and found.figures.chance == micro(round(1 / 3, 4))
        assert found.figures.of_intervals == 5


def test_what_a_peer_keeps_back_is_said_and_accuses_nobody(shelf: Shelf) -> None:
    scene = KindScene.of(shelf, KINDS["delta net"])
    found = climbed(scene, scene.honest, [5], without=(1, scene.resumed_with()[0]))["V5"]
    assert found.verdict == "skipped" and "not here" in found.why
