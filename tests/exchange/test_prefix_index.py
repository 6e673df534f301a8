from __future__ import annotations

import hashlib
import math
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from kvswap.exchange.node.prefix_index import OwnPrefixIndex, PrefixIndexes, holds, longest, pack_keys
from kvswap.net import messages
from kvswap.store import Store
from tests.support import identity, key, make_artifact, stock


def digest(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


@given(st.sets(st.integers(0, 500), max_size=80), st.integers(0, 500))
def test_a_packed_catalogue_is_a_set(numbers: set[int], asked: int) -> None:
    keys = pack_keys([digest(n) for n in numbers])
    assert len(keys) == 8 * len(numbers)
    assert holds(keys, digest(asked)) == (asked in numbers)


@given(st.integers(0, 40), st.integers(0, 40))
def test_the_longest_match_is_the_common_beginning(common: int, rest: int) -> None:
    chain = [digest(n) for n in range(common + rest)]
    keys = pack_keys(chain[:common] + [digest(n) for n in range(1000, 1010)])
    assert longest(keys, chain) == common


def test_the_best_of_several_peers() -> None:
    held = PrefixIndexes()
    chain = [digest(n) for n in range(10)]
    assert held.best(chain) == (0, [])
    for peer, blocks in (("a", 3), ("b", 7), ("c", 7), ("d", 0)):
        held.put(peer, messages.PrefixIndexReply(1, pack_keys(chain[:blocks])))
    assert held.best(chain) == (7, ["b", "c"])
    held.put("b", messages.PrefixIndexReply(1, None))  # unchanged
    assert held.best(chain) == (7, ["b", "c"]) and not held.stale("b")
    held.expire("b")
    assert held.stale("b") and held.version("b") == 1


def test_the_own_catalogue_follows_the_store(tmp_path: Path) -> None:
    from kvswap.store import Store

    made = make_artifact(tokens=64, block_tokens=8)
    stock(tmp_path, made)
    store = Store.open(tmp_path / "store")
    own = OwnPrefixIndex(store)
    first = own.reply(0)
    assert first.keys is not None and longest(first.keys, made.manifest.prefix.chain) == 8
    assert own.reply(first.version).keys is None
    store.remove(made.id)
    assert own.reply(first.version).keys == b""
    store.close()


def test_what_has_expired_is_not_in_it(tmp_path: Path) -> None:
    from kvswap.store import Store

    stock(tmp_path, make_artifact(now=1_700_000_000))
    store = Store.open(tmp_path / "store")
    assert OwnPrefixIndex(store).reply(0).keys == b""
    store.close()


def test_what_is_withheld_takes_no_room_in_the_index(tmp_path: Path) -> None:
    """A publisher that is not trusted can sign tens of thousands of blocks, which nobody is told of."""
    old = make_artifact(key(7), tokens=24, text=b"older")
    new = make_artifact(key(8), tokens=800, text=b"newer", seed=1, model=identity("other"))
    stock(tmp_path, old)
    stock(tmp_path, new)
    store = Store.open(tmp_path / "store", 10**9)
    assert set(store.chain_digests(10)[0]) <= {*old.manifest.prefix.chain, *new.manifest.prefix.chain}
    for without, publishers in (({new.id}, ()), ((), {new.manifest.publisher})):
        digests, until = store.chain_digests(10, without, publishers)
        assert set(digests) == set(old.manifest.prefix.chain) and until == old.manifest.life.expires
    assert store.chain_digests(10, {new.id, old.id}) == ([], math.inf)
    store.close()
