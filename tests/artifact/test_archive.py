"""Archives: what is written is a plain tar, the same each time, and nothing but such a one is read."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvswap.artifact import archive
from kvswap.artifact.archive import (
    BLOCK,
    END,
    ArchivedFile,
    ArchiveReader,
    archive_length,
    file_name,
    header,
    manifest_name,
    pack,
)
from kvswap.core.errors import MalformedArchive
from kvswap.core.ids import Cid

ENVELOPE = b"an envelope, whose content nobody looks at here"
ARTIFACT = Cid.of(ENVELOPE)
FILES = [(Cid.of(data), data) for data in (b"one", b"x" * 512, bytes(5000))]


def made(files: list[tuple[Cid, bytes]] = FILES) -> bytes:
    return b"".join(pack(ARTIFACT, ENVELOPE, files))


def read(data: bytes, cuts: int = 1 << 20, wanted: dict[Cid, int] | None = None) -> list[ArchivedFile]:
    reader, found = ArchiveReader(), []
    for start in range(0, len(data), cuts):
        for entry in reader.feed(data[start : start + cuts]):
            found.append(entry)
            reader.wanted = wanted
    reader.end()
    return found


SIZES = [BLOCK + len(d) + -len(d) % BLOCK for d in (ENVELOPE, *(d for _, d in FILES))]
BEGINS = [sum(SIZES[:n]) for n in range(len(SIZES))]  # of the headers


def test_the_names_are_those_of_an_origin() -> None:
    cid = FILES[0][0]
    assert manifest_name(ARTIFACT) == f"manifests/{ARTIFACT}"
    assert file_name(cid) == f"chunks/{str(cid)[-2:]}/{cid}"


def test_an_archive_is_a_plain_tar_and_the_same_each_time() -> None:
    data = made()
    assert data == made() and len(data) == archive_length([len(ENVELOPE), *(len(d) for _, d in FILES)])
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        members = tar.getmembers()
        assert [m.name for m in members] == [manifest_name(ARTIFACT), *(file_name(c) for c, _ in FILES)]
        for member in members:
            assert (member.mode, member.mtime, member.uid, member.gid) == (0o644, 0, 0, 0) and member.isreg()
            assert (member.uname, member.gname) == ("", "")
        contents = [tar.extractfile(m).read() for m in members]  # type: ignore[union-attr]
    assert contents == [ENVELOPE, *(d for _, d in FILES)]


def test_gnu_tar_takes_it_apart_and_what_it_packs_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(made())
    subprocess.run(["tar", "xf", "a.tar"], cwd=tmp_path, check=True)
    names = [manifest_name(ARTIFACT), *(file_name(c) for c, _ in FILES)]
    assert sorted(names) == sorted(
        str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file() and p.name != "a.tar"
    )
    for form in ("ustar", "gnu"):
        subprocess.run(["tar", "cf", "b.tar", f"--format={form}", *names], cwd=tmp_path, check=True)
        assert read((tmp_path / "b.tar").read_bytes()) == read(made())


@given(
    files=st.lists(st.binary(min_size=1, max_size=2000), max_size=5, unique=True),
    cuts=st.integers(1, 3000),
)
def test_whatever_is_packed_comes_back_however_it_is_cut(files: list[bytes], cuts: int) -> None:
    data = made([(Cid.of(d), d) for d in files])
    found = read(data, cuts, {Cid.of(d): len(d) for d in files})
    assert [e.data for e in found] == [ENVELOPE, *files]
    assert [e.is_manifest for e in found] == [True, *(False for _ in files)]


@given(at=st.integers(0, len(made()) - 1))
def test_an_archive_that_is_cut_off_is_refused(at: int) -> None:
    with pytest.raises(MalformedArchive):
        read(made()[:at])


@given(at=st.integers(0, len(made()) - 1), bit=st.integers(0, 7), cuts=st.sampled_from([1, 511, 1 << 20]))
def test_a_changed_bit_changes_a_file_or_is_refused(at: int, bit: int, cuts: int) -> None:
    """Nothing else is let through: what is outside of the files has one form."""
    data = bytearray(made())
    data[at] ^= 1 << bit
    try:
        found = read(bytes(data), cuts)
    except MalformedArchive:
        return
    right = read(made())
    if any(begin + 148 <= at < begin + 156 for begin in BEGINS):  # checksums are written in more ways than one
        assert found == right
        return
    assert [(e.cid, e.size, e.is_manifest) for e in found] == [(e.cid, e.size, e.is_manifest) for e in right]
    assert [e.data for e in found] != [e.data for e in right]


@given(st.binary(max_size=3000), st.integers(1, 700))
def test_any_bytes_are_refused_without_another_error(data: bytes, cuts: int) -> None:
    with pytest.raises(MalformedArchive):
        read(data, cuts)


@given(
    st.lists(
        st.one_of(
            st.builds(
                lambda name, size, data: header(name, size) + data,
                st.sampled_from([manifest_name(ARTIFACT), file_name(FILES[0][0]), "chunks/aa/x", "../x"]),
                st.integers(0, 8**11 - 1),
                st.binary(max_size=1100),
            ),
            st.just(END),
            st.just(bytes(BLOCK)),
            st.binary(max_size=600),
        ),
        max_size=4,
    ),
    st.integers(1, 2000),
)
def test_headers_that_promise_anything_take_no_memory(parts: list[bytes], cuts: int) -> None:
    data, reader, kept = b"".join(parts), ArchiveReader(), 0
    try:
        for start in range(0, len(data), cuts):
            kept += sum(len(e.data) for e in reader.feed(data[start : start + cuts]))
            assert len(reader._data) <= len(data)
        reader.end()
    except MalformedArchive:
        pass
    assert kept <= len(data)


def test_a_reader_that_keeps_nothing_sees_the_same_files() -> None:
    reader = ArchiveReader(keep=False)
    found = list(reader.feed(made()))
    reader.end()
    assert [(e.cid, e.size) for e in found] == [(e.cid, e.size) for e in read(made())]
    assert not any(e.data for e in found) and reader.files == len(FILES) and reader.length == len(made())


# -- what is refused ---------------------------------------------------------------------------------


def member(name: str, data: bytes = b"x", **changes: object) -> bytes:
    """One file as Python's tarfile writes it, with these fields."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in changes.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % BLOCK)


