"""Bit patterns of one width as those of another, and what is no part."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvswap.codec.parts import WORD, check_parts, narrowed, raw_length, widened
from kvswap.core.errors import Incompatible, IntegrityError

NARROW = ("bfloat16", "float16")


def test_narrowing_is_for_values_that_come_back() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).reshape(1, 256, 256)
    assert (narrowed([widened(every, "bfloat16")], "bfloat16") or [])[0].tobytes() == every.tobytes()
    finite = every[(every & 0x7C00) != 0x7C00].reshape(1, 2, -1)
    assert (narrowed([widened(finite, "float16")], "float16") or [])[0].tobytes() == finite.tobytes()
    third = np.full((1, 1, 1), 1 / 3, np.float32).view(np.uint32)
    assert narrowed([third], "bfloat16") is None and narrowed([third], "float16") is None


@pytest.mark.parametrize("narrow", NARROW)
@settings(max_examples=100, deadline=None)
@given(words=st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=8))
def test_what_is_narrowed_is_widened_to_every_bit_of_it(narrow: str, words: list[int]) -> None:
    part = np.array(words, np.uint32).reshape(1, -1, 1)
    out = narrowed([part], narrow)
    if out is not None:
        assert out[0].dtype == np.uint16 and np.array_equal(widened(out[0], narrow), part)
    if narrow == "bfloat16":
        assert (out is not None) is all(word & 0xFFFF == 0 for word in words)


@pytest.mark.parametrize("narrow", NARROW)
def test_one_value_of_one_part_that_does_not_fit_is_enough(narrow: str) -> None:
    ones = np.full((2, 3, 4), 1.0, np.float32).view(np.uint32)
    assert narrowed([ones, ones], narrow) is not None
    other = ones.copy()
    other[1, 2, 3] += 1
    assert narrowed([ones, other], narrow) is None


def test_the_length_of_parts_is_of_all_their_words() -> None:
    assert raw_length([np.zeros((2, 3, 4), np.uint16), np.zeros((1, 3, 5), np.uint32)]) == 48 + 60


@pytest.mark.parametrize("dtype", WORD)
def test_parts_are_heads_tokens_dimensions_of_one_length(dtype: str) -> None:
    word = WORD[dtype]
    check_parts([np.zeros((2, 7, 4), word), np.zeros((1, 7, 9), word)], dtype)
    other = np.uint32 if word is np.uint16 else np.uint16
    for wrong in (np.zeros((2, 7), word), np.zeros((2, 6, 4), word), np.zeros((2, 7, 4), other)):
        with pytest.raises(IntegrityError, match="head, token, dim"):
            check_parts([np.zeros((2, 7, 4), word), wrong], dtype)


def test_a_dtype_without_a_codec_is_told_by_its_field() -> None:
    with pytest.raises(Incompatible) as told:
        check_parts([np.zeros((1, 1, 1), np.uint8)], "float8_e4m3fn")
    assert told.value.details["field"] == "dtype"
