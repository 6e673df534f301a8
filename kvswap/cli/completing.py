"""Types of options and arguments whose values the shell can complete: references, models, peers, groups, settings.

They take any text: what is offered is what is here, and no list of what is allowed.  Nothing is loaded that a TAB would
have to wait for: the store's index is read as a database, and the daemon is asked for its peers for a moment only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import click
from click.shell_completion import CompletionItem
from click.types import StringParamType

_MOST = 200  # values that are offered
_ASK_SECONDS = 0.2
_REFERENCE = re.compile(r"[a-z0-9:]{0,80}")

Pair = tuple[str, str | None]


def _home(context: click.Context) -> Path:
    """Return the home that the line names, before or after the verb, or else the usual one."""
    from kvswap.core.directories import home_directory

    found: click.Context | None = context
    while found is not None:
        if found.params.get("home"):
            return home_directory(str(found.params["home"]))
        found = found.parent
    return home_directory()


class Completed(StringParamType):
    """A text whose completions are the values of `offered`, pairs of a value and what is said of it."""

    def offered(self, context: click.Context, incomplete: str) -> Iterable[Pair]:
        """Yield values that may begin with `incomplete`; others are left out."""
        return ()

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """Return the completions of a word; none where anything is wrong, as nobody could be answer."""
        try:
            pairs = dict(p for p in self.offered(ctx, incomplete) if p[0].startswith(incomplete))
        except Exception:  # noqa: BLE001 - a TAB is no place for a traceback
            pairs = {}
        return [CompletionItem(value, help=said) for value, said in list(pairs.items())[:_MOST]]


class ReferenceType(Completed):
    """A reference: the id of an artifact in the store, the digest of its document, or else a file."""

    def offered(self, context: click.Context, incomplete: str) -> Iterator[Pair]:
        """Yield ids and digests of what is in the store, what was used last first."""
        import sqlite3

        if not _REFERENCE.fullmatch(incomplete):
            return
        index = _home(context) / "store" / "index.sqlite3"
        query = (
            "SELECT id, document, label, tokens FROM artifacts WHERE id GLOB ? OR document GLOB ? "
            f"ORDER BY used DESC LIMIT {_MOST}"
        )
        with closing(_opened(index)) as database:
            try:
                rows = database.execute(query, (f"{incomplete}*", f"{incomplete}*")).fetchall()
            except sqlite3.Error:
                return
        for name, document, label, tokens in rows:
            said = f"{tokens} tokens, {label}" if label else "sealed"
            yield name, said
            if document:
                yield document, said

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """Return references, or where none fits let the shell complete files."""
        return super().shell_complete(ctx, param, incomplete) or [CompletionItem(incomplete, type="file")]


class ModelType(Completed):
    """A model: a name of the catalogue, one that was pulled, or a directory."""

    def offered(self, context: click.Context, incomplete: str) -> Iterator[Pair]:
        """Yield the models that are here, then those that can be pulled."""
        from kvswap.core.directories import models_directory
        from kvswap.model import catalogue

        entries = catalogue.entries()
        here = catalogue.pulled(models_directory())
        for name in here:
            yield name, entries[name].title if name in entries else "here"
        for name, entry in entries.items():
            if name not in here:
                yield name, f"{entry.title}, not pulled"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """Return names, or for the beginning of a path let the shell complete directories."""
        if incomplete.startswith((".", "/", "~")):
            return [CompletionItem(incomplete, type="dir")]
        return super().shell_complete(ctx, param, incomplete) or [CompletionItem(incomplete, type="dir")]


class PulledModelType(Completed):
    """A model that was pulled."""

    def offered(self, context: click.Context, incomplete: str) -> Iterator[Pair]:
        """Yield the models that are here."""
        from kvswap.core.directories import models_directory
        from kvswap.model import catalogue

        for name, directory in catalogue.pulled(models_directory()).items():
            yield name, str(directory)


class PeerType(Completed):
    """The PeerId of a peer, or of a publisher."""

    def __init__(self, *words: str, kinds: Iterable[str] = ("publishers", "peers")) -> None:
        """`words` are offered too; `kinds`: of `publishers`, `peers` and `hosts`, in their order."""
        self._words = words
        self._kinds = tuple(kinds)

    def offered(self, context: click.Context, incomplete: str) -> Iterator[Pair]:
        """Yield whom this node knows."""
        yield from ((word, None) for word in self._words)
        home = _home(context)
        for kind in self._kinds:
            with suppress(Exception):  # of a file that is not there, or damaged: the others are offered all the same
                yield from list(_KINDS[kind](home))


class GroupType(Completed):
    """The name of a group whose key is here."""

    def offered(self, context: click.Context, incomplete: str) -> Iterator[Pair]:
        """Yield the groups that this node is in."""
        for path in sorted((_home(context) / "keys" / "groups").glob("*.group")):
            yield path.stem, None


class OneOf(Completed):
    """A word of a few; another one is judged later, with all else that is wrong."""

    def __init__(self, *words: str) -> None:
        self._words = words

    def offered(self, context: click.Context, incomplete: str) -> Iterator[Pair]:
        """Yield the words."""
        yield from ((word, None) for word in self._words)


class SettingType(Completed):
    """The name of a setting."""

    def offered(self, context: click.Context, incomplete: str) -> Iterator[Pair]:
        """Yield all settings."""
        from dataclasses import fields

        from kvswap.core.settings import Settings

        for field in fields(Settings):
            yield field.name, None


def _opened(path: Path) -> Any:
    """Open a database that a daemon may have open too, to read."""
    import sqlite3

    return sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=_ASK_SECONDS)


def _publishers(home: Path) -> Iterator[Pair]:
    answer = json.loads((home / "trust.json").read_text()) if (home / "trust.json").exists() else {}
    for row in answer.get("publishers", []):
        yield row["peer"], f"publisher {row.get('label', '')}".strip()


def _peers(home: Path) -> Iterator[Pair]:
    """Yield the peers that the daemon knows, or without one those in the ledger."""
    try:
        rows = _asked(home, "/v1/peers")["peers"]
    except Exception:  # noqa: BLE001 - no daemon, or one that is busy
        with closing(_opened(home / "peers.sqlite3")) as database:
            rows = [{"peer": peer} for (peer,) in database.execute(f"SELECT peer FROM peers LIMIT {_MOST}")]
    for row in rows:
        yield row["peer"], "connected" if row.get("connected") else None


def _hosts(home: Path) -> Iterator[Pair]:
    for path in sorted((home / "keys" / "hosts").glob("*.host")):
        yield path.stem, "host"


_KINDS: dict[str, Callable[[Path], Iterator[Pair]]] = {"publishers": _publishers, "peers": _peers, "hosts": _hosts}


def _asked(home: Path, path: str) -> Any:
    """Ask the daemon, which has a moment to answer."""
    from http.client import HTTPConnection

    from kvswap.core.runfile import RunFile

    run = RunFile.read(home)
    where = urlsplit(run.url)
    with closing(HTTPConnection(str(where.hostname), where.port, timeout=_ASK_SECONDS)) as connection:
        connection.request("GET", path, headers={"Authorization": f"Bearer {run.token}"})
        return json.loads(connection.getresponse().read())
