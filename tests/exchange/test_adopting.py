"""A manifest on disk that the index does not know is listed, or waits, or is set aside: only for what is wrong in it."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kvswap.artifact.dsse import PAYLOAD_TYPE
from kvswap.core.errors import Incompatible, IntegrityError, LocalFault, MalformedManifest, StoreFull, StoreLocked
from kvswap.core.failures import as_kvswap_error
from kvswap.exchange.node.listing import listing_of
from kvswap.store import Store
from kvswap.store.listing import Listing
from kvswap.trust import read_statement
from kvswap.trust.envelopes import open_signed, sign
from tests.exchange.test_fetch import world
from tests.store.test_store import put
from tests.support import Ingested, key, make_artifact, run

BUSY = sqlite3.OperationalError("database is locked")
BUSY.sqlite_errorcode = sqlite3.SQLITE_BUSY
DAMAGED = sqlite3.DatabaseError("database disk image is malformed")
DAMAGED.sqlite_errorcode = sqlite3.SQLITE_CORRUPT


def listing(envelope: bytes) -> Listing:
    return listing_of(read_statement(envelope))


def raising(error: Exception) -> Any:
    def reader(envelope: bytes) -> Listing:
        raise error.with_traceback(None)

    return reader


@pytest.fixture
def pinned(tmp_path: Path) -> Ingested:
    """A store with a pinned artifact, whose index was lost."""
    store, made = Store.open(tmp_path), make_artifact()
    put(store, made)
    store.pin(made.id, True)
    store.close()
    for path in tmp_path.glob("index.sqlite3*"):
        path.unlink()
    return made


def kept(root: Path) -> list[str]:
    return sorted(path.suffix for path in root.rglob("*") if path.suffix in (".kvm", ".pin"))


@pytest.mark.parametrize(
    "error",
    [
        StoreLocked("in use"),
        StoreFull("full"),
        LocalFault("permission denied"),
        as_kvswap_error(BUSY, "reading"),
        as_kvswap_error(DAMAGED, "reading"),
        Incompatible("of a newer version"),
        BUSY,
        PermissionError(13, "Permission denied"),
        RuntimeError("a fault"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_cannot_be_judged_now_waits_with_its_pin_and_is_told(
    tmp_path: Path, pinned: Ingested, error: Exception
) -> None:
    store = Store.open(tmp_path)
    store.read_with(raising(error))
    assert store.artifacts() == [] and kept(tmp_path) == [".kvm", ".pin"]
    assert not list((tmp_path / "quarantine").iterdir())
    assert pinned.id in store.problems["manifests"] and as_kvswap_error(error).message in store.problems["manifests"]
    store.read_with(listing)
    row = store.get_artifact(pinned.id)
    assert row is not None and row.pinned and row.complete and "manifests" not in store.problems
    store.close()


def test_what_had_to_wait_is_tried_again_by_the_upkeep(tmp_path: Path, pinned: Ingested) -> None:
    store, failures = Store.open(tmp_path), [StoreLocked("in use")]

    def reader(envelope: bytes) -> Listing:
        if failures:
            raise failures.pop()
        return listing(envelope)

    store.read_with(reader)
    assert store.get_artifact(pinned.id) is None
    store.maintain()
    assert store.get_artifact(pinned.id) is not None and "manifests" not in store.problems
    store.close()


@pytest.mark.parametrize("error", [IntegrityError("the signature is wrong"), MalformedManifest("it is cut off")])
def test_what_is_wrong_is_set_aside(tmp_path: Path, pinned: Ingested, error: Exception) -> None:
    store = Store.open(tmp_path)
    store.read_with(raising(error))
    assert store.artifacts() == [] and len(list((tmp_path / "quarantine").glob("*.kvm"))) == 1
    assert "manifests" not in store.problems
    store.close()


def test_a_manifest_of_a_newer_version_waits_for_a_newer_kvswap(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            node, made = await w.node(), make_artifact()
            fields = msgspec.msgpack.decode(open_signed(made.statement.envelope)[1])
            for changes in ({"version": 2}, {"something_new": 1}):
                newer = sign(msgspec.msgpack.encode(fields | changes), key(), PAYLOAD_TYPE)
                with pytest.raises(Incompatible) as told:
                    node._listing(newer)
                assert not isinstance(told.value, MalformedManifest) and "newer" in told.value.cause
            with pytest.raises(MalformedManifest):
                node._listing(b"cut off")
            spoiled = bytearray(newer)
            spoiled[-1] ^= 1
            with pytest.raises((MalformedManifest, IntegrityError)):
                node._listing(bytes(spoiled))

    run(body())
