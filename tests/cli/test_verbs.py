"""The top of the command line: verbs in groups, what was meant by a typing error, sizes."""

from __future__ import annotations

import warnings

import click
import pytest
from click.testing import CliRunner

from kvswap.cli.main import GROUPS, VERBS, cli
from kvswap.cli.objective import Bytes, lossy_option, untrusted_option


def test_every_verb_is_in_one_group_and_in_the_help() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(VERBS)
    shown = CliRunner().invoke(cli, ["--help"]).output
    for heading, names in GROUPS.items():
        assert f"{heading}:" in shown
        assert all(f"\n  {name} " in shown for name in names)


@pytest.mark.parametrize(("typed", "meant"), [("ftch", "fetch"), ("stauts", "status"), ("xyzzy", None)])
def test_a_typing_error_names_the_verb_that_is_like_it(typed: str, meant: str | None) -> None:
    done = CliRunner().invoke(cli, [typed])
    assert done.exit_code == 2 and f"No such command '{typed}'" in done.output
    assert ("Did you mean" in done.output) is (meant is not None)
    assert meant is None or f"'{meant}'" in done.output


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("5", 5), ("10G", 10**10), ("1.5k", 1500), ("500 MB", 5 * 10**8), ("2GiB", 2 << 30), ("1T", 10**12)],
)
def test_sizes(text: str, number: int) -> None:
    assert Bytes(0, 10**18).convert(text, None, None) == number


@pytest.mark.parametrize("text", ["", "G", "-1", "-1G", "1X", "1e9", "9" * 18 + "T", "1.5", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Bytes(0, 10**18).convert(text, None, None)


@pytest.mark.parametrize(
    ("typed", "taken"),
    [
        ([], (False, False)),
        (["--allow-untrusted", "--allow-lossy"], (True, True)),
        (["--strangers"], (True, False)),
        (["--inexact", "--allow-lossy"], (False, True)),
    ],
)
def test_flags_work_by_their_old_names_and_show_the_new(typed: list[str], taken: tuple[bool, bool]) -> None:
    @click.command()
    @untrusted_option()
    @lossy_option()
    def verb(allow_untrusted: bool, allow_lossy: bool) -> None:
        assert (allow_untrusted, allow_lossy) == taken

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        CliRunner().invoke(verb, typed, catch_exceptions=False)
    old = [word for word in typed if word in ("--strangers", "--inexact")]
    assert [str(w.message).split()[0] for w in told if w.category is DeprecationWarning] == old
    shown = CliRunner().invoke(verb, ["--help"]).output
    assert "--allow-untrusted" in shown and "--allow-lossy" in shown
    assert "--strangers" not in shown and "--inexact" not in shown
