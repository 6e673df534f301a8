from __future__ import annotations

import pytest
import torch

from kvswap.artifact.fingerprint import fingerprint
from kvswap.artifact.specs import LayerSpec, TensorSpec
from kvswap.artifact.tensors import LayerTensors
from kvswap.core.errors import Incompatible
from kvswap.trust.agreement import apart


def test_states_have_a_row_each_and_tokens_one_for_each_64() -> None:
    spec = LayerSpec(
        "full+state",
        (*LayerSpec.key_value("full", 2, 8, 4).tensors, TensorSpec("recurrent.0", "checkpoint", (2, 70, 5), "float32")),
    )
    tensors = (torch.randn(2, 130, 8), torch.randn(2, 130, 4), torch.randn(2, 70, 5))
    mark = fingerprint([LayerTensors(spec, tensors, 0, 130)])
    assert len(mark) == (3 * 2 + 1) * 8 * 2
    other = fingerprint([LayerTensors(spec, (*tensors[:2], -tensors[2]), 0, 130)])
    far = apart(other, mark, (2, 1))
    assert far.shape == (3, 3, 1) and (far[:, :2] == 0).all() and (far[:, 2] > 1.9).all()


def test_a_tensor_that_would_need_gigabytes_of_signs_is_refused() -> None:
    """Keys of one token, as wide as a chunk may be: signs are made for 64 tokens."""
    wide = torch.zeros(1 << 9, 1, 1 << 13)
    with pytest.raises(Incompatible, match="too wide"):
        fingerprint([LayerTensors.key_value(wide, wide[:, :, :1], 0, 1)])
