"""Signatures, trusted publishers, and what is checked before a byte is used.

`keys` holds Ed25519 keys, `groups` the keys that readers share, `policy` the list of trusted publishers, `verify` the
order of checks.  Deciding is pure: `verify` takes bytes, a policy and a clock reading, and returns a manifest or
raises.
"""

from kvswap.trust.groups import Group, Groups, Identifiers, one_key
from kvswap.trust.keys import Key, check_signature, load_or_create
from kvswap.trust.policy import Policy, PolicyFile, Publisher
from kvswap.trust.verify import Statement, read_statement, require_trust, verify_envelope

__all__ = [
    "Group",
    "Groups",
    "Key",
    "Identifiers",
    "Policy",
    "PolicyFile",
    "Publisher",
    "Statement",
    "check_signature",
    "load_or_create",
    "one_key",
    "read_statement",
    "require_trust",
    "verify_envelope",
]
