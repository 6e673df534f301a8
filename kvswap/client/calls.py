"""The requests, built once for both clients.  Pure: no IO."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib import parse

from kvswap import api
from kvswap.core.documents import check_unicode

LONG_SECONDS = 3600.0  # publish, fetch, ask: their own time-outs are in the daemon
SHORT_SECONDS = 30.0
PIECE = 1 << 20  # bytes of an answer that is no text, read at once


def quote(text: str, safe: str = "/") -> str:
    """Return a part of a path.  Raises `UsageError` for what is not Unicode text."""
    return parse.quote(check_unicode(text, "the reference"), safe=safe)


@dataclass(frozen=True, slots=True)
class Call:
    """One request.  `lines`: the answer is JSON lines that end in a result or an error."""

    method: str
    path: str
    body: dict[str, Any] | None = None
    lines: bool = False
    seconds: float = SHORT_SECONDS
    frames: Iterable[bytes] | None = None  # the body, where it is not JSON

    @property
    def head_seconds(self) -> float:
        """Seconds that the head of the answer may take: an answer of lines begins at once."""
        return SHORT_SECONDS if self.lines and self.frames is None else self.seconds


class FrameSource:
    """The caller's own iterable as a body; what it raises is the caller's, and goes out unchanged."""

    def __init__(self, frames: Iterable[bytes]) -> None:
        self._frames = frames
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._frames
        except Exception as error:
            self.error = error
            raise


def _send(path: str, request: api.Request) -> Call:
    return Call("POST", path, api.to_body(request))


def _stream(path: str, request: api.Request) -> Call:
    return Call("POST", path, api.to_body(request), True, LONG_SECONDS)


def status() -> Call:
    return Call("GET", "/v1/status")


def identity() -> Call:
    return Call("GET", "/v1/id")


def peers() -> Call:
    return Call("GET", "/v1/peers")


def block(peer: str, blocked: bool) -> Call:
    return Call("POST", f"/v1/peers/{quote(peer)}/{'block' if blocked else 'unblock'}")


def artifacts() -> Call:
    return Call("GET", "/v1/artifacts")


def show(ref: str, key: bool = False) -> Call:
    return Call("GET", f"/v1/artifacts/{quote(ref, safe=':')}" + ("?key=1" if key else ""))


def remove(ref: str) -> Call:
    return Call("DELETE", f"/v1/artifacts/{quote(ref, safe=':')}")


def export(ref: str, group: str | None) -> Call:
    query = f"?group={quote(group, safe='')}" if group else ""
    return Call("GET", f"/v1/artifacts/{quote(ref, safe=':')}/archive{query}", seconds=LONG_SECONDS)


def import_archive(frames: Iterable[bytes]) -> Call:
    return Call("POST", "/v1/archives", lines=True, seconds=LONG_SECONDS, frames=frames)


def pin(ref: str, pinned: bool) -> Call:
    return Call("POST", f"/v1/artifacts/{quote(ref, safe=':')}/{'pin' if pinned else 'unpin'}")


def collect(target_bytes: int | None) -> Call:
    return replace(_send("/v1/gc", api.CollectRequest(target_bytes=target_bytes)), seconds=600)


def events(follow: bool) -> Call:
    return Call("GET", f"/v1/events?follow={int(follow)}&heartbeat=1", lines=True, seconds=LONG_SECONDS)


def trust_list() -> Call:
    return Call("GET", "/v1/trust")


def trust_add(peer: str, label: str) -> Call:
    return _send("/v1/trust", api.TrustRequest(peer=peer, label=label))


def trust_remove(peer: str) -> Call:
    return Call("DELETE", f"/v1/trust/{quote(peer)}")


def groups() -> Call:
    return Call("GET", "/v1/groups")


def group_add(name: str | None, key: str | None) -> Call:
    return _send("/v1/groups", api.GroupRequest(name=name, key=key))


def group_export(name: str) -> Call:
    return Call("POST", f"/v1/groups/{quote(name, safe='')}/export")


def group_remove(name: str) -> Call:
    return Call("DELETE", f"/v1/groups/{quote(name, safe='')}")


def publish(request: api.PublishRequest) -> Call:
    return _stream("/v1/publish", request)


def train(request: api.TrainRequest) -> Call:
    return _stream("/v1/codec/train", request)


def fetch(request: api.FetchRequest) -> Call:
    return _stream("/v1/fetch", request)


def find(request: api.FindRequest) -> Call:
    return _stream("/v1/find", request)


def config() -> Call:
    return Call("GET", "/v1/settings")


def stop() -> Call:
    return Call("POST", "/v1/stop", {})


def withdraw(ref: str, why: str) -> Call:
    return _send(f"/v1/artifacts/{quote(ref, safe=':')}/withdraw", api.WithdrawRequest(why=why))


def rotate() -> Call:
    return Call("POST", "/v1/rotate", {})


def audits(publisher: str | None) -> Call:
    return Call("GET", "/v1/audits" + (f"?publisher={quote(publisher)}" if publisher else ""))


def cached_prefix(request: api.PrefixRequest) -> Call:
    return _stream("/v1/beginning", request)


def prefix_index(version: str, wait: float) -> Call:
    path = f"/v1/beginnings?version={quote(version, safe='')}&wait={wait:g}"
    return Call("GET", path, seconds=wait + SHORT_SECONDS)


def computed(frames: Iterable[bytes]) -> Call:
    return Call("POST", "/v1/computed", lines=True, seconds=LONG_SECONDS, frames=frames)


def plan(request: api.PlanRequest) -> Call:
    return _stream("/v1/plan", request)


def hosts() -> Call:
    return Call("GET", "/v1/hosts")


def host_join(invitation: str, *, plain: bool = False) -> Call:
    return _send("/v1/hosts", api.JoinRequest(invitation=invitation, plain=plain))


def host_leave(peer: str) -> Call:
    return Call("DELETE", f"/v1/hosts/{quote(peer)}")


def verify(request: api.VerifyRequest) -> Call:
    return _stream("/v1/verify", request)


def ask(request: api.AskRequest) -> Call:
    return _stream("/v1/ask", request)
