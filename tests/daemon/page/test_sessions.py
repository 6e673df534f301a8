"""Links and sessions: once, in time, bounded."""

from __future__ import annotations

from kvswap.daemon.page.sessions import LINK_SECONDS, PageSessions, same


def test_a_link_is_spent_and_ends() -> None:
    now = [0.0]
    sessions = PageSessions(lambda: now[0])
    link = sessions.invite()
    session = sessions.open(link)
    assert session is not None and sessions.find(session.cookie) is session
    assert session.token != session.cookie
    assert sessions.open(link) is None
    late = sessions.invite()
    now[0] = LINK_SECONDS + 1
    assert sessions.open(late) is None
    assert sessions.find("") is None


def test_both_tables_are_bounded() -> None:
    sessions = PageSessions()
    links = [sessions.invite() for _ in range(100)]
    assert sum(sessions.open(link) is not None for link in links) <= 16
    cookies = []
    for _ in range(100):
        session = sessions.open(sessions.invite())
        assert session is not None
        cookies.append(session.cookie)
    assert sum(sessions.find(cookie) is not None for cookie in cookies) <= 16
    assert sessions.find(cookies[-1]) is not None


def test_secrets_are_compared_whatever_a_header_holds() -> None:
    assert same("a", "a")
    assert not same("a\udc80", "a")
    assert not same("", "a")
