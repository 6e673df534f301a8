"""A publisher's key is replaced: the old one names the new one, and who trusts the old one follows."""

from __future__ import annotations

from pathlib import Path

from kvswap.core.ids import Cid
from kvswap.exchange import Node
from kvswap.exchange.rotate import rotate
from kvswap.exchange.verification.status_records import own_status_record, receive_status_records, status_records_of
from kvswap.exchange.withdraw import withdraw
from kvswap.trust.keys import load_or_create, write_private
from kvswap.trust.status_record import read_status_record
from tests.exchange.test_fetch import World, world
from tests.support import key, make_artifact, run

OLD = key(1000)  # of the first node of a world
PEER = str(key(4000).peer_id)


async def publisher_of(w: World) -> Node:
    """The first node of a world, with its key on the disk as a daemon has it."""
    node = await w.node(trust=False)
    node.identity.publisher_file.parent.mkdir(parents=True, exist_ok=True)
    write_private(node.identity.publisher_file, OLD.seed.hex() + "\n")
    return node


def test_both_keys_sign_and_the_new_one_is_the_node_s(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            node = await publisher_of(w)
            made = make_artifact(OLD)
            w.give(node, made)
            done = rotate(node)
            new = node.identity.publisher
            assert done["old"] == str(OLD.peer_id) and done["new"] == str(new.peer_id) != done["old"]  # type: ignore[union-attr]
            (envelope,) = status_records_of(node, [done["old"]])
            told = read_status_record(envelope).record
            assert told.publisher == done["old"] and told.sequence == done["sequence"]
            assert told.successor is not None and told.successor.peer == done["new"]
            told_of = node.events.recent()[-1]
            assert (told_of["event"], told_of["old"], told_of["new"]) == ("rotated", done["old"], done["new"])
            assert node.trust.policy.policy.trusts(done["old"])  # what it published before is still its own
            following = own_status_record(node)
            assert following is None or following.head.publisher == done["new"]

    run(body())


def test_the_key_on_disk_is_the_new_one_and_the_old_one_is_kept(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            node = await publisher_of(w)
            done = rotate(node)
            file = node.identity.publisher_file
            assert str(load_or_create(file).peer_id) == done["new"]
            kept = [load_or_create(path).peer_id for path in sorted((file.parent / "retired").iterdir())]
            assert str(node.identity.retired[done["old"]].peer_id) == done["old"]
            assert file.stat().st_mode & 0o077 == 0 and all(str(peer) != done["new"] for peer in kept)
            again = rotate(node)
            assert again["old"] == done["new"] and set(node.identity.retired) == {done["old"], again["old"]}

    run(body())


def test_who_trusts_the_old_key_follows_and_nobody_else(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            publisher, reader, other = await publisher_of(w), await w.node(trust=False), await w.node(trust=False)
            reader.trust.policy.add(str(OLD.peer_id), "ada")
            done = rotate(publisher)
            for node in (reader, other):
                receive_status_records(node, status_records_of(publisher, [done["old"]]), PEER)
            assert reader.trust.policy.policy.trusts(done["new"]) and not other.trust.policy.policy.trusts(done["new"])
            rows = {row["peer"]: row for row in reader.trust.policy.rows()}
            assert rows[done["new"]]["how"].startswith("after")

    run(body())


def test_what_was_withdrawn_stays_withdrawn_under_the_old_key(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            node = await publisher_of(w)
            gone, kept = make_artifact(OLD, seed=1), make_artifact(OLD, seed=2)
            for made in (gone, kept):
                w.give(node, made)
            await withdraw(node, Cid.parse(gone.id), "a typing error")
            done = rotate(node)
            (envelope,) = status_records_of(node, [done["old"]])
            assert read_status_record(envelope).record.reasons == {gone.id: "a typing error"}

    run(body())
