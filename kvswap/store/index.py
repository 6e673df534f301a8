"""The SQLite index: migrations, one connection that writes and several that read.

With the write-ahead log a reader sees the last committed state and waits for no writer; a short query waits for no long
one, as each has a connection of its own.

Rows are written after the files they speak of, and deleted before them, so a crash leaves at worst a
file that nobody lists.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from kvswap.core.errors import Incompatible, KvswapError
from kvswap.core.failures import as_kvswap_error
from kvswap.store import database
from kvswap.store.tables import MIGRATIONS

T = TypeVar("T")
_READERS = 8  # queries at a time
_LOOKED_AT_ONCE = 16 << 20  # bytes of an index that is looked through when it is opened


class Index:
    """The database behind one lock for writers and several connections for readers.

    Safe to use from several threads.
    """

    def __init__(
        self,
        path: Path,
        migrations: Sequence[str] = MIGRATIONS,
        synchronous: str = "NORMAL",
        on_problem: Callable[[str | None], None] | None = None,
        *,
        cache: bool = False,
    ) -> None:
        """Open or create.  `synchronous`: SQLite's; with FULL what is committed survives the loss of power.

        With `on_problem`, a damaged file is set aside and begun anew (`remake` fills it), and one that cannot be
        written is read into memory until it can again (`maintain`); `on_problem` is called with what happened, and with
        None when it is over.  Without, such errors are raised as SQLite's.  `cache`: what it holds can be had from
        elsewhere, so it may be changed while it is in memory only; otherwise a change is refused meanwhile.
        """
        self.path = path
        self._migrations, self._synchronous, self._on_problem, self._cache = migrations, synchronous, on_problem, cache
        self.remake: Callable[[], None] | None = None
        self.empty = False  # it was made now, and what it held before is to be had from elsewhere
        self.detached = False  # in memory only
        self._refusal: KvswapError | None = None  # of changes, while it is
        self.epoch = 0  # grows when another database takes the place of this one
        self.on_loop = 0  # accesses by a thread that runs an event loop, which they hold up
        self._lock = threading.RLock()
        self._filling = 0  # the thread that fills a new database from the disk
        self._idle = threading.Condition()
        self._readers: list[sqlite3.Connection] = []
        self._reading = 0
        self._db = self._first()

    # -- opening -----------------------------------------------------------------------------------

    def _first(self) -> sqlite3.Connection:
        try:
            return self._opened()
        except sqlite3.Error as error:
            if self._on_problem is None:
                raise
            if database.is_damage(error):
                return self._anew(error)
            if not database.is_unwritable(error):
                raise
            return self._without_disk(error)

    def _opened(self) -> sqlite3.Connection:
        db = database.connect(self.path, self._synchronous)
        try:
            self._migrate(db)
            if self._on_problem is not None:
                self._look(db)
        except BaseException:
            db.close()
            raise
        found = self.path.stat()
        self._file = (found.st_dev, found.st_ino)
        return db

    def _anew(self, why: Exception) -> sqlite3.Connection:
        """Set the damaged file aside and begin another."""
        try:
            database.set_aside(self.path)
            db = self._opened()
        except (sqlite3.Error, OSError) as error:
            return self._without_disk(error)
        self._report_problem(
            f"{self.path.name} was damaged and is made anew from the disk ({_error_text(why)}); see {self._aside}"
        )
        return db

    def _without_disk(self, why: Exception) -> sqlite3.Connection:
        """Replace the file that cannot be written by a copy in memory."""
        db = database.copied(self.path)
        try:
            self._migrate(db)
            self._look(db)
        except sqlite3.Error:
            db.close()
            db = database.in_memory()
            self._migrate(db)
        self._fall_back(db, why)
        self._report_problem(f"{self.path.name} cannot be written ({_error_text(why)}): it is kept in memory meanwhile")
        return db

    def _fall_back(self, memory: sqlite3.Connection, why: Exception) -> None:
        if not self._cache:
            memory.execute("PRAGMA query_only=ON")
            self._refusal = as_kvswap_error(why, f"writing {self.path.name}")
        self.detached, self._file = True, (0, 0)

    @property
    def _aside(self) -> str:
        return self.path.with_suffix(".damaged").name

    def _report_problem(self, text: str | None) -> None:
        if self._on_problem is not None:
            self._on_problem(text)

    def _look(self, db: sqlite3.Connection) -> None:
        """Raise `sqlite3.DatabaseError` for a small file that is damaged anywhere; a large one is looked at later."""
        if self.path.exists() and self.path.stat().st_size <= _LOOKED_AT_ONCE:
            _check(db)

    def _migrate(self, db: sqlite3.Connection) -> None:
        db.execute("BEGIN IMMEDIATE")  # another process may be opening it too
        try:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            self.empty = version == 0
            if version > len(self._migrations):
                raise Incompatible(
                    f"{self.path} has schema {version}, this kvswap knows {len(self._migrations)}",
                    cause="a newer kvswap wrote it",
                    hint="install that version, or use another --home",
                    field="store",
                )
            for number, script in enumerate(self._migrations[version:], start=version + 1):
                for statement in _statements(script):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version={number}")
        except BaseException:
            _roll_back(db)
            raise
        db.execute("COMMIT")

    # -- writing -----------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Open a transaction, one writer at a time; it is rolled back on any exception."""
        self._noticed()
        with self._lock:
            if self._refusal is not None:
                raise self._refusal
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                _roll_back(self._db)
                raise

    def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Call `work` with the connection in a transaction, and return what it returns.

        It is called again where the database had to be replaced in between (`on_problem`).  Raises `sqlite3.Error`, or
        where there is `on_problem` an error of ours.
        """
        for last in (False, False, True):
            epoch = self.epoch
            try:
                with self.transaction() as db:
                    return work(db)
            except sqlite3.Error as error:
                if last or not self._replaced(error, epoch):
                    raise self._plain(error, "writing") from error
        raise AssertionError("unreachable")

    def _plain(self, error: sqlite3.Error, doing: str) -> Exception:
        """Return the error to raise: callers that can go on without the file are told of the disk, not of SQLite."""
        return error if self._on_problem is None else as_kvswap_error(error, f"{doing} {self.path.name}")

    def _replaced(self, error: sqlite3.Error, epoch: int) -> bool:
        """Return True if there is another database now, with which to try again."""
        if self._on_problem is None:
            return False
        if database.is_damage(error):
            self.renew(epoch, error)
            return True
        if database.is_unwritable(error) and not self.detached and (self._cache or self._gone()):
            return self.detach(error)
        return False

    def renew(self, epoch: int, why: Exception) -> None:
        """Set a damaged database aside and fill another from the disk, unless that happened since `epoch`."""
        with self._lock:
            if self.epoch != epoch:
                return
            self.epoch += 1  # first: what others read meanwhile, of the new file too, they read again
            self._filling = threading.get_ident()
            try:
                self._close_all()
                self.detached, self._refusal = False, None
                self._db = self._anew(why)
                if self.remake is not None:
                    self.remake()
            finally:
                self._filling = 0

    def detach(self, why: Exception) -> bool:
        """Go on in memory with what is committed; False where that cannot be read."""
        with self._lock:
            if self.detached:
                return True
            memory = database.in_memory()
            try:
                self._db.backup(memory)
            except sqlite3.Error:
                memory.close()
                return False
            self._close_all()
            self._db = memory
            self._fall_back(memory, why)
            self.epoch += 1
            self._report_problem(
                f"{self.path.name} cannot be written ({_error_text(why)}): it is kept in memory meanwhile"
            )
            return True

    def maintain(self) -> bool:
        """Write back what is only in memory, or whose file was deleted; False where that does not work yet."""
        with self._lock:
            if not self.detached:
                if not self._gone():
                    return True
                self.detach(FileNotFoundError("the file was deleted"))
            try:
                if self._cache or not self.path.exists():
                    database.write_back(self._db, self.path)
            except (OSError, sqlite3.Error):
                return False
            memory = self._db
            try:
                self._db = self._opened()
            except (OSError, sqlite3.Error):
                self._db = memory
                return False
            memory.close()
            self.detached, self._refusal = False, None
            self.epoch += 1
            self._report_problem(None)
            return True

    def _gone(self) -> bool:
        try:
            found = self.path.stat()
        except OSError:
            return True
        return (found.st_dev, found.st_ino) != self._file

    def check(self) -> None:
        """Check all of the file, which reads it once; a damaged one is made anew."""
        epoch = self.epoch
        try:
            with self._reader() as db:
                _check(db)
        except sqlite3.Error as error:
            if not self._replaced(error, epoch):
                raise

    # -- reading -----------------------------------------------------------------------------------

    def rows(self, query: str, *arguments: object) -> list[sqlite3.Row]:
        """Return the committed rows of a query.  Inside a `transaction`, read through its own connection instead."""
        self._noticed()
        for last in (False, True):
            if self._filling not in (0, threading.get_ident()):
                with self._lock:
                    pass  # what is filled from the disk is not whole before it is done
            epoch = self.epoch
            try:
                with self._reader() as db:
                    found = db.execute(query, arguments).fetchall()
                if last or epoch == self.epoch:
                    return found
            except sqlite3.Error as error:
                if last or not self._replaced(error, epoch):
                    raise self._plain(error, "reading") from error
        raise AssertionError("unreachable")

    @contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        if self.detached:
            with self._lock:
                yield self._db
            return
        with self._idle:
            self._idle.wait_for(lambda: self._reading < _READERS)
            self._reading += 1
            epoch = self.epoch
            db = self._readers.pop() if self._readers else None
        try:
            if db is None:
                if self._on_problem is not None and self._gone():  # never read from a file that is another one
                    raise _coded("the file was deleted", sqlite3.SQLITE_CANTOPEN)
                db = database.connect(self.path, self._synchronous)
            yield db
        finally:
            with self._idle:
                self._reading -= 1
                if db is not None and epoch == self.epoch:
                    self._readers.append(db)
                elif db is not None:
                    db.close()
                self._idle.notify()

    def _noticed(self) -> None:
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            self.on_loop += 1

    # -- closing -----------------------------------------------------------------------------------

    def _close_all(self) -> None:
        with self._idle:
            for reader in self._readers:
                reader.close()
            self._readers.clear()
        with contextlib.suppress(sqlite3.Error):
            self._db.close()

    def close(self) -> None:
        """Close the database; what is only in memory is written back if that is possible."""
        with self._lock:
            if self._on_problem is not None and (self.detached or self._gone()):
                self.maintain()
            self._close_all()


def _statements(script: str) -> Iterator[str]:
    """Iterate over the statements of a script; those of a trigger belong to it."""
    statement = ""
    for piece in script.split(";"):
        statement += piece + ";"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _check(db: sqlite3.Connection) -> None:
    (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise _coded(str(found).replace("\n", " "), sqlite3.SQLITE_CORRUPT)


def _coded(text: str, code: int) -> sqlite3.DatabaseError:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error


def _roll_back(db: sqlite3.Connection) -> None:
    """Roll back, unless SQLite has done so itself, as on a full disk."""
    with contextlib.suppress(sqlite3.Error):
        if db.in_transaction:
            db.execute("ROLLBACK")


def _error_text(error: Exception) -> str:
    return str(error) or type(error).__name__
