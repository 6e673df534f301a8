"""The quotas of `trust.sqlite3`: how much of it peers' statements may fill, and what gives way beyond that."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable
from itertools import islice

from kvswap.core.limits import LIMITS

LINES_OF_UNTRUSTED = (
    2 * LIMITS.status_record_withdrawals
)  # withdrawals: of its newest head, and as many that it left out since
LINES_OF_TRUSTED = 10 * LIMITS.status_record_withdrawals
AUDITS_OF_ONE_ARTIFACT = 64


def trim(db: sqlite3.Connection, table: str, kept: int, where: str = "1", values: Iterable[object] = ()) -> None:
    """Delete the oldest rows of a table, or of a part of it, beyond `kept`."""
    given = tuple(values)
    (count,) = db.execute(f"SELECT COUNT(*) FROM {table} WHERE {where}", given).fetchone()
    if count > kept:
        cut = db.execute(f"SELECT at FROM {table} WHERE {where} ORDER BY at DESC LIMIT 1 OFFSET ?", (*given, kept))
        db.execute(f"DELETE FROM {table} WHERE at <= ? AND ({where})", (cut.fetchone()["at"], *given))


def trim_lines(db: sqlite3.Connection, publisher: str, said: Collection[str], most: int) -> int:
    """Bound the withdrawals of a publisher; those of what was here or asked for, and of its newest record, all stay.

    Of the rest what was said longest ago gives way.  Returns how many lines there are.
    """
    rest = "publisher = ? AND NOT kept AND artifact NOT IN (SELECT value FROM json_each(?))"
    trim(db, "withdrawn", max(0, most - len(said)), rest, (publisher, json.dumps(list(said))))
    (count,) = db.execute("SELECT COUNT(*) FROM withdrawn WHERE publisher = ? AND NOT kept", (publisher,)).fetchone()
    return int(count)


def joined_lines(before: dict[str, str], said: dict[str, str], held: Collection[str], most: int) -> dict[str, str]:
    """Join withdrawals that wait in memory, `before`, with those of the newest status record, `said`.

    They are bounded as by `trim_lines`, and the newest come last.
    """
    rest = {name: why for name, why in before.items() if name not in said}
    over = max(0, len(rest) + len(said) - most)
    gone = set(islice((name for name in rest if name not in held), over))
    return {name: why for name, why in rest.items() if name not in gone} | said


def free_capacity_for_audit(db: sqlite3.Connection, artifact: str, failed: bool) -> bool:
    """Return True if an artifact has room for one more audit; for a failure the oldest is deleted, passes first."""
    (count,) = db.execute("SELECT COUNT(*) FROM audits WHERE artifact = ?", (artifact,)).fetchone()
    if count < AUDITS_OF_ONE_ARTIFACT:
        return True
    if failed:
        oldest = "SELECT id FROM audits WHERE artifact = ? ORDER BY failed, at LIMIT ?"
        db.execute(f"DELETE FROM audits WHERE id IN ({oldest})", (artifact, count - AUDITS_OF_ONE_ARTIFACT + 1))
    return failed


def trim_audits(db: sqlite3.Connection, most: int) -> None:
    """Bound the audits of all artifacts: those that passed give way before those that failed."""
    (failed,) = db.execute("SELECT COUNT(*) FROM audits WHERE failed").fetchone()
    trim(db, "audits", max(0, most - failed), "NOT failed")
    trim(db, "audits", most, "failed")
