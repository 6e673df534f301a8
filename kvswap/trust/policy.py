"""The list of trusted publishers, whose statements this node acts on.

`Policy` is a value and decides without IO; `PolicyFile` keeps it in `trust.json`, replaced as a whole.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kvswap.core.atomic import write_atomic
from kvswap.core.errors import UsageError
from kvswap.core.failures import Misplaced, as_kvswap_error
from kvswap.core.files import read_regular
from kvswap.core.ids import PeerId
from kvswap.core.limits import MIB
from kvswap.trust.levels import PROOF_RULES

_BANS_KEPT = 1_000  # bans of publishers that were never trusted: new keys cost nothing
_REMOVED_KEPT = 1_000  # publishers that the user removed, the latest ones
_FOLLOWED = 1_000  # length of the list up to which a successor is added without the user
_FILE_BYTES = 16 * MIB
_WHY = 200  # characters


@dataclass(frozen=True, slots=True)
class Publisher:
    """A trusted publisher: since when (Unix seconds), and how it came to be trusted."""

    peer: str
    label: str = ""
    added: int = 0
    how: str = "added"  # "added" by hand, or "first-use"


@dataclass(frozen=True, slots=True)
class Ban:
    """A banned publisher, one of whose artifacts was proved wrong: since when (Unix seconds), why, and the audit.

    `rules`: the version of the proof rules that condemned it.  What version 1 found at V3, V5 or V7 is void: there the
    reader's own side could explain the difference.  At V2 it could not.
    """

    peer: str
    since: int = 0
    why: str = ""
    artifact: str = ""
    evidence: str = ""
    rules: int = 1

    @property
    def void(self) -> bool:
        """True if older rules condemned it by what proves nothing."""
        return self.rules < PROOF_RULES and not self.why.startswith("V2:")


@dataclass(frozen=True, slots=True)
class Policy:
    """The publishers that are trusted and those that are banned; own artifacts are always trusted.

    `lifted`: bans by older rules, not yet judged again; `removed`: publishers that the user took off the list, with the
    time (Unix seconds), which are never trusted again by themselves.
    """

    own: str
    publishers: dict[str, Publisher] = field(default_factory=dict)
    banned: dict[str, Ban] = field(default_factory=dict)
    lifted: dict[str, Ban] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)

    def trusts(self, peer: str) -> bool:
        """Return True if this publisher is the node itself, or is listed and not banned."""
        return peer == self.own or (peer in self.publishers and peer not in self.banned)

    def ban_of(self, peer: str) -> Ban | None:
        """Return the ban of a publisher, or None; the node's own publisher is never banned."""
        return None if peer == self.own else self.banned.get(peer)


