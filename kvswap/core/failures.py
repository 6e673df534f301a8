"""Conversion of exceptions that are not kvswap's own into errors that are.

Where a process, a request or a file ends - command line, client, local API, host, model process, store - whatever is
raised passes `as_kvswap_error`, so a person gets what happened, one likely cause and a hint, and a traceback reaches
the log alone (`record`).

>>> as_kvswap_error(OSError(28, "No space left on device", "/data/x"), "writing a chunk").exit_code
12
"""

from __future__ import annotations

import contextlib
import errno
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kvswap.core.errors import (
    Incompatible,
    IntegrityError,
    Interrupted,
    KvswapError,
    LocalFault,
    P2pDown,
    StoreFull,
    StoreLocked,
    TookTooLong,
    Unexpected,
    UsageError,
)
from kvswap.core.text import printable

if TYPE_CHECKING:
    import sqlite3

INSTALL_TORCH = 'pip install "kvswap[torch]"'
_COMPUTING = frozenset({"torch", "transformers", "safetensors", "huggingface_hub", "gguf", "accelerate", "tokenizers"})
_SHOWN = 300  # characters of a foreign exception's text

_NO_SPACE = "kvswap gc, kvswap rm REF -y, or free space on the disk"
_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "this user's disk quota is used up",
    errno.EFBIG: "the file system, or a limit of this process (ulimit -f), allows no larger file",
}
_OTHER_HOME = "another --home, or change owner and mode"
# errno -> what happened, one likely cause, a hint
_LOCAL: dict[int, tuple[str, str, str]] = {
    errno.EROFS: ("the file system is read-only", "it is mounted so, or was after a fault", "kvswap --home DIRECTORY"),
    errno.EACCES: ("permission denied", "it belongs to another user, or its mode forbids it", _OTHER_HOME),
    errno.EPERM: ("not permitted", "it belongs to another user, or is protected", _OTHER_HOME),
    errno.EMFILE: ("too many open files", "the limit of this process is too low", "ulimit -n 4096"),
    errno.ENFILE: ("too many open files", "the limit of this machine is too low", "sysctl fs.file-max"),
    errno.ENOMEM: ("not enough memory", "other programs use it", "free"),
    errno.EAGAIN: ("the system has no space for more at the moment", "a limit of processes or threads", "ulimit -u"),
    errno.EIO: ("the disk failed", "a damaged disk, or a network drive that went away", "dmesg"),
    errno.ESTALE: ("the file system went away", "a network drive that was unmounted", "mount it again"),
    errno.ENODEV: ("the device is gone", "it was removed", "mount it again"),
    errno.ENXIO: ("the device is gone, or this is a socket", "it is no regular file", "name a regular file"),
    errno.ENOENT: ("it does not exist", "it was removed while kvswap worked", "kvswap verify --store"),
    errno.ENOTDIR: ("a part of the path is not a directory", "a file lies in its place", _OTHER_HOME),
    errno.EISDIR: ("it is a directory", "a directory lies in the place of a file", "move it away"),
    errno.EEXIST: ("it exists already, as something else", "a file lies in its place", "move it away"),
    errno.ENOTEMPTY: ("the directory is not empty", "another program writes there", "look into it"),
    errno.ELOOP: ("symbolic links go round in a circle", "a link points at itself", "ls -l the path"),
    errno.ENAMETOOLONG: ("the name is too long", "a path of more than the file system allows", "a shorter path"),
    errno.EADDRINUSE: ("the address is in use", "another program listens there", "another port"),
    errno.EADDRNOTAVAIL: ("the address is not one of this machine's", "a typing error", "ip address"),
    errno.EAFNOSUPPORT: ("the kind of address is not supported", "IPv6 is switched off here", "an IPv4 address"),
    errno.EBADF: ("a file was closed under kvswap", "standard input or output is closed", "open it"),
}


class Misplaced(OSError):
    """An `OSError`: what lies under a file's name cannot be that file.

    It is a pipe, a socket, a directory or a device, or too large.
    """

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(errno.EINVAL, f"it is {what}", str(path))


