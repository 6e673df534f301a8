"""Asking a host over real HTTPS: who it is, and what it may send."""

from __future__ import annotations

import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from kvswap.core.errors import (
    IntegrityError,
    KvswapError,
    NotFound,
    PeerError,
    QuotaExceeded,
    TokenRefused,
    Untrusted,
    UsageError,
)
from kvswap.core.limits import LIMITS
from kvswap.net.bulk.identity import BulkIdentity
from kvswap.net.host_connection import HostConnection, Invitation
from kvswap.net.hosts import Hosts
from kvswap.trust.keys import write_private
from tests.support import key, run
from tests.trust.test_hosting import HOST, offer

PEER = str(HOST.peer_id)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def over_https(handler: Handler, use: Callable[[str], Awaitable[Any]], signer: Any = HOST) -> Any:
    """Run a server that answers everything with `handler`, and `use` its URL."""

    async def work() -> Any:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=BulkIdentity.create(signer).context).start()
        try:
            return await use(f"https://127.0.0.1:{runner.addresses[0][1]}")
        finally:
            await runner.cleanup()

    return run(work())


async def collect(connection: HostConnection) -> list[dict[str, Any]]:
    return [chunk async for chunk in connection.ask({"question": "?"})]


def test_an_invitation_is_text_and_back() -> None:
    invitation = Invitation("https://example.org:8100", PEER, "secret")
    assert Invitation.from_text(f"  {invitation.to_text()}\n") == invitation
    assert "secret" not in repr(invitation)
    for text in ("", "kvswap-host:", "kvswap-host:gg", invitation.to_text()[:-4], "kvswap-host:" + "A" * 5000):
        with pytest.raises(UsageError):
            Invitation.from_text(text)


@pytest.mark.parametrize("url", ["http://example.org:8100", "http://127.0.0.1:8100", "http://[::1]:8100"])
def test_in_the_clear_only_where_the_user_says_so(url: str, tmp_path: Path) -> None:
    text = Invitation(url, PEER, "t").to_text()
    with pytest.raises(UsageError, match="https") as told:
        Hosts(tmp_path).add(text)
    assert "--plain" in str(told.value.hint)
    assert Hosts(tmp_path).add(text, plain=True).url == url
    assert [i.url for i in Hosts(tmp_path).all()] == [url]  # and it is remembered that the user did


@pytest.mark.parametrize(
    "rest",
    ["/admin/shutdown?confirm=yes&x=", "/#", "?x=", "/..", "#", "/\r\nX-Evil: 1", "/%0d%0a", "\\@h", "/v1/../admin"],
)
@pytest.mark.parametrize("plain", [False, True])
def test_an_invitation_makes_nobody_ask_for_anything_else(rest: str, plain: bool, tmp_path: Path) -> None:
    for url in (f"http://127.0.0.1:8100{rest}", f"https://host.example{rest}", f"https://user@host.example{rest}"):
        text = Invitation(url, PEER, "t").to_text()
        with pytest.raises(UsageError):
            Hosts(tmp_path).add(text, plain=plain)
        write_private(tmp_path / f"{PEER}.host", text + "\n")  # as 2b501d5 would have kept it
        hosts = Hosts(tmp_path)
        assert not hosts.all() and PEER in hosts.unusable
        hosts.remove(PEER)
        assert not list(tmp_path.iterdir()) and not Hosts(tmp_path).unusable


@pytest.mark.parametrize("token", ["", "a b", "a\r\nX-Evil: 1", "a\0", "x" * 257, "\u00fc"])
def test_a_token_is_what_can_stand_in_a_header(token: str) -> None:
    with pytest.raises(UsageError):
        Invitation.from_text(Invitation("https://h", PEER, token).to_text())


def test_what_was_joined_before_there_was_a_flag_is_still_asked(tmp_path: Path) -> None:
    for url, works in (("http://127.0.0.1:8100", True), ("http://localhost:1", True), ("http://10.0.0.1:1", False)):
        write_private(tmp_path / f"{PEER}.host", Invitation(url, PEER, "t").to_text() + "\n")
        assert [i.url for i in Hosts(tmp_path).all()] == ([url] if works else [])


