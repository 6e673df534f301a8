"""The results about publishers, audits, groups and the publisher's own key."""

from __future__ import annotations

from msgspec import field

from kvswap.api.result import Result


class TrustedPublisher(Result, frozen=True, kw_only=True):
    """A publisher on the allow-list."""

    peer: str
    label: str
    """The name that the user gave it."""
    added: int
    """Unix seconds."""
    how: str
    """The way it came there: `added` by hand, at `first-use`, or as a successor."""


class BannedPublisher(Result, frozen=True, kw_only=True):
    """A publisher one of whose artifacts was proved wrong."""

    peer: str
    since: int
    """Unix seconds."""
    why: str
    artifact: str
    evidence: str
    """The id of the audit that proves it; empty: the proof was made again."""
    rules: int
    """The version of the rules of proof."""


class TrustResult(Result, frozen=True, kw_only=True):
    """The publishers whose artifacts this node uses, and those that were found wrong."""

    own: str
    """This node's own publisher."""
    publishers: list[TrustedPublisher]
    banned: list[BannedPublisher] = field(name="distrusted")
    lifted: list[BannedPublisher]
    """Bans by older rules, which are void; these are judged again when used."""


class AuditFinding(Result, frozen=True, kw_only=True):
    """The outcome of verifying an artifact, signed by who did it."""

    audit: str
    """The id of the audit."""
    artifact: str
    publisher: str
    auditor: str
    level: str = field(name="step")
    verdict: str
    rules: int
    void: bool
    """True if it was judged by older rules, and counts for nothing."""
    samples: int
    """The positions that were looked at."""
    tokens: int
    worst: float
    """The largest difference, in multiples of what honest caches show."""
    why: str
    issued: int
    """Unix seconds."""


class AuditsResult(Result, frozen=True, kw_only=True):
    """The audits that are kept."""

    audits: list[AuditFinding]


class RotateResult(Result, frozen=True, kw_only=True):
    """The result of `kvswap trust rotate`: the publisher has a new key."""

    old: str
    new: str
    sequence: int
    """The number of the status record that names the new one."""


class GroupRow(Result, frozen=True, kw_only=True):
    """A group that this node is in, without its secret."""

    name: str
    tag: str = field(name="mark")
    """The tag, which is equal for all members, whatever they call the group."""


class GroupsResult(Result, frozen=True, kw_only=True):
    """The groups that this node is in."""

    groups: list[GroupRow]
    default: str | None
    """The group that is published for by itself."""


class GroupRows(Result, frozen=True, kw_only=True):
    """The result of `kvswap group ls`."""

    groups: list[GroupRow]


class GroupResult(Result, frozen=True, kw_only=True):
    """The result of `kvswap group new` and `import`."""

    name: str


class GroupKey(Result, frozen=True, kw_only=True):
    """A group's key, which is a secret: who has it is a member."""

    name: str
    key: str


class GroupLeaveResult(Result, frozen=True, kw_only=True):
    """The result of `kvswap group rm`."""

    name: str
    removed: bool
