"""Archives: one artifact as one file, a plain tar (POSIX ustar) of the layout in which origins serve artifacts.

`manifests/<artifact id>` is the signed envelope, `chunks/<last two characters>/<cid>` a file that the manifest names.
What `pack` writes is the same for the same files, byte for byte.  What `ArchiveReader` takes is no more than that:
regular files of these names, the envelope first.  It sees no manifest: who reads compares what comes with one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

from kvswap.core.errors import MalformedArchive, UsageError
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.core.text import printable

BLOCK = 512
END = bytes(2 * BLOCK)
MEDIA_TYPE = "application/x-tar"
_MAGIC = (b"ustar\x0000", b"ustar  \x00")  # of POSIX, and of GNU
_RECORD = 20 * BLOCK  # tar programs fill up to so much
_FILES = LIMITS.manifest_chunks + 2  # with predictor and fingerprint
_OCTAL = re.compile(rb" *([0-7]{1,12})[ \0]*")
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"5": "a directory",
    b"6": "a pipe",
    b"x": "an extended header",
    b"g": "an extended header",
    b"L": "a long name",
    b"K": "a long name",
    b"S": "a sparse file",
}
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}


def manifest_name(artifact: Cid) -> str:
    """Return the name of an artifact's envelope, in archives and at origins."""
    return f"manifests/{artifact}"


def file_name(cid: Cid) -> str:
    """Return the name of a chunk, predictor or fingerprint, in archives and at origins."""
    name = str(cid)
    return f"chunks/{name[-2:]}/{name}"


def header(name: str, size: int) -> bytes:
    """Make the ustar header of a regular file of `size` bytes: mode 0644, owner 0, time 0."""
    text = name.encode("ascii")
    fields = [
        text.ljust(100, b"\0"),
        b"0000644\0" + b"0000000\0" * 2,  # mode, owner, group
        b"%011o\0" % size,
        b"%011o\0" % 0,  # modified
        b" " * 8,  # the checksum, while it is computed
        b"0",
        bytes(100),
        _MAGIC[0],
        bytes(64),  # names of owner and group
        b"0000000\0" * 2,  # device
        bytes(167),  # prefix, and the rest of the block
    ]
    block = b"".join(fields)
    if len(text) > 100 or len(block) != BLOCK:
        raise UsageError(f"{name} is no name of a file in an archive")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def padding(size: int) -> bytes:
    """Return the zeros that follow a file of `size` bytes."""
    return bytes(-size % BLOCK)


def archive_length(sizes: Iterable[int]) -> int:
    """Compute the length in bytes of an archive of files of these sizes."""
    return sum(BLOCK + size + -size % BLOCK for size in sizes) + len(END)


def pack(artifact: Cid, envelope: bytes, files: Iterable[tuple[Cid, bytes]]) -> Iterator[bytes]:
    """Yield the bytes of an archive: the envelope, then the files in the order given, each once."""
    yield from packed(manifest_name(artifact), envelope)
    for cid, data in files:
        yield from packed(file_name(cid), data)
    yield END


def packed(name: str, data: bytes) -> Iterator[bytes]:
    """Yield one file as it is in an archive."""
    yield header(name, len(data))
    yield data
    yield padding(len(data))


@dataclass(frozen=True, slots=True)
class ArchivedFile:
    """A file of an archive: the envelope of the artifact `cid`, or the file of this CID.

    `data` is empty where the reader keeps none.  The bytes are not compared with the CID.
    """

    cid: Cid
    size: int
    data: bytes
    is_manifest: bool