def as_kvswap_error(error: BaseException, doing: str = "") -> KvswapError:
    """Return an exception as a `KvswapError`; one that is a `KvswapError` already is returned unchanged.

    `doing`: what was under way, as in "reading the index", for the message.  The result has exit code, cause and hint,
    and keeps `error` as `origin`.
    """
    if isinstance(error, KvswapError):
        return error
    if isinstance(error, BaseExceptionGroup) and error.exceptions:
        return as_kvswap_error(error.exceptions[0], doing)
    failure = _converted(error, f"{doing} failed: " if doing else "")
    failure.origin = error
    return failure


@contextlib.contextmanager
def ours(doing: str) -> Iterator[None]:
    """Convert every exception of a `with` block that is not a `KvswapError`, and log its traceback.

    `doing` is as in `as_kvswap_error`.
    """
    try:
        yield
    except KvswapError:
        raise
    except Exception as error:
        raise record(error, doing) from error


def record(error: BaseException, doing: str = "") -> KvswapError:
    """Convert an exception as `as_kvswap_error` does, and log the traceback of a foreign one, once."""
    if isinstance(error, KvswapError):
        origin = error.origin
        if origin is None:
            return error
    else:
        origin = error
    failure = as_kvswap_error(error, doing)
    if not getattr(origin, "_kvswap_recorded", False):
        with contextlib.suppress(AttributeError):  # exceptions with slots take no attribute
            origin._kvswap_recorded = True  # type: ignore[attr-defined]
        import logging  # what hardly ever fails need not import it

        logging.getLogger("kvswap.failures").error("%s", failure.message, exc_info=origin)
    return failure


def is_own(error: BaseException) -> bool:
    """Return True if an error is this node's own trouble, which must not be counted against a peer."""
    if not isinstance(error, KvswapError):
        return isinstance(error, Exception)
    return error.origin is not None or isinstance(
        error, LocalFault | P2pDown | StoreFull | StoreLocked | TookTooLong | Unexpected
    )


def is_local(error: BaseException) -> bool:
    """Return True if this machine refused or lost something: a full, read-only or damaged disk, a permission."""
    failure = as_kvswap_error(error)
    damaged = isinstance(failure, IntegrityError) and failure.origin is not None
    return damaged or isinstance(failure, LocalFault | StoreFull | StoreLocked)


def brief(error: BaseException) -> str:
    """Format the type and text of an exception as one printable line of bounded length."""
    text = printable(str(error))[:_SHOWN]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _converted(error: BaseException, start: str) -> KvswapError:
    if isinstance(error, TimeoutError):
        return TookTooLong(
            f"{start}it took too long",
            cause="this machine is busy, or something it waits for hangs",
            hint="kvswap status",
        )
    if _is("ssl", "SSLError", error):  # an OSError whose errno is not one of the system's
        return LocalFault(f"{start}{brief(error)}", cause="TLS failed on this machine", hint="kvswap doctor")
    if isinstance(error, OSError):
        return _of_system(error, start)
    if _is("sqlite3", "Error", error):
        return _of_database(error, start)  # type: ignore[arg-type]
    if isinstance(error, UnicodeError):
        return UsageError(
            f"{start}text that is not valid Unicode ({brief(error)})",
            cause="another encoding than UTF-8, or half of a surrogate pair",
            hint="iconv -f ENCODING -t utf-8",
        )
    if isinstance(error, json.JSONDecodeError):
        return LocalFault(f"{start}not JSON ({brief(error)})", cause="a damaged or cut-off file", hint="kvswap doctor")
    if _is("tomllib", "TOMLDecodeError", error):
        return UsageError(f"{start}not TOML ({brief(error)})", cause="a typing error", hint="docs/configuration.md")
    if isinstance(error, ImportError):
        return Incompatible(
            f"{start}a package is missing or does not load ({brief(error)})",
            cause=f"{error.name or 'it'} is not installed, or not in a version that fits",
            hint=INSTALL_TORCH if (error.name or "").partition(".")[0] in _COMPUTING else "kvswap doctor",
            field="installation",
        )
    if isinstance(error, RecursionError):
        return UsageError(f"{start}it is nested too deeply", cause="what was given refers to itself", hint="flatten it")
    if isinstance(error, OverflowError):
        return UsageError(f"{start}a number is out of range ({brief(error)})", cause="a typing error", hint="--help")
    if _is("safetensors", "SafetensorError", error):
        return LocalFault(
            f"{start}weights that cannot be read ({brief(error)})",
            cause="a damaged or cut-off file, or one of another format",
            hint="get the model again: kvswap model pull NAME",
        )
    if _is("torch", "OutOfMemoryError", error):
        return LocalFault(
            f"{start}not enough memory on the GPU",
            cause="other programs use it, or the model or document is too large",
            hint="nvidia-smi",
        )
    if isinstance(error, MemoryError):
        return LocalFault(f"{start}not enough memory", cause="the model or document is too large here", hint="free")
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("interrupted", cause="Ctrl-C", hint="the same command resumes")
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return LocalFault(f"{start}no more threads", cause="a limit of processes and threads", hint="ulimit -u")
    return Unexpected(
        f"{start}a fault in kvswap ({brief(error)})",
        cause="kvswap itself, not what was asked of it",
        hint="kvswap.log in the home has the traceback; please report it",
    )


