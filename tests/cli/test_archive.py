"""`kvswap export` and `kvswap import`, between two homes: through files, through pipes, and what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import structs

from kvswap import AsyncClient
from kvswap.api import ExportEvent, ImportEvent, ProgressEvent
from kvswap.artifact.archive import END, pack
from kvswap.cli.main import main
from kvswap.client.archives import Writing, read_archive
from kvswap.core.errors import LocalFault, MalformedArchive, NotFound, UsageError
from tests.support import Daemon, Ingested, key, kvswap, last_json, make_artifact, run, stock


@pytest.fixture
def made() -> Ingested:
    return make_artifact(tokens=100)


@pytest.fixture
def pair(daemon: Callable[..., Daemon], tmp_path: Path, made: Ingested) -> tuple[Daemon, Daemon]:
    """A node that has an artifact, and one that has nothing."""
    (tmp_path / "a").mkdir()
    stock(tmp_path / "a", made)
    return daemon("a", "--no-p2p"), daemon("b", "--no-p2p")


def test_from_one_home_to_another_by_a_file(pair: tuple[Daemon, Daemon], made: Ingested, tmp_path: Path) -> None:
    a, b = pair
    file = tmp_path / "artifact.tar"
    done = kvswap(a.home, "export", made.id, str(file), "--json")
    assert done.returncode == 0, done.stderr
    told = last_json(done)
    data = file.read_bytes()
    assert told["sha256"] == hashlib.sha256(data).hexdigest() and told["bytes"] == len(data)
    assert (told["artifact"], told["file"], told["files"], told["left_out"]) == (
        made.id,
        str(file),
        len(made.chunks),
        0,
    )
    with tarfile.open(file) as tar:
        assert tar.getnames()[0] == f"manifests/{made.id}"
    assert not (file.stat().st_mode & 0o111) and [p.name for p in tmp_path.glob(".*")] == []
    done = kvswap(b.home, "import", str(file))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(made.id) and "every file unchanged" in done.stdout
    assert f"kvswap trust add {made.manifest.publisher}" in done.stderr
    (row,) = b.client.ls()
    assert (row["artifact"], row["complete"], row["standing"]) == (made.id, True, "unverified")
    assert kvswap(b.home, "verify", made.id, "--level", "1").returncode == 0
    again = kvswap(b.home, "import", str(file), "--json")
    assert last_json(again)["new_files"] == 0


def test_through_a_pipe(pair: tuple[Daemon, Daemon], made: Ingested) -> None:
    a, b = pair
    line = f"'{sys.executable}' -m kvswap --home '{a.home}' export {made.id} - | " + (
        f"'{sys.executable}' -m kvswap --home '{b.home}' import -"
    )
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "archive sha256:" in done.stderr and done.stdout.startswith(made.id)
    assert [row["artifact"] for row in b.client.ls()] == [made.id]


@pytest.mark.parametrize("content", ["text", "gzip", "cut off", "changed", "empty", "directory", "missing", "endless"])
def test_what_is_no_archive_is_told_and_nothing_is_listed(
    content: str, pair: tuple[Daemon, Daemon], made: Ingested, tmp_path: Path
) -> None:
    _, b = pair
    file = tmp_path / "x.tar"
    data = b"".join(pack(made.statement.artifact, made.statement.envelope, made.chunks.items()))
    cid = next(iter(made.chunks))
    wrong = {**made.chunks, cid: made.chunks[cid][:-1] + b"?"}
    code, why = {
        "text": (7, "no tar archive"),
        "gzip": (7, "compressed (gzip)"),
        "cut off": (7, "cut off"),
        "changed": (6, "bytes offered as chunk"),
        "empty": (7, "empty"),
        "directory": (2, "directory"),
        "missing": (2, "does not exist"),
        "endless": (7, "not an artifact's archive"),
    }[content]
    if content == "directory":
        file.mkdir()
    elif content == "endless":
        file.symlink_to("/dev/zero")
        file = Path("-")
    elif content != "missing":
        file.write_bytes(
            {
                "text": b"some text " * 1000,
                "gzip": b"\x1f\x8b\x08" + bytes(1000),
                "cut off": data[:-700],
                "changed": b"".join(pack(made.statement.artifact, made.statement.envelope, wrong.items())),
                "empty": END,
            }[content]
        )
    if content == "endless":
        line = f"'{sys.executable}' -m kvswap --home '{b.home}' import - < /dev/zero"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=240)
    else:
        done = kvswap(b.home, "import", str(file))
    assert done.returncode == code, done.stderr
    assert why in done.stderr and "Cause:" in done.stderr or code == 2, done.stderr
    assert b.client.ls() == []


def test_what_is_not_here_leaves_no_file(pair: tuple[Daemon, Daemon], made: Ingested, tmp_path: Path) -> None:
    a, b = pair
    file = tmp_path / "x.tar"
    assert kvswap(b.home, "export", made.id, str(file)).returncode == 5
    assert kvswap(a.home, "export", made.id, str(tmp_path / "none" / "x.tar")).returncode == 2
    assert kvswap(a.home, "export", made.id, str(tmp_path)).returncode == 2
    assert not file.exists() and not list(tmp_path.glob(".x-*"))
    full = subprocess.run(
        ["bash", "-c", f"'{sys.executable}' -m kvswap --home '{a.home}' export {made.id} - > /dev/full"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert full.returncode == 12, full.stderr


def test_both_clients_do_the_same(pair: tuple[Daemon, Daemon], made: Ingested, tmp_path: Path) -> None:
    a, b = pair
    events: list[ProgressEvent] = []
    told = a.client.export(made.id, tmp_path / "one.tar", on_event=events.append)
    stream = io.BytesIO()
    assert a.client.export(made.id, stream).file == "-"
    assert stream.getvalue() == (tmp_path / "one.tar").read_bytes()
    assert isinstance(events[-1], ExportEvent) and events[-1].bytes == events[-1].total_bytes == told.bytes

    async def body() -> None:
        async with AsyncClient(a.home) as one, AsyncClient(b.home) as other:
            same = await one.export(made.id, tmp_path / "two.tar")
            assert same == structs.replace(told, file=str(tmp_path / "two.tar"))
            imported = await other.import_(tmp_path / "two.tar", on_event=events.append)
            assert imported.artifact == made.id and imported.new_files == len(made.chunks)
            with pytest.raises(NotFound):
                await other.export("sha256:" + "ab" * 32, tmp_path / "none.tar")

    run(body())
    stream.seek(0)
    assert b.client.import_(stream).new_files == 0
    assert isinstance(events[-1], ImportEvent) and events[-1].bytes == events[-1].total_bytes == told.bytes


def test_a_body_that_is_no_archive_is_judged_by_the_daemon_too(pair: tuple[Daemon, Daemon]) -> None:
    """Who calls the API without a client of ours is told the same."""
    from kvswap.client import calls

    _, b = pair
    for body in ([b"some text " * 1000], [bytes(1 << 20)] * 40):
        with pytest.raises(MalformedArchive, match="not an artifact's archive"):
            b.client._do(calls.import_archive(iter(body)))
    assert b.client.ls() == []


def test_an_importer_that_goes_away_leaves_the_daemon_as_it_was(pair: tuple[Daemon, Daemon], made: Ingested) -> None:
    from kvswap.client import calls

    _, b = pair
    data = b"".join(pack(made.statement.artifact, made.statement.envelope, made.chunks.items()))

    def half() -> object:
        yield data[: len(data) // 2]
        raise RuntimeError("the caller's own")

    with pytest.raises(RuntimeError, match="the caller's own"):
        b.client._do(calls.import_archive(half()))  # type: ignore[arg-type]
    assert b.client.ls() == []
    assert b.client.import_(io.BytesIO(data)).artifact == made.id


# -- the caller's side -------------------------------------------------------------------------------

SMALL = make_artifact(key(3))
DATA = b"".join(pack(SMALL.statement.artifact, SMALL.statement.envelope, SMALL.chunks.items()))


def test_a_file_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "x.tar"
    file.write_bytes(b"what was there")
    with pytest.raises(MalformedArchive, match="cut off"), Writing(file, None) as writing:
        writing.head({"Content-Length": str(len(DATA))})
        writing.write(DATA[:-600])
        writing.done()
    assert file.read_bytes() == b"what was there" and list(tmp_path.iterdir()) == [file]
    with Writing(file, None) as writing:
        writing.head({"Content-Length": str(len(DATA)), "Kvswap-Left-Out": "2"})
        writing.write(DATA)
        told = writing.done()
    assert file.read_bytes() == DATA and told.left_out == 2 and list(tmp_path.iterdir()) == [file]


def test_a_directory_that_takes_no_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="directory"), Writing(tmp_path / "none" / "x", None):
        pass
    if os.getuid() == 0:
        with pytest.raises(LocalFault), Writing("/proc/x.tar", None) as writing:
            writing.head({"Content-Length": "1"})


def test_reading_tells_how_far_it_is_and_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "x.tar"
    file.write_bytes(DATA)
    events: list[ProgressEvent] = []
    assert b"".join(read_archive(file, events.append)) == DATA
    assert events[-1]["bytes"] == events[-1]["total_bytes"] == len(DATA)
    assert b"".join(read_archive(io.BytesIO(DATA), None)) == DATA
    with pytest.raises(UsageError, match="a directory"):
        list(read_archive(tmp_path, None))
    with pytest.raises(UsageError, match="cannot be read"):
        list(read_archive(tmp_path / "none", None))
    with pytest.raises(MalformedArchive):
        list(read_archive(io.BytesIO(DATA[:1000]), None))


def test_a_terminal_gets_no_archive(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert main(["export", "sha256:" + "ab" * 32, "-", "--json"]) == 2
    assert "terminal" in json.loads(capsys.readouterr().out)["error"]["message"]
