"""Something that is no file in the place of a file - a pipe, a socket, a directory, a device - holds nobody up."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvswap.core.errors import IntegrityError, KvswapError, NotFound, Unexpected, UsageError
from kvswap.core.failures import as_kvswap_error
from kvswap.core.ids import Cid
from kvswap.core.log import start_log
from kvswap.core.runfile import RunFile
from kvswap.core.settings import Settings
from kvswap.cost import Calibration
from kvswap.exchange import Node
from kvswap.exchange.node.identity import keys_of
from kvswap.host.run import _salts, host_key, usage_log_of, written_url
from kvswap.store import Home, Store
from kvswap.store.files import chunk_reader
from kvswap.trust import PolicyFile
from kvswap.trust.keys import Key, private_text, write_private
from tests.store.homes import old_home
from tests.support import Daemon, NoModel, kvswap

_SECONDS = 600.0  # far more than any of it takes, and far less than for ever


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = os.open(path.parent, os.O_RDONLY)  # the name of a socket is short, the path of a test is not
        try:
            made.bind(f"/proc/self/fd/{here}/{path.name}")
        finally:
            os.close(here)


KINDS: dict[str, Callable[[Path], None]] = {
    "pipe": lambda path: os.mkfifo(path, 0o600),
    "socket": _socket,
    "directory": lambda path: path.mkdir(mode=0o700),
    "device": lambda path: path.symlink_to("/dev/zero"),
}
kinds = pytest.mark.parametrize("kind", list(KINDS))


def instead(path: Path, kind: str) -> None:
    """Put it in the place of a file."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    KINDS[kind](path)


