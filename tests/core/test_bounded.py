"""Bounded tables: whatever is put, bounds hold; what is kept stays; one sender pushes out only its own."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kvswap.core.bounded import Table, Tables, approximate_bytes
from kvswap.core.rows import RowBounds, Rows
from kvswap.net.messages import Provider

_OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "put", "held", "get", "pop", "keep", "release"]),
        st.integers(0, 30),
        st.integers(0, 400),
        st.sampled_from("abcd"),
    ),
    max_size=200,
)


def _made(**more: object) -> Table[int, bytes]:
    return Table("t", entries=8, nbytes=8_000, size=lambda key, value: len(value), **more)  # type: ignore[arg-type]


@given(_OPERATIONS)
@settings(deadline=None)
def test_bounds_hold_and_the_books_agree_after_every_operation(operations):
    table = _made(per_sender=3, bytes_per_sender=1_500)
    for what, key, size, sender in operations:
        if what in ("put", "held"):
            table.put(key, bytes(size), sender, held=what == "held")
        else:
            getattr(table, what)(key)
        assert len(table) <= 8
        filling = table.filling()
        assert filling.bytes == sum(len(v) + 256 for v in table.values()) <= 8_000
        assert all(table.count_of(t) <= 3 or key in table for t in "abcd")
        loose = [k for k in table if not table._entries[k].kept]
        assert sorted(k for told in table._by_sender.values() for k in told) == sorted(loose)
        assert sorted([*loose, *table._kept]) == sorted(table)
        assert {t: n for n, ts in table._ranks.items() for t in ts} == {
            t: len(ks) for t, ks in table._by_sender.items()
        }
        assert table._most == max((len(ks) for ks in table._by_sender.values()), default=0)


@given(_OPERATIONS, st.sets(st.integers(0, 30), max_size=6))
@settings(deadline=None)
def test_what_the_rule_keeps_is_never_pushed_out_by_what_is_not_kept(operations, kept):
    table = _made(per_sender=3, keep=lambda key, value: key in kept)
    for key in kept:
        assert table.put(key, b"", "first")
    for _, key, size, sender in operations:
        if key not in kept:
            table.put(key, bytes(size), sender)
        assert kept <= set(table)


def test_one_teller_pushes_out_only_its_own():
    table = _made(per_sender=2)
    table.put(0, b"", "quiet")
    for key in range(1, 100):
        assert table.put(key, b"", "loud")
    assert sorted(table) == [0, 98, 99]


def test_of_a_full_table_the_teller_that_fills_most_gives_way():
    table = _made()
    table.put(0, b"", "quiet")
    for key in range(1, 100):
        table.put(key, b"", f"loud {key % 2}")
    assert 0 in table
    assert len(table) == 8


def test_of_tellers_alike_what_was_used_longest_ago_gives_way():
    table = _made()
    for key in range(8):
        table.put(key, b"", str(key))
    table.get(0)
    table.put(8, b"", "8")
    assert 0 in table and 1 not in table


def test_full_of_what_is_kept_nothing_that_is_not_kept_comes_in():
    table = _made()
    for key in range(8):
        table.put(key, b"", held=True)
    assert not table.put(8, b"")
    assert table.filling().refused == 1
    assert table.put(9, b"", held=True)  # the bound holds for what is kept as well
    assert len(table) == 8
    table.release(3)
    assert table.put(10, b"") and 3 not in table


def test_what_is_no_longer_kept_gives_way():
    kept = set(range(8))
    table = _made(keep=lambda key, value: key in kept)
    for key in range(8):
        table.put(key, b"")
    assert not table.put(8, b"")
    kept.remove(5)
    assert table.put(8, b"")
    assert 5 not in table


def test_a_value_too_large_is_refused_and_what_was_there_stays():
    table = _made(bytes_per_sender=1_000)
    table.put(1, b"x", "a")
    assert not table.put(1, bytes(2_000), "a")
    assert table.peek(1) == b"x"
    assert table.filling().refused == 1


def test_what_gives_way_is_told():
    gone = []
    table = _made(removed=lambda key, value: gone.append(key))
    for key in range(10):
        table.put(key, b"", "a")
    table.pop(9)
    assert gone == [0, 1]


def test_rows_are_bounded_and_shared():
    rows = Rows[str]("r", RowBounds(entries=100, per_row=4, per_sender_in_row=2))
    rows.put("doc", "honest", "here", "honest")
    for n in range(50):
        rows.put("doc", f"made up {n}", "there", f"liar {n % 3}")
    assert rows.row("doc")["honest"] == "here"
    assert len(rows.row("doc")) == 4
    for n in range(50):
        rows.put("doc 2", f"made up {n}", "there", "liar")
    assert list(rows.row("doc 2")) == ["made up 48", "made up 49"]
    rows.pop("doc 2", "made up 48")
    rows.pop("doc 2", "made up 49")
    assert "doc 2" not in rows


def test_a_row_keeps_what_is_held():
    rows = Rows[int]("r", RowBounds(entries=100, per_row=4))
    for n in range(4):
        rows.put("doc", f"held {n}", n, "a", held=True)
    assert not rows.put("doc", "new", 9, "b")
    rows.release("doc", "held 2")
    assert rows.put("doc", "new", 9, "b")
    assert list(rows.row("doc")) == ["held 0", "held 1", "held 3", "new"]


@given(st.lists(st.tuples(st.sampled_from(["put", "held", "pop"]), *[st.integers(0, 6)] * 3), max_size=200))
@settings(deadline=None)
def test_rows_and_their_table_agree(operations):
    rows = Rows[int]("r", RowBounds(entries=9, per_row=3, per_sender_in_row=2))
    for what, row, column, sender in operations:
        if what == "pop":
            rows.pop(row, str(column))
        else:
            rows.put(row, str(column), 1, str(sender), held=what == "held")
        assert sorted((r, c) for r in rows.names() for c in rows.row(r)) == sorted(rows.table)
        assert len(rows) <= 9 and all(len(rows.row(r)) <= 3 for r in rows.names())


def test_a_registry_says_how_full_they_are():
    tables = Tables()
    table = _made()
    tables.add(table, Rows[int]("rows", RowBounds(entries=1, per_row=1)))
    table.put(1, b"abc")
    assert [(f.name, f.entries, f.most_entries) for f in tables.fillings()] == [("rows", 0, 1), ("t", 1, 8)]
    assert tables.fillings()[1].to_json()["bytes"] == 3 + 256


def test_weigh_counts_what_a_value_holds():
    provider = Provider("p" * 50, ["/ip4/" + "1" * 200] * 8)
    assert approximate_bytes([provider]) > 8 * 200 + 50
    assert approximate_bytes({"a": (b"x" * 1_000,)}) > 1_000