FIRST = member(manifest_name(ARTIFACT), ENVELOPE)
CHUNK = file_name(FILES[0][0])
HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "empty"),
    "an empty tar": (END, "empty"),
    "a text": (b"kvswap " * 100, "no tar archive"),
    "gzip": (b"\x1f\x8b\x08" + bytes(600), "compressed (gzip)"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(600), "compressed (zstd)"),
    "xz": (b"\xfd7zXZ\0" + bytes(600), "compressed (xz)"),
    "bzip2": (b"BZh9" + bytes(600), "compressed (bzip2)"),
    "zip": (b"PK\x03\x04" + bytes(600), "compressed (zip)"),
    "a way out": (FIRST + member("chunks/../../etc/passwd") + END, "leads out"),
    "a way out, first": (member("../x") + END, "leads out"),
    "an absolute path": (FIRST + member("/etc/passwd") + END, "absolute"),
    "a name of another layout": (FIRST + member("chunks/zz/" + str(FILES[0][0])) + END, "no file of an artifact"),
    "a name that is no CID": (FIRST + member("chunks/ab/readme") + END, "no file of an artifact"),
    "a dot in the name": (FIRST + member("./" + CHUNK) + END, "no file of an artifact"),
    "a terminal's escapes": (FIRST + member("chunks/\x1b]0;owned\x07") + END, "no file of an artifact"),
    "a symbolic link": (FIRST + member(CHUNK, b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "a symbolic link"),
    "a hard link": (FIRST + member(CHUNK, b"", type=tarfile.LNKTYPE, linkname="x"), "a hard link"),
    "a device": (FIRST + member(CHUNK, b"", type=tarfile.CHRTYPE), "a device"),
    "a disk": (FIRST + member(CHUNK, b"", type=tarfile.BLKTYPE), "a device"),
    "a pipe": (FIRST + member(CHUNK, b"", type=tarfile.FIFOTYPE), "a pipe"),
    "a directory": (FIRST + member("chunks", b"", type=tarfile.DIRTYPE), "a directory"),
    "an extended header": (member("x", b"10 path=y\n", type=tarfile.XHDTYPE) + FIRST + END, "an extended header"),
    "a long name": (FIRST + member("chunks/" + "x" * 200), "a long name"),
    "a sparse file": (FIRST + member(CHUNK, b"", type=tarfile.GNUTYPE_SPARSE), "a sparse file"),
    "a huge size": (FIRST + header(CHUNK, 8**11 - 1), "bytes, which no such file has"),
    "an empty file": (FIRST + member(CHUNK, b""), "0 bytes"),
    "a file twice": (FIRST + member(CHUNK) + member(CHUNK) + END, "twice"),
    "two manifests": (FIRST + FIRST + END, "the manifest is first"),
    "no manifest": (member(CHUNK) + END, "the manifest is first"),
    "something after the end": (made() + b"x", "after its end"),
    "no end to the end": (made() + bytes(100_000), "does not end"),
    "half an end": (made()[:-BLOCK], "cut off"),
    "an envelope beyond the cap": (header(manifest_name(ARTIFACT), (16 << 20) + 1), "bytes, which no such file has"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("cuts", [1, 512, 1 << 20])
def test_what_is_refused_is_refused_with_its_reason(name: str, cuts: int) -> None:
    data, why = HOSTILE[name]
    with pytest.raises(MalformedArchive, match="not an artifact's archive") as raised:
        read(data, cuts)
    assert why in raised.value.message, raised.value.message
    assert raised.value.exit_code == 7 and raised.value.message.isprintable()


def test_a_size_in_binary_is_refused() -> None:
    info = tarfile.TarInfo(CHUNK)
    info.size = 1 << 40
    with pytest.raises(MalformedArchive, match="a size that no file has"):
        read(FIRST + info.tobuf(tarfile.GNU_FORMAT))


@pytest.mark.parametrize(
    ("wanted", "why"),
    [({}, "no file of this artifact"), ({FILES[0][0]: 4}, "its manifest says 4")],
)
def test_only_files_that_the_manifest_names_may_follow(wanted: dict[Cid, int], why: str) -> None:
    with pytest.raises(MalformedArchive, match=why):
        read(made(), wanted=wanted)


def test_there_is_an_end_to_the_number_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_FILES", 2)
    with pytest.raises(MalformedArchive, match="over 2 files"):
        read(made())


def test_the_end_may_be_filled_up_as_tar_programs_do() -> None:
    for size in (0, BLOCK, 10_240 - len(made()) % 10_240):
        assert len(read(made() + bytes(size))) == 4