def test_names_are_judged_by_what_they_lead_to(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def looked_up(host: str, port: int, *args: Any, **more: Any) -> Any:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", port))]

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    for url in ("http://metadata.example:8100", "https://metadata.example"):
        with pytest.raises(PeerError, match="not reached"):
            run(HostConnection(Invitation(url, PEER, "t")).get("/v1/offer"))
    assert set(asked) == {"metadata.example"}


@pytest.mark.parametrize("body", [b"[" * 60_000, b'{"a":' * 10_000, b"[" + b"[]," * 100_000 + b"[]]", b"\xff"])
def test_answers_that_are_large_as_objects_are_refused(body: bytes) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    async def use(url: str) -> Any:
        return await HostConnection(Invitation(url, PEER, "t")).get("/v1/x")

    with pytest.raises(PeerError):
        over_https(handler, use)


def test_the_certificate_has_to_be_of_the_host_s_own_key() -> None:
    """Somebody in between, with a certificate of another key, gets neither token nor question."""
    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.headers["Authorization"])
        return web.json_response({"ok": True})

    async def use(url: str) -> Any:
        return await HostConnection(Invitation(url, PEER, "token")).get("/v1/x")

    assert over_https(handler, use) == {"ok": True} and seen == ["Bearer token"]
    with pytest.raises(IntegrityError):
        over_https(handler, use, signer=key(9))
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("not_found", NotFound),
        ("token_refused", TokenRefused),
        ("quota", QuotaExceeded),
        ("usage", UsageError),
        ("store_locked", PeerError),  # not for a host to say
    ],
)
def test_what_a_host_says_went_wrong(code: str, kind: type[KvswapError]) -> None:
    body = {"error": {"code": code, "message": "so", "cause": "x", "details": {"cause": 1, "message": 2}}}

    async def handler(request: web.Request) -> web.Response:
        return web.json_response(body, status=400)

    async def use(url: str) -> Any:
        return await HostConnection(Invitation(url, PEER, "t")).get("/v1/x")

    with pytest.raises(kind, match="so"):
        over_https(handler, use)


@pytest.mark.parametrize("body", [b"[]", b"not json", b"", b'{"error": 7}'])
def test_an_error_that_says_nothing(body: bytes) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=body, status=500)

    async def use(url: str) -> Any:
        return await HostConnection(Invitation(url, PEER, "t")).get("/v1/x")

    with pytest.raises(PeerError):
        over_https(handler, use)


def test_an_endless_answer_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        piece = b"data: " + json.dumps({"choices": [], "pad": "x" * 100_000}).encode() + b"\n\n"
        while True:
            await response.write(piece)

    async def use(url: str) -> Any:
        return await collect(HostConnection(Invitation(url, PEER, "t")))

    with pytest.raises(PeerError, match=str(LIMITS.host_answer_bytes)):
        over_https(handler, use)


def test_a_redirect_is_not_followed() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"})

    async def use(url: str) -> Any:
        return await HostConnection(Invitation(url, PEER, "t")).get("/v1/x")

    with pytest.raises(PeerError, match="302"):
        over_https(handler, use)


def test_an_offer_is_the_host_s_own_and_in_time(tmp_path: Any) -> None:
    import base64
    import time

    from kvswap.trust.hosting import sign_offer

    now = int(time.time())
    signer, made = HOST, offer(issued=now, expires=now + 60)

    async def handler(request: web.Request) -> web.Response:
        envelope = sign_offer(made, signer).envelope
        return web.json_response({"offer": base64.b64encode(envelope).decode()})

    async def use(url: str) -> Any:
        hosts = Hosts(tmp_path / "hosts")
        hosts.add(Invitation(url, PEER, "t").to_text())
        return await hosts.offer(PEER)

    assert over_https(handler, use).offer == made
    made = offer()  # of long ago
    with pytest.raises(Untrusted, match="expired"):
        over_https(handler, use)
    signer, made = key(9), offer(host=str(key(9).peer_id), issued=now, expires=now + 60)
    with pytest.raises(IntegrityError):
        over_https(handler, use)


def test_hosts_are_kept_in_files_of_one_s_own(tmp_path: Any) -> None:
    hosts = Hosts(tmp_path)
    invitation = Invitation("https://example.org", PEER, "t")
    hosts.add(invitation.to_text())
    (path,) = tmp_path.glob("*.host")
    assert path.stat().st_mode & 0o077 == 0
    assert Hosts(tmp_path).all() == [invitation]
    hosts.remove(PEER)
    assert not list(tmp_path.glob("*.host"))
    for absent in (hosts.get, hosts.remove, hosts.connection):
        with pytest.raises(NotFound):
            absent(PEER)
