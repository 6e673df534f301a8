"""Opening SQLite files on disks that are damaged, full or read-only.

A file that is damaged is set aside; where a file can be read and not written, a copy of it in memory takes its place.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from kvswap.core.atomic import replacing
from kvswap.core.errors import LocalFault, StoreFull, StoreLocked
from kvswap.core.failures import Misplaced
from kvswap.core.files import check_regular

_log = logging.getLogger(__name__)
_PRAGMAS = ("foreign_keys=ON", "busy_timeout=10000")
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_UNWRITABLE = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PERM,
    }
)


def is_damage(error: BaseException) -> bool:
    """Return True if SQLite says that the file is no database, or a broken one."""
    return isinstance(error, sqlite3.Error) and _code(error) in _DAMAGED


def is_of_another_schema(error: BaseException) -> bool:
    """Return True if a statement does not fit the tables: the file is of another version, or of another program."""
    return isinstance(error, sqlite3.Error) and _code(error) == sqlite3.SQLITE_ERROR


def is_unwritable(error: BaseException) -> bool:
    """Return True if SQLite says that it cannot write: the disk is full, read-only, failing, or of another user."""
    return isinstance(error, sqlite3.Error) and _code(error) in _UNWRITABLE


def cannot_write(error: BaseException) -> bool:
    """Return True if it is the disk that refuses to write: it is full, read-only, damaged or in use."""
    refused = (sqlite3.OperationalError, StoreFull, LocalFault, StoreLocked)
    return isinstance(error, refused) or is_damage(error)


@contextlib.contextmanager
def best_effort() -> Iterator[None]:
    """Ignore the errors of a disk that refuses to write; all others are raised."""
    try:
        yield
    except Exception as error:
        if not cannot_write(error):
            raise


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


def connect(path: Path, synchronous: str = "NORMAL") -> sqlite3.Connection:
    """Open a database with the write-ahead log, readable by its user alone.

    Raises `sqlite3.Error`; what lies under its name and is no file is a damaged database.
    """
    _check_kind(path)
    db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=10)
    try:
        db.row_factory = sqlite3.Row
        for pragma in ("journal_mode=WAL", f"synchronous={synchronous}", *_PRAGMAS):
            db.execute(f"PRAGMA {pragma}")
    except BaseException:
        db.close()
        raise
    with contextlib.suppress(OSError):
        path.chmod(0o600)
    return db


def _check_kind(path: Path) -> None:
    """Raise `sqlite3.DatabaseError` for what is no regular file; set aside logs that are none.

    SQLite waits for pipes and reads devices without end; what is no log of its own holds nothing.
    """
    try:
        check_regular(path)
    except Misplaced as error:
        damage = sqlite3.DatabaseError(str(error.strerror))
        damage.sqlite_errorcode = sqlite3.SQLITE_NOTADB
        raise damage from error
    for log in _logs(path):
        try:
            check_regular(log)
        except Misplaced as error:
            _log.warning("%s is set aside: %s", log, error.strerror)
            _move(log)


def in_memory() -> sqlite3.Connection:
    """Return an empty database in memory."""
    db = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
    db.row_factory = sqlite3.Row
    for pragma in _PRAGMAS:
        db.execute(f"PRAGMA {pragma}")
    return db


def copied(path: Path) -> sqlite3.Connection:
    """Return a copy in memory of a database file that cannot be written where it lies.

    Its write-ahead log is read as well, from another disk where that has room.  What cannot be read at all comes back
    empty.
    """
    memory = in_memory()
    try:
        _check_kind(path)
    except (sqlite3.Error, OSError):
        return memory
    for source in (_beside, _as_it_is):
        try:
            source(path, memory)
            memory.execute("SELECT COUNT(*) FROM sqlite_schema").fetchall()
            return memory
        except (sqlite3.Error, OSError):
            memory.close()
            memory = in_memory()
    return memory


def _beside(path: Path, into: sqlite3.Connection) -> None:
    with tempfile.TemporaryDirectory(prefix="kvswap-") as directory:
        copy = Path(directory) / path.name
        shutil.copyfile(path, copy)
        log = Path(f"{path}-wal")
        if log.exists():
            shutil.copyfile(log, f"{copy}-wal")
        _backup(copy, "", into)


def _as_it_is(path: Path, into: sqlite3.Connection) -> None:
    _backup(path, "?immutable=1", into)


def _backup(path: Path, how: str, into: sqlite3.Connection) -> None:
    source = sqlite3.connect(f"file:{quote(str(path))}{how}", uri=True)
    try:
        source.backup(into)
    finally:
        source.close()


def write_back(db: sqlite3.Connection, path: Path) -> None:
    """Replace a database file by one in memory.  Raises `OSError` or `sqlite3.Error`; then nothing changed."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with replacing(path, named=False) as new:
        target = sqlite3.connect(new.path, isolation_level=None)
        try:
            db.backup(target)
        finally:
            target.close()
        os.fsync(new.descriptor)
        _drop_log(path)  # it belongs to the file that was here, which is in the new one and on disk
    sync(path.parent)


def set_aside(database: Path) -> None:
    """Move a damaged file out of the way of a new one; its log goes with it.  Raises `OSError`."""
    if database.exists():
        _move(database, database.with_suffix(".damaged"))
    _drop_log(database)


def _move(path: Path, aside: Path | None = None) -> None:
    aside = aside or Path(f"{path}.damaged")
    if os.path.lexists(aside) and (aside.is_dir() or path.is_dir()):  # neither takes the place of the other
        aside = Path(f"{aside}.{time.time_ns()}")
    os.replace(path, aside)


def _logs(database: Path) -> list[Path]:
    return [Path(f"{database}{suffix}") for suffix in ("-wal", "-shm", "-journal")]


def _drop_log(database: Path) -> None:
    for suffix in ("-wal", "-shm"):
        Path(f"{database}{suffix}").unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make a file, or the names in a directory, durable.  Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
