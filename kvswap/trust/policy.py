"""The allow-list: which publishers' statements this node acts on.

`Policy` is a value and decides without IO; `PolicyFile` keeps it in `trust.json`, replaced as a whole.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kvswap.core.errors import UsageError
from kvswap.core.failures import Misplaced, as_kvswap_error
from kvswap.core.files import read_kept
from kvswap.core.ids import PeerId
from kvswap.core.limits import MIB
from kvswap.core.whole import write_whole
from kvswap.trust.ladder import PROOF_RULES

_CAUGHT_KEPT = 1_000  # who was caught and never listed: each needs a key, and keys cost nothing
_REMOVED_KEPT = 1_000  # whom the user removed last
_FOLLOWED = 1_000  # publishers up to which the successor of one is listed by itself
_FILE_BYTES = 16 * MIB
_WHY = 200  # characters


@dataclass(frozen=True, slots=True)
class Publisher:
    """One trusted publisher: since when (Unix seconds), and how it came to be trusted."""

    peer: str
    label: str = ""
    added: int = 0
    how: str = "added"  # "added" by hand, or "first-use"


@dataclass(frozen=True, slots=True)
class Caught:
    """A publisher one of whose artifacts was proved wrong: since when, why, and the audit that shows it.

    `rules`: the version of the rules by which it was.  What version 1 found at V3, V5 or V7 is void: there the
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
        return self.rules < PROOF_RULES and not self.why.startswith("V2:")


@dataclass(frozen=True, slots=True)
class Policy:
    """Own artifacts and those of listed publishers are trusted; nobody else's, nor those of one who was caught."""

    own: str
    publishers: dict[str, Publisher] = field(default_factory=dict)
    distrusted: dict[str, Caught] = field(default_factory=dict)
    lifted: dict[str, Caught] = field(default_factory=dict)  # who was caught by older rules, and not yet judged again
    removed: dict[str, int] = field(
        default_factory=dict
    )  # since when the user trusts them no more; nothing undoes that

    def trusts(self, peer: str) -> bool:
        return peer == self.own or (peer in self.publishers and peer not in self.distrusted)

    def caught(self, peer: str) -> Caught | None:
        return None if peer == self.own else self.distrusted.get(peer)


class PolicyFile:
    """The allow-list on disk.  May be used from several threads; what changes it blocks."""

    def __init__(self, path: Path, own: PeerId) -> None:
        self._path = path
        self._lock = threading.RLock()
        self.policy = Policy(str(own), *self._read())

    def _read(self) -> tuple[dict[str, Publisher], dict[str, Caught], dict[str, Caught], dict[str, int]]:
        try:
            data = json.loads(read_kept(self._path, _FILE_BYTES))
            read = [Publisher(**{k: row[k] for k in ("peer", "label", "added", "how")}) for row in data["publishers"]]
            names = ("peer", "since", "why", "artifact", "evidence")
            caught, lifted = (
                [Caught(**{k: row[k] for k in names}, rules=row.get("rules", 1)) for row in data.get(kind, [])]
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
        void = {c.peer: c for c in (*lifted, *caught) if c.void}
        return {p.peer: p for p in read}, {c.peer: c for c in caught if not c.void}, void, removed

    def add(self, peer: str, label: str = "", how: str = "added") -> Publisher:
        """Trust a publisher from now on, whatever it did before."""
        PeerId.parse(peer)
        row = Publisher(peer, label[:200], int(time.time()), how)
        with self._lock:
            rest = {k: v for k, v in self.policy.distrusted.items() if k != peer}
            self._write({**self.policy.publishers, peer: row}, rest, judged=peer)
        return row

    def follow(self, peer: str, label: str, before: str) -> bool:
        """Trust the successor of a trusted publisher.

        False where the list is full, or the user removed it: then the user adds to it.
        """
        with self._lock:
            if len(self.policy.publishers) >= _FOLLOWED or peer in self.policy.removed:
                return False
            self.add(peer, label, how=f"after {before}")
        return True

    def distrust(self, peer: str, why: str, artifact: str, evidence: str) -> None:
        """Never act on anything of this publisher again, unless somebody says `trust add`.

        Of strangers that were caught the last thousand are kept: who is forgotten is a stranger, and verified again.
        """
        row = Caught(peer, int(time.time()), why[:_WHY], artifact, evidence, PROOF_RULES)
        with self._lock:
            if peer == self.policy.own:
                return
            self._write(self.policy.publishers, self._bounded({**self.policy.distrusted, peer: row}), judged=peer)

    def _bounded(self, distrusted: dict[str, Caught]) -> dict[str, Caught]:
        """Leave out the strangers that were caught first, where they are too many."""
        strangers = [name for name in distrusted if name not in self.policy.publishers]
        gone = set(strangers[: max(0, len(strangers) - _CAUGHT_KEPT)])
        return {name: row for name, row in distrusted.items() if name not in gone}

    def succeed(self, own: str) -> None:
        """This node's publisher has another key from now on; what the old one signed stays trusted."""
        with self._lock:
            old = Publisher(self.policy.own, "this node, before", int(time.time()), "rotated")
            self._write({**self.policy.publishers, old.peer: old}, self.policy.distrusted, own=own)

    def remove(self, peer: str) -> bool:
        """Stop trusting a publisher, whoever names it as a successor.  False when it was not on the list."""
        with self._lock:
            rest = {k: v for k, v in self.policy.publishers.items() if k != peer}
            changed = len(rest) != len(self.policy.publishers)
            if changed:
                removed = [*self.policy.removed.items(), (peer, int(time.time()))]
                self._write(rest, self.policy.distrusted, removed=dict(removed[-_REMOVED_KEPT:]))
        return changed

    def rows(self) -> list[dict[str, Any]]:
        """List trusted publishers, those trusted longest first."""
        return _rows(self.policy)

    def caught(self) -> list[dict[str, Any]]:
        """List distrusted publishers, those distrusted longest first."""
        return _sorted(self.policy.distrusted)

    def lifted(self) -> list[dict[str, Any]]:
        """Who was caught by older rules, which is void; each is judged again when something of it is used."""
        return _sorted(self.policy.lifted)

    def _write(
        self,
        publishers: dict[str, Publisher],
        distrusted: dict[str, Caught],
        judged: str | None = None,
        own: str | None = None,
        removed: dict[str, int] | None = None,
    ) -> None:
        """The file first: what a full disk does not take does not hold.  Raises `StoreFull` or `LocalFault`."""
        lifted = {k: v for k, v in self.policy.lifted.items() if k != judged}
        gone = self.policy.removed if removed is None else removed
        gone = {k: v for k, v in gone.items() if k not in publishers}
        policy = Policy(own or self.policy.own, publishers, distrusted, lifted, gone)
        data = {
            "publishers": _rows(policy),
            "distrusted": _sorted(distrusted),
            "lifted": _sorted(lifted),
            "removed": [{"peer": name, "since": since} for name, since in gone.items()],
        }
        try:
            write_whole(self._path, json.dumps(data, indent=1).encode())
        except OSError as error:
            raise as_kvswap_error(error, f"writing the trust list {self._path}") from error
        self.policy = policy


def _rows(policy: Policy) -> list[dict[str, Any]]:
    return [
        {"peer": p.peer, "label": p.label, "added": p.added, "how": p.how}
        for p in sorted(policy.publishers.values(), key=lambda p: p.added)
    ]


def _sorted(caught: dict[str, Caught]) -> list[dict[str, Any]]:
    return [asdict(c) for c in sorted(caught.values(), key=lambda c: c.since)]