class PolicyFile:
    """The list of trusted publishers on disk.  Safe for several threads; changing it blocks.

    Making one raises `UsageError` where the file cannot be read: an unreadable list is never taken for an empty one.
    What changes it raises `StoreFull` or `LocalFault` where the file cannot be written; nothing has changed then.
    """

    def __init__(self, path: Path, own: PeerId) -> None:
        self._path = path
        self._lock = threading.RLock()
        self.policy = Policy(str(own), *self._read())

    def _read(self) -> tuple[dict[str, Publisher], dict[str, Ban], dict[str, Ban], dict[str, int]]:
        try:
            data = json.loads(read_regular(self._path, _FILE_BYTES))
            read = [Publisher(**{k: row[k] for k in ("peer", "label", "added", "how")}) for row in data["publishers"]]
            names = ("peer", "since", "why", "artifact", "evidence")
            bans, lifted = (
                [Ban(**{k: row[k] for k in names}, rules=row.get("rules", 1)) for row in data.get(kind, [])]
                for kind in ("distrusted", "lifted")
            )
            removed = {str(row["peer"]): int(row["since"]) for row in data.get("removed", [])}
        except FileNotFoundError:
            return {}, {}, {}, {}
        except (Misplaced, ValueError, KeyError, TypeError, RecursionError) as error:
            # Never fall back to an empty or open list: an unreadable policy is an error.
            raise UsageError(
                f"cannot read the trust list {self._path}: {error.strerror if isinstance(error, Misplaced) else error}",
                cause="another program changed it, or a damaged disk",
                hint=f"put a copy in its place, or mv {self._path} elsewhere and kvswap trust add again",
            ) from error
        void = {c.peer: c for c in (*lifted, *bans) if c.void}
        return {p.peer: p for p in read}, {c.peer: c for c in bans if not c.void}, void, removed

    def add(self, peer: str, label: str = "", how: str = "added") -> Publisher:
        """Trust a publisher from now on, whatever it did before.

        Raises `UsageError` when `peer` is not a PeerId; `label` is cut to 200 characters.
        """
        PeerId.parse(peer)
        row = Publisher(peer, label[:200], int(time.time()), how)
        with self._lock:
            rest = {k: v for k, v in self.policy.banned.items() if k != peer}
            self._write({**self.policy.publishers, peer: row}, rest, judged=peer)
        return row

    def follow(self, peer: str, label: str, before: str) -> bool:
        """Trust the successor of a trusted publisher.

        Returns False where the list is full or the user had removed the successor: then only the user adds it.
        """
        with self._lock:
            if len(self.policy.publishers) >= _FOLLOWED or peer in self.policy.removed:
                return False
            self.add(peer, label, how=f"after {before}")
        return True

    def ban(self, peer: str, why: str, artifact: str, evidence: str) -> None:
        """Ban a publisher: nothing of it is used again, unless the user says `kvswap trust add`.

        Of banned publishers that were never trusted the last thousand are kept: one that is forgotten is an untrusted
        publisher again, whose artifacts are verified.
        """
        row = Ban(peer, int(time.time()), why[:_WHY], artifact, evidence, PROOF_RULES)
        with self._lock:
            if peer == self.policy.own:
                return
            self._write(self.policy.publishers, self._bounded({**self.policy.banned, peer: row}), judged=peer)

    def _bounded(self, banned: dict[str, Ban]) -> dict[str, Ban]:
        """Drop the oldest bans of publishers that were never trusted, where they are too many."""
        untrusted = [name for name in banned if name not in self.policy.publishers]
        gone = set(untrusted[: max(0, len(untrusted) - _BANS_KEPT)])
        return {name: row for name, row in banned.items() if name not in gone}

    def succeed(self, own: str) -> None:
        """Make `own` this node's publisher, after a change of keys; what the old key signed stays trusted."""
        with self._lock:
            old = Publisher(self.policy.own, "this node, before", int(time.time()), "rotated")
            self._write({**self.policy.publishers, old.peer: old}, self.policy.banned, own=own)

    def remove(self, peer: str) -> bool:
        """Stop trusting a publisher, also as a successor.  Returns False when it was not on the list."""
        with self._lock:
            rest = {k: v for k, v in self.policy.publishers.items() if k != peer}
            changed = len(rest) != len(self.policy.publishers)
            if changed:
                removed = [*self.policy.removed.items(), (peer, int(time.time()))]
                self._write(rest, self.policy.banned, removed=dict(removed[-_REMOVED_KEPT:]))
        return changed

    def rows(self) -> list[dict[str, Any]]:
        """List the trusted publishers, those trusted longest first."""
        return _rows(self.policy)

    def bans(self) -> list[dict[str, Any]]:
        """List the banned publishers, those banned longest first."""
        return _sorted(self.policy.banned)

    def lifted(self) -> list[dict[str, Any]]:
        """List the publishers banned by older rules, which is void.

        Each is judged again when something of it is used.
        """
        return _sorted(self.policy.lifted)

    def _write(
        self,
        publishers: dict[str, Publisher],
        banned: dict[str, Ban],
        judged: str | None = None,
        own: str | None = None,
        removed: dict[str, int] | None = None,
    ) -> None:
        """Write the file, then take the new policy: what a full disk does not store does not hold.

        Raises `StoreFull` or `LocalFault`.
        """
        lifted = {k: v for k, v in self.policy.lifted.items() if k != judged}
        gone = self.policy.removed if removed is None else removed
        gone = {k: v for k, v in gone.items() if k not in publishers}
        policy = Policy(own or self.policy.own, publishers, banned, lifted, gone)
        data = {
            "publishers": _rows(policy),
            "distrusted": _sorted(banned),
            "lifted": _sorted(lifted),
            "removed": [{"peer": name, "since": since} for name, since in gone.items()],
        }
        try:
            write_atomic(self._path, json.dumps(data, indent=1).encode())
        except OSError as error:
            raise as_kvswap_error(error, f"writing the trust list {self._path}") from error
        self.policy = policy


def _rows(policy: Policy) -> list[dict[str, Any]]:
    return [
        {"peer": p.peer, "label": p.label, "added": p.added, "how": p.how}
        for p in sorted(policy.publishers.values(), key=lambda p: p.added)
    ]


def _sorted(bans: dict[str, Ban]) -> list[dict[str, Any]]:
    return [asdict(c) for c in sorted(bans.values(), key=lambda c: c.since)]