class ArchiveReader:
    """A reader of one archive, which comes in pieces.

    It holds one file in memory at a time, or with `keep` false none.

    `wanted` are the files and sizes that may follow; set it when the envelope has been read.  Until then any may.
    """

    def __init__(self, *, keep: bool = True) -> None:
        self.wanted: Mapping[Cid, int] | None = None
        self.artifact: Cid | None = None
        self.files = 0  # that were begun, the envelope left out
        self.length = 0  # bytes that came
        self._keep = keep
        self._seen: set[Cid] = set()
        self._head = bytearray()  # of a header, as far as it has come
        self._entry: tuple[Cid, int, bool] | None = None  # whose bytes come now
        self._data = bytearray()
        self._left = 0  # bytes of the file
        self._padding = 0
        self._zeros = 0  # bytes of the end that came

    def feed(self, piece: bytes | memoryview) -> Iterator[ArchivedFile]:
        """Yield the files that end in this piece.  Go through all of them before the next piece.

        Raises `MalformedArchive` for what is not such an archive.
        """
        view = memoryview(piece)
        self.length += len(view)
        while view:
            if self._zeros:
                view = self._finish(view)
            elif self._entry is None:
                view = self._begin(view)
            elif self._left:
                taken = view[: self._left]
                if self._keep:
                    self._data += taken
                self._left -= len(taken)
                view = view[len(taken) :]
            if self._entry is not None and not self._left:
                if self._padding:
                    view = self._skip_padding(view)
                if not self._padding:
                    (cid, size, is_manifest), self._entry = self._entry, None
                    data, self._data = bytes(self._data), bytearray()
                    yield ArchivedFile(cid, size, data, is_manifest)

    def end(self) -> None:
        """Raise `MalformedArchive` unless the archive has come to its end."""
        if self.length == 0:
            _refuse("it is empty")
        if self._zeros < len(END):
            _refuse("it is cut off", cause="the transfer broke off, or the disk was full", hint="get it again")

    def _begin(self, view: memoryview) -> memoryview:
        taken = view[: BLOCK - len(self._head)]
        self._head += taken
        if self.artifact is None:
            _refuse_packed(bytes(self._head))
        if len(self._head) == BLOCK:
            block, self._head = bytes(self._head), bytearray()
            if not any(block):
                if self.artifact is None:
                    _refuse("it is empty")
                self._zeros = BLOCK
            else:
                self._open(block)
        return view[len(taken) :]

    def _open(self, block: bytes) -> None:
        """Take note of a file that begins."""
        name, size = _parsed(block, first=self.artifact is None)
        cid, is_manifest = _named(name)
        if is_manifest is not (self.artifact is None):
            _refuse(f"{_short(name)} is not where it should be: the manifest is first, and there is one")
        if is_manifest:
            self.artifact, most = cid, LIMITS.manifest_bytes
        else:
            most = LIMITS.chunk_frame_bytes
            self.files += 1
            if cid in self._seen:
                _refuse(f"{_short(name)} is in it twice")
            if self.wanted is not None and cid not in self.wanted:
                _refuse(f"{_short(name)} is no file of this artifact")
            if self.wanted is not None and size != self.wanted[cid]:
                _refuse(f"{_short(name)} has {size} bytes, and its manifest says {self.wanted[cid]}")
            if self.files > _FILES:
                _refuse(f"it has over {_FILES} files")
            self._seen.add(cid)
        if not 0 < size <= most:
            _refuse(f"{_short(name)} has {size} bytes, which no such file has")
        self._entry, self._left, self._padding = (cid, size, is_manifest), size, -size % BLOCK

    def _skip_padding(self, view: memoryview) -> memoryview:
        taken = view[: self._padding]
        if any(taken):
            _refuse("there is something between its files")
        self._padding -= len(taken)
        return view[len(taken) :]

    def _finish(self, view: memoryview) -> memoryview:
        if any(view):
            _refuse("there is something after its end")
        self._zeros += len(view)
        if self._zeros > 2 * _RECORD:
            _refuse("it does not end")
        return view[len(view) :]


def _parsed(block: bytes, *, first: bool) -> tuple[str, int]:
    """Return the name and the size in a header."""
    sum_field = _OCTAL.fullmatch(block[148:156])
    computed = sum(block) - sum(block[148:156]) + 8 * 32
    if block[257:265] not in _MAGIC or sum_field is None or int(sum_field[1], 8) != computed:
        _refuse("it is no tar archive" if first else "the header of a file in it is damaged")
    raw = block[:100].split(b"\0", 1)[0]
    name = raw.decode("utf-8", "backslashreplace")
    kind = block[156:157]
    if kind not in (b"0", b"\0"):
        _refuse(f"{_short(name)} is {_KINDS.get(kind, 'no regular file')}")
    if any(block[345:500]):
        _refuse(f"{_short(name)} has a longer name than any file of an artifact")
    size = _OCTAL.fullmatch(block[124:136])
    if size is None:
        _refuse(f"{_short(name)} has a size that no file has")
    return name, int(size[1], 8)


def _named(name: str) -> tuple[Cid, bool]:
    """Return the CID that a name ends with, and whether it is that of an envelope."""
    parts = name.split("/")
    if name.startswith("/"):
        _refuse(f"{_short(name)} is an absolute path")
    if ".." in parts:
        _refuse(f"{_short(name)} leads out of the archive")
    try:
        cid = Cid.parse(parts[-1])
    except UsageError:
        _refuse(f"{_short(name)} is no file of an artifact")
    if name == manifest_name(cid):
        return cid, True
    if name != file_name(cid):
        _refuse(f"{_short(name)} is no file of an artifact")
    return cid, False


def _refuse_packed(head: bytes) -> None:
    for magic, program in _PACKED.items():
        if head.startswith(magic):
            _refuse(f"it is compressed ({program})", cause="an archive is a plain tar", hint="uncompress it first")


def _short(name: str) -> str:
    return repr(printable(name)[:120])


def _refuse(why: str, cause: str | None = None, hint: str | None = None) -> NoReturn:
    raise MalformedArchive(f"not an artifact's archive: {why}", cause=cause, hint=hint)
