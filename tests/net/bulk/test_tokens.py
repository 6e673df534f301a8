from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvswap.core.errors import PeerBusy, TokenRefused
from kvswap.core.limits import LIMITS
from kvswap.net.bulk import Tokens


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_token_names_its_peer_until_it_expires_or_is_revoked() -> None:
    clock = Clock()
    tokens = Tokens(clock)
    first, second = tokens.issue("a", 10), tokens.issue("b", 20)
    assert tokens.check(first) == "a" and tokens.check(second) == "b"
    clock.now += 11
    with pytest.raises(TokenRefused, match="expired"):
        tokens.check(first)
    tokens.revoke(second)
    with pytest.raises(TokenRefused, match="revoked"):
        tokens.check(second)
    tokens.revoke(second)


def test_a_token_of_another_node_or_before_a_restart_is_refused() -> None:
    with pytest.raises(TokenRefused, match="not a token"):
        Tokens().check(Tokens().issue("a"))


def test_a_peer_holds_a_few_at_a_time() -> None:
    clock = Clock()
    tokens = Tokens(clock)
    for _ in range(LIMITS.tokens_per_peer):
        tokens.issue("a", 10)
    with pytest.raises(PeerBusy):
        tokens.issue("a", 10)
    tokens.issue("b", 10)
    clock.now += 11
    tokens.issue("a", 10)


@given(st.text(max_size=600) | st.binary(max_size=300).map(lambda b: b.decode("latin1")))
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(TokenRefused):
        Tokens().check(text)


@given(st.data())
def test_a_changed_token_is_refused(data: st.DataObject) -> None:
    tokens = Tokens()
    token = tokens.issue("a")
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."))
    changed = token[:at] + other + token[at + 1 :]
    try:
        assert tokens.check(changed) == "a" and _same(changed, token)
    except TokenRefused:
        pass


def _same(one: str, other: str) -> bool:
    """Base64 has spare bits at its end: another spelling of the same token is that token."""
    import base64

    def plain(text: str) -> list[bytes]:
        return [base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in text.split(".")]

    return plain(one) == plain(other)
