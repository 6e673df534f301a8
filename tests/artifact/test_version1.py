from __future__ import annotations

import msgspec
import pytest

from kvswap.artifact import version1
from kvswap.artifact.manifest import layout_of, version_of
from kvswap.artifact.specs import LayerGroup, LayerSpec, TensorSpec
from kvswap.core import wire
from tests.support import FULL, SLIDING, make_artifact

ALONE = TensorSpec("state", "checkpoint", (4, 4))


def test_what_fits_is_written_as_before() -> None:
    made = make_artifact(specs=(FULL, SLIDING, FULL))
    tree = wire.parse(made.manifest.encode())
    assert tree["version"] == 1 and tree["layout"]["runs"] == [[0, 2], [1]]
    assert tree["layout"]["layers"][1] == {"kind": "sliding", "heads": 2, "k_dim": 8, "v_dim": 4, "window": 6}
    assert set(tree["tensors"][0]) == {"k", "v"}
    layout = made.manifest.layout
    assert version1.layout_from(version1.layout_to(layout)) == layout
    assert version1.digests_from(version1.digests_to(made.manifest.tensors)) == made.manifest.tensors


@pytest.mark.parametrize(
    ("layer", "checkpoints"),
    [
        (FULL, [21]),
        (LayerSpec("full", (*FULL.tensors, TensorSpec("index", "token", (8,)))), []),
        (LayerSpec("state", (ALONE,)), [21]),
        (LayerSpec("full", (msgspec.structs.replace(FULL.tensors[0], dtype="float32"), FULL.tensors[1])), []),
        (LayerSpec("full", (FULL.tensors[0], msgspec.structs.replace(FULL.tensors[1], shape=(4, 8)))), []),
        (LayerSpec("full", tuple(reversed(FULL.tensors))), []),
        (LayerSpec("latent", FULL.tensors), []),
    ],
    ids=[
        "checkpoints",
        "a third tensor",
        "a state",
        "a dtype of its own",
        "other heads",
        "other order",
        "another kind",
    ],
)
def test_what_does_not_fit_is_of_the_newer_version(layer: LayerSpec, checkpoints: list[int]) -> None:
    groups = [LayerGroup((0,), tuple(tensor.name for tensor in layer.tensors))]
    layout = layout_of("bfloat16", "", [layer], groups, checkpoints)
    assert not version1.fits(layout) and version_of(layout) == 2
    assert version_of(layout_of("bfloat16", "", [FULL], groups)) == 1
