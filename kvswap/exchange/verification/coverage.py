"""What is known of an artifact that is in the store: which levels were checked, and why others were not."""

from __future__ import annotations

from functools import partial

from kvswap.api.verification import Verification
from kvswap.exchange.node.node import Node
from kvswap.exchange.verification.outcomes import is_own
from kvswap.trust import Statement
from kvswap.trust.levels import Level, LevelReport


def verification(node: Node, statement: Statement, report: LevelReport | None) -> Verification:
    """Return how far an artifact was verified, as `kvswap fetch` reports it; "trusted" is only what the user trusts.

    Blocks.
    """
    policy, publisher = node.trust.policy.policy, statement.manifest.publisher
    trusted = policy.trusts(publisher)
    listed = policy.publishers.get(publisher)
    label = listed.label if listed is not None else None
    if is_own(node, statement) and report is None:
        return Verification(publisher=publisher, label=label, trusted=True, passed=["V0", "V1"], unchecked={}, own=True)
    who = partial(Verification, publisher=publisher, label=label, trusted=trusted)
    if report is not None:
        return who(passed=report.names_passed, unchecked=report.unchecked)
    done = node.trust.records.checks(str(statement.artifact)) | {int(Level.DIGESTS)}
    if trusted:
        done.add(int(Level.POLICY))
        why = "its publisher is trusted; kvswap verify --level N checks it"
    else:
        reached = Level(max(done)).words
        why = f"verified up to {reached}; its publisher is not trusted; kvswap verify --level N checks more"
    return who(
        passed=[f"V{level}" for level in sorted(done)],
        unchecked={f"V{int(level)}": why for level in Level if int(level) not in done},
    )
