"""Pieces make the tokens of the whole, each new one is tokenised once, and where that fails it is noticed."""

from __future__ import annotations

from array import array

from kvswap.advice.pieces import Pieces

MARK = "<|x|>"


def by_letters(text: str) -> list[int]:
    """Of each letter its number; a mark is one token, as an added token is."""
    return [number for part in text.replace(MARK, "\0").split() for number in map(ord, part)]


def joined(made: list[array[int]]) -> list[int]:
    return [token for part in made for token in part]


def test_pieces_are_cut_before_marks_and_tokenised_once() -> None:
    pieces = Pieces(by_letters, [MARK, ""])
    first, second = f"{MARK}one{MARK}two", f"{MARK}one{MARK}two{MARK}three"
    for text in (first, second, second):
        cut = pieces.cut(text)
        assert "".join(cut) == text and all(piece.startswith(MARK) for piece in cut)
        assert joined(pieces.tokens(cut)) == by_letters(text)
    assert pieces.tokenised == len(second)


def test_a_tokenizer_that_joins_over_marks_is_noticed() -> None:
    pieces = Pieces(lambda text: [len(text)], [MARK])  # no piece by itself has the whole's tokens
    text = f"{MARK}one{MARK}two"
    assert joined(pieces.tokens(pieces.cut(text))) == [len(text)]
    assert pieces.cut(text) == [text]


def test_without_marks_a_prompt_is_one_piece() -> None:
    pieces = Pieces(by_letters, [])
    assert pieces.cut("one two") == ["one two"]
    assert joined(pieces.tokens(["one two"])) == by_letters("one two")