def within(doing: str, work: Callable[[], Any]) -> Any:
    """What `work` returns, or the error of ours that it ends in; it has to end."""
    out: list[Any] = []

    def run() -> None:
        try:
            out.append(work())
        except Exception as error:
            out.append(as_kvswap_error(error, doing))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(_SECONDS)
    assert not thread.is_alive(), f"{doing} does not end"
    assert not isinstance(out[0], Unexpected), (doing, out[0].message, out[0].origin)
    return out[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a file of every kind that kvswap keeps."""
    home, _ = old_home(tmp_path_factory.mktemp("whole"))
    (home / "expected.json").unlink()
    write_private(home / "keys" / "host.secret", "00" * 32 + "\n")
    (home / "keys" / "retired").mkdir(mode=0o700)
    retired = Key.generate()
    write_private(home / "keys" / "retired" / f"{retired.peer_id}.key", retired.seed.hex() + "\n")
    opened(home)
    usage_log_of(home).close()
    for name in ("config.toml", "daemon.json", "host.json", "kvswap.log", "reserve"):
        (home / name).touch(mode=0o600)
    for database in ("trust", "peers", "host", "store/index"):
        for kind in ("-wal", "-shm", "-journal"):
            (home / f"{database}.sqlite3{kind}").unlink(missing_ok=True)
    return home


def opened(home: Path) -> list[str]:
    """All that a node does with its home, without a network or a model; what it says is degraded."""
    held, store, node = Home(home), None, None
    try:
        start_log(home, stderr=False)
        logging.getLogger("kvswap.test").warning("said")
        Settings.load(home=str(home), env={})
        store = Store.open(home / "store")
        node_key, publisher = keys_of(home)
        policy = PolicyFile(home / "trust.json", publisher.peer_id)
        calibration = Calibration(home / "calibration.json", store.problems)
        settings = Settings(home=home, models=home / "models", p2p=False)
        node = Node(settings, store, None, NoModel(), publisher, policy, calibration, node_key)  # type: ignore[arg-type]
        for row in store.artifacts():
            node.files_of(row.id)
        store.verify()
        calibration.save()
        return list(map(str, store.problems))
    finally:
        start_log(None, stderr=False)
        if node is not None:
            node.ledger.close()
            node.trust.records.close()
        if store is not None:
            store.close()
        held.close()


def places(home: Path) -> list[str]:
    """Every file but the chunks, and those that SQLite makes beside its own."""
    files = {str(p.relative_to(home)) for p in home.rglob("*") if p.is_file() and "chunks" not in p.parts}
    logs = {f"{name}{kind}" for name in files if name.endswith(".sqlite3") for kind in ("-wal", "-shm", "-journal")}
    kept = [name for name in files if name.endswith((".kvm", ".pin"))]  # of many alike one is enough
    alike = {name for end in (".kvm", ".pin") for name in sorted(k for k in kept if k.endswith(end))[1:]}
    return sorted((files | logs) - alike)


@kinds
def test_a_home_with_something_else_in_the_place_of_a_file_is_opened_or_refused(
    whole: Path, tmp_path: Path, kind: str
) -> None:
    device = Path("/dev/zero").stat()
    named = places(whole)
    assert len(named) > 20, named
    for number, name in enumerate(named):
        home = tmp_path / str(number)
        shutil.copytree(whole, home)
        instead(home / name, kind)
        found = within(f"opening a home with a {kind} at {name}", lambda home=home: opened(home))
        if isinstance(found, KvswapError):
            assert Path(name).stem in found.message and found.hint, (name, found.message)
        for use in (usage_log_of, written_url, host_key, _salts, RunFile.read):
            made = within(f"{use.__name__} with a {kind} at {name}", lambda home=home, use=use: use(home))
            if use is usage_log_of and not isinstance(made, KvswapError):
                made.close()  # else a collection closes it, and takes its log away while the home is removed
        shutil.rmtree(home)
    assert Path("/dev/zero").stat().st_mode == device.st_mode  # neither written nor closed to others


# what a node cannot do without, and what it can
NEEDED = ("trust.json", "keys/node.key", "keys/publisher.key", "keys/groups/team.group", "config.toml")
TOLD = ("calibration.json", "trust.sqlite3", "peers.sqlite3", "store/index.sqlite3")


@kinds
def test_what_a_node_needs_is_named_and_what_it_can_make_anew_is_set_aside(
    whole: Path, tmp_path: Path, kind: str
) -> None:
    for name in (*NEEDED, *TOLD):
        home = tmp_path / name.replace("/", "-")
        shutil.copytree(whole, home)
        instead(home / name, kind)
        found = within(name, lambda home=home: opened(home))
        if name in NEEDED:
            assert isinstance(found, UsageError), (name, found)
            assert name in found.message and f"a {kind}" in found.message.replace("the ", "a "), found.message
        else:
            assert found, f"{name}: nothing is said"
            assert not isinstance(found, KvswapError), found.message
            assert (home / name).with_suffix(".damaged").lstat()
            assert (home / name).is_file() and not (home / name).is_symlink()


@kinds
def test_a_chunk_that_is_no_file_is_set_aside_as_a_wrong_one(whole: Path, tmp_path: Path, kind: str) -> None:
    home = tmp_path / "home"
    shutil.copytree(whole, home)
    chunks = list((home / "store" / "chunks").glob("*/*"))
    store = Store.open(home / "store")
    for path in chunks:
        instead(path, kind)
    read = chunk_reader(store.chunks_directory)
    cids = [Cid.parse(path.name) for path in chunks]
    for cid in cids[:3]:
        assert isinstance(within("reading in another process", lambda cid=cid: read(cid)), IntegrityError)
        assert isinstance(within("reading", lambda cid=cid: store.get_chunk(cid)), IntegrityError)
        assert isinstance(within("reading again", lambda cid=cid: store.get_chunk(cid)), NotFound)
    report = within("verify --store", store.verify)
    assert report.quarantined == len(cids) - 3
    assert not any(os.path.lexists(path) for path in chunks)
    for path in chunks:  # and again, where the first of each lies in quarantine
        instead(path, kind)
    assert within("verify --store", store.verify).quarantined == len(cids)
    assert not any(os.path.lexists(path) for path in chunks)
    store.close()


@kinds
def test_a_key_file_that_is_none_is_named(tmp_path: Path, kind: str) -> None:
    instead(tmp_path / "node.key", kind)
    found = within("reading a key", lambda: private_text(tmp_path / "node.key"))
    assert isinstance(found, UsageError) and kind in found.message and "mv " in found.hint


@kinds
def test_manifest_check_reads_chunks_that_are_files(tmp_path: Path, kind: str) -> None:
    vectors = Path(__file__).resolve().parents[2] / "manifests" / "vectors"
    shutil.copytree(vectors, tmp_path / "manifests")
    entry = next(e for e in json.loads((vectors / "index.json").read_text()) if e.get("chunks"))
    chunks = tmp_path / "manifests" / entry["chunks"]
    for path in list(chunks.iterdir()):
        instead(path, kind)
    file, at = str(vectors / entry["file"]), str(entry["at"])
    done = kvswap(tmp_path, "manifest", "check", file, "--at", at, "--chunks", str(chunks), timeout=_SECONDS)
    assert done.returncode == 2 and kind in done.stderr, done.stderr


@pytest.mark.faults
@kinds
@pytest.mark.parametrize("name", ["trust.json", "calibration.json", "keys/node.key", "kvswap.log"])
def test_a_daemon_starts_or_says_why_not(whole: Path, tmp_path: Path, name: str, kind: str) -> None:
    home = tmp_path / "home"
    shutil.copytree(whole, home)
    for gone in ("daemon.json", "config.toml"):
        (home / gone).unlink()
    instead(home / name, kind)
    if name in NEEDED:
        done = kvswap(home, "daemon", "--no-p2p", timeout=_SECONDS)
        assert done.returncode == 2 and name in done.stderr, done.stderr
        return
    daemon = Daemon(home, ["--no-p2p"], {"KVSWAP_MODELS": "/nonexistent"}).start()
    try:
        assert kvswap(home, "verify", "--store").returncode == 0
    finally:
        daemon.stop()
