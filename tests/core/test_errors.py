from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvswap.core import errors
from kvswap.core.errors import KvswapError, NotFound, PlanSaysPrefill
from kvswap.core.text import is_printable


def kinds(kind: type[KvswapError] = KvswapError) -> list[type[KvswapError]]:
    return [kind] + [k for child in kind.__subclasses__() for k in kinds(child)]


def test_every_error_survives_the_wire() -> None:
    for kind in kinds():
        back = KvswapError.from_dict(kind("what", cause="why", hint="how", field="x").to_dict())
        assert type(back) is kind
        assert (back.message, back.cause, back.hint, back.details) == ("what", "why", "how", {"field": "x"})


def test_codes_are_unique_and_exit_codes_are_the_documented_ones() -> None:
    codes = [k.code for k in kinds()]
    assert len(codes) == len(set(codes))
    assert {k.exit_code for k in kinds()} <= {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 130}
    assert NotFound.exit_code == 5
    assert PlanSaysPrefill.exit_code == 8
    assert errors.StoreLocked.exit_code == 11


def test_an_unknown_code_is_still_an_error() -> None:
    assert type(KvswapError.from_dict({"code": "from the future", "message": "m"})) is KvswapError


@given(st.text(max_size=40), st.integers(1, 3_000), st.sampled_from(kinds()))
def test_whatever_is_in_a_message_it_is_one_line_of_bounded_length(
    part: str, times: int, kind: type[KvswapError]
) -> None:
    error = kind(f"a name {part * times}", cause=part * times, hint=part * times)
    for text in (str(error), error.message, error.cause, error.hint):
        assert is_printable(text) and len(text) <= kind.longest + 2
    short = part if is_printable(part) else "é"
    assert kind(short).message == short
