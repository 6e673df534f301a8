"""Who is believed, and what is checked before a byte is used.

`keys` holds Ed25519 keys, `policy` the allow-list as a value, `verify` the order of checks.  Deciding
is pure: `verify` takes bytes, a policy and a clock reading, and returns a manifest or raises.
"""

from kvswap.trust.keys import Key, check_signature, load_or_create
from kvswap.trust.policy import Policy, PolicyFile, Publisher
from kvswap.trust.verify import Statement, read_statement, require_trust, verify_envelope

__all__ = [
    "Key",
    "Policy",
    "PolicyFile",
    "Publisher",
    "Statement",
    "check_signature",
    "load_or_create",
    "read_statement",
    "require_trust",
    "verify_envelope",
]
