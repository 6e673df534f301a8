"""The use of an artifact, from the moment that it is what the user gets: with the right text, and trusted from now on.

What is only offered changes nothing here (`discovery.resolve` judges it).
"""

from __future__ import annotations

import asyncio
import hashlib

from kvswap.core.errors import UsageError
from kvswap.exchange.node.node import Node
from kvswap.exchange.request import Terms
from kvswap.trust import Statement


async def use(node: Node, statement: Statement, terms: Terms) -> None:
    """Note that an artifact is what the user gets.

    Here, and nowhere before, `trust_on_first_use` trusts its publisher: whoever can offer something is not used yet.
    """
    await asyncio.to_thread(_use, node, statement, terms)


def _use(node: Node, statement: Statement, terms: Terms) -> None:
    publisher, policy = statement.manifest.publisher, node.trust.policy.policy
    known = policy.trusts(publisher) or publisher in policy.removed
    if terms.trust_on_first_use and not known and policy.ban_of(publisher) is None:
        node.trust.policy.add(publisher, "first use", how="first-use")
        node.events.add("trusted", publisher=publisher, how="first-use")
    node.trust.records.ask(str(statement.artifact))


def require_text(statement: Statement, text: str | None) -> None:
    """Raise `UsageError` for a text that is not the document which the manifest names: it says nothing of the cache."""
    document = statement.manifest.document
    if text is None or document is None or hashlib.sha256(text.encode()).digest() == document.sha256:
        return
    raise UsageError(
        f"the text that was given is not the document of artifact {statement.artifact}, {document.reference}",
        cause="another file, or the document was changed since",
        hint=f"kvswap show {statement.artifact}",
    )