def _is(module: str, name: str, error: BaseException) -> bool:
    """Return True if `error` is of a class of a module that this process may never have imported."""
    return module in sys.modules and isinstance(error, getattr(sys.modules[module], name, ()))


def _where(error: OSError) -> str:
    names = [printable(str(name)) for name in (error.filename, error.filename2) if name is not None]
    return f"{' and '.join(names)}: " if names else ""


def _of_system(error: OSError, start: str) -> KvswapError:
    code = error.errno if type(error).__name__ not in ("gaierror", "herror") else None
    where = _where(error)
    if isinstance(error, Misplaced):
        name = printable(str(error.filename))
        cause, hint = "something else lies in the place of a file", f"ls -l {name}; mv {name} elsewhere"
        return LocalFault(f"{start}{where}{error.strerror}", cause=cause, hint=hint)
    if code in _FULL:
        return StoreFull(f"{start}{where}{_FULL[code]}", cause="no space is left; nothing was lost", hint=_NO_SPACE)
    if code in _LOCAL:
        what, cause, hint = _LOCAL[code]
        return LocalFault(f"{start}{where}{what}", cause=cause, hint=hint)
    if isinstance(error, ConnectionError):
        return LocalFault(f"{start}{where}the connection ended", cause="the other side closed it", hint="kvswap status")
    text = printable(error.strerror or str(error))[:_SHOWN] or type(error).__name__
    return LocalFault(f"{start}{where}{text}", cause="this machine's system refused it", hint="kvswap doctor")


def _of_database(error: sqlite3.Error, start: str) -> KvswapError:
    import sqlite3

    extended = int(getattr(error, "sqlite_errorcode", 0) or 0)
    code, text = extended & 0xFF, brief(error)
    if code == sqlite3.SQLITE_FULL or extended == sqlite3.SQLITE_IOERR_SHMSIZE:
        # on a full tmpfs the shared memory file of the log cannot grow: that is "disk I/O error" as well
        what = f"{start}{_FULL[errno.ENOSPC]} ({text})"
        return StoreFull(what, cause="no space is left; nothing was lost", hint=_NO_SPACE)
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return LocalFault(
            f"{start}the database cannot be opened or written ({text})",
            cause="a read-only file system, or a file of another user",
            hint=_OTHER_HOME,
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return IntegrityError(
            f"{start}the database is damaged ({text})",
            cause="a crash of the machine, a failing disk, or another program",
            hint="kvswap verify --store",
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreLocked(
            f"{start}the database is in use ({text})", cause="another program has it open", hint="kvswap status"
        )
    if code == sqlite3.SQLITE_IOERR:
        return LocalFault(f"{start}the disk failed ({text})", cause="a full or damaged disk", hint="df; dmesg")
    if code == sqlite3.SQLITE_NOMEM:
        return LocalFault(f"{start}not enough memory ({text})", cause="other programs use it", hint="free")
    return Unexpected(
        f"{start}the database refused ({text})",
        cause="another version of kvswap wrote it, or kvswap itself is wrong",
        hint="kvswap.log in the home has the traceback; please report it",
    )
