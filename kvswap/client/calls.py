"""The requests, built once for both clients, each with the kind of its result.  Pure: no IO."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib import parse

from kvswap import api
from kvswap.core.documents import check_unicode

if TYPE_CHECKING:
    from kvswap.api.result import Result

R = TypeVar("R", bound="Result")

LONG_SECONDS = 3600.0  # publish, fetch, ask: their own time-outs are in the daemon
SHORT_SECONDS = 30.0
PIECE = 1 << 20  # bytes of an answer that is no text, read at once


def quote(text: str, safe: str = "/") -> str:
    """Return a part of a path.  Raises `UsageError` for what is not Unicode text."""
    return parse.quote(check_unicode(text, "the reference"), safe=safe)


@dataclass(frozen=True, slots=True)
class Call(Generic[R]):
    """One request.  `lines`: the answer is JSON lines that end in a result or an error."""

    method: str
    path: str
    result: str
    """The name in `kvswap.api` of what the answer is, which is imported when it is there."""
    body: dict[str, Any] | None = None
    lines: bool = False
    seconds: float = SHORT_SECONDS
    frames: Iterable[bytes] | None = None  # the body, where it is not JSON
    rows: bool = False
    """The result is one list, whose rows may come in many lines."""

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


def _send(result: str, path: str, request: api.Request) -> Call[Any]:
    return Call("POST", path, result, api.to_body(request))


def _stream(result: str, path: str, request: api.Request) -> Call[Any]:
    return Call("POST", path, result, api.to_body(request), True, LONG_SECONDS)


def status() -> Call[api.StatusResult]:
    """Return the state of the node."""
    return Call("GET", "/v1/status", "StatusResult")


def identity() -> Call[api.IdentityResult]:
    """Return the names and addresses of the node."""
    return Call("GET", "/v1/id", "IdentityResult")


def peers() -> Call[api.PeersResult]:
    """List the peers."""
    return Call("GET", "/v1/peers", "PeersResult")


def block(peer: str, blocked: bool) -> Call[api.BlockResult]:
    """Block a peer, or with `blocked` false end that."""
    return Call("POST", f"/v1/peers/{quote(peer)}/{'block' if blocked else 'unblock'}", "BlockResult")


def artifacts() -> Call[api.ArtifactsResult]:
    """List the artifacts in the store."""
    return Call("GET", "/v1/artifacts", "ArtifactsResult", rows=True)


def show(ref: str, key: bool = False) -> Call[api.ArtifactDetails]:
    """Show an artifact in the store; with `key` also what opens its files."""
    return Call("GET", f"/v1/artifacts/{quote(ref, safe=':')}" + ("?key=1" if key else ""), "ArtifactDetails")


def remove(ref: str, keep_pushed: bool) -> Call[api.RemoveResult]:
    """Remove an artifact, or all of a document; with `keep_pushed` not from origins."""
    query = "?origins=keep" if keep_pushed else ""
    return Call("DELETE", f"/v1/artifacts/{quote(ref, safe=':')}{query}", "RemoveResult", seconds=600)


def export(ref: str, group: str | None) -> Call[api.Exported]:
    """Export an artifact as one file: the answer is the archive."""
    query = f"?group={quote(group, safe='')}" if group else ""
    return Call("GET", f"/v1/artifacts/{quote(ref, safe=':')}/archive{query}", "Exported", seconds=LONG_SECONDS)


def import_archive(frames: Iterable[bytes]) -> Call[api.Imported]:
    """Import an artifact, whose archive is the body."""
    return Call("POST", "/v1/archives", "Imported", lines=True, seconds=LONG_SECONDS, frames=frames)


def pin(ref: str, pinned: bool) -> Call[api.PinResult]:
    """Pin an artifact, or with `pinned` false unpin it."""
    return Call("POST", f"/v1/artifacts/{quote(ref, safe=':')}/{'pin' if pinned else 'unpin'}", "PinResult")


def collect(target_bytes: int | None) -> Call[api.CollectResult]:
    """Free space in the store."""
    return replace(_send("CollectResult", "/v1/gc", api.CollectRequest(target_bytes=target_bytes)), seconds=600)


def events(follow: bool) -> Call[api.NodeEvent]:
    """List what the node did lately, with `follow` also what it does from now on."""
    return Call("GET", f"/v1/events?follow={int(follow)}&heartbeat=1", "NodeEvent", lines=True, seconds=LONG_SECONDS)


def trust_list() -> Call[api.TrustResult]:
    """List the publishers that are trusted, and those that were banned."""
    return Call("GET", "/v1/trust", "TrustResult")


def trust_add(peer: str, label: str) -> Call[api.TrustedPublisher]:
    """Trust a publisher."""
    return _send("TrustedPublisher", "/v1/trust", api.TrustRequest(peer=peer, label=label))


def trust_remove(peer: str) -> Call[api.LeaveResult]:
    """Trust a publisher no longer."""
    return Call("DELETE", f"/v1/trust/{quote(peer)}", "LeaveResult")


def groups() -> Call[api.GroupsResult]:
    """List the groups of the node."""
    return Call("GET", "/v1/groups", "GroupsResult")


def group_add(name: str | None, key: str | None) -> Call[api.GroupResult]:
    """Make a group of this name, or join the one of this key."""
    return _send("GroupResult", "/v1/groups", api.GroupRequest(name=name, key=key))


def group_export(name: str) -> Call[api.GroupKey]:
    """Export a group's key, which is a secret."""
    return Call("POST", f"/v1/groups/{quote(name, safe='')}/export", "GroupKey")


def group_remove(name: str) -> Call[api.GroupLeaveResult]:
    """Forget a group's key."""
    return Call("DELETE", f"/v1/groups/{quote(name, safe='')}", "GroupLeaveResult")


def publish(request: api.PublishRequest) -> Call[api.PublishResult]:
    """Publish a document."""
    return _stream("PublishResult", "/v1/publish", request)


def train(request: api.TrainRequest) -> Call[api.TrainResult]:
    """Train the predictive codec."""
    return _stream("TrainResult", "/v1/codec/train", request)


def fetch(request: api.FetchRequest) -> Call[api.FetchResult]:
    """Fetch an artifact."""
    return _stream("FetchResult", "/v1/fetch", request)


def find(request: api.FindRequest) -> Call[api.FindResult]:
    """Find who has an artifact or a document."""
    return _stream("FindResult", "/v1/find", request)


def push(request: api.PushRequest) -> Call[api.PushResult]:
    """Push an artifact to an origin."""
    return _stream("PushResult", "/v1/push", request)


def origins() -> Call[api.OriginsResult]:
    """List the origins."""
    return Call("GET", "/v1/origins", "OriginsResult")


def origin_add(request: api.OriginRequest) -> Call[api.OriginRow]:
    """Add an origin."""
    return _send("OriginRow", "/v1/origins", request)


def origin_remove(url: str) -> Call[api.OriginRemoved]:
    """Forget an origin."""
    return Call("DELETE", f"/v1/origins?url={quote(url, safe='')}", "OriginRemoved")


def origin_test(request: api.OriginRequest) -> Call[api.OriginTest]:
    """Test an origin."""
    return replace(_send("OriginTest", "/v1/origins/test", request), seconds=300)


def config() -> Call[api.SettingsResult]:
    """List the settings of the daemon."""
    return Call("GET", "/v1/settings", "SettingsResult")


def stop() -> Call[api.StopResult]:
    """Stop the daemon."""
    return Call("POST", "/v1/stop", "StopResult", {})


def ui(plain: bool) -> Call[api.UiResult]:
    """Make a link to the local page."""
    return Call("POST", "/v1/ui?plain=1" if plain else "/v1/ui", "UiResult", {})


def withdraw(ref: str, why: str) -> Call[api.WithdrawResult]:
    """Withdraw what the node published."""
    path = f"/v1/artifacts/{quote(ref, safe=':')}/withdraw"
    return replace(_send("WithdrawResult", path, api.WithdrawRequest(why=why)), seconds=600)


def rotate() -> Call[api.RotateResult]:
    """Make a new publisher key."""
    return Call("POST", "/v1/rotate", "RotateResult", {})


def audits(publisher: str | None) -> Call[api.AuditsResult]:
    """List what verifying found, of one publisher or of all."""
    return Call("GET", "/v1/audits" + (f"?publisher={quote(publisher)}" if publisher else ""), "AuditsResult")


def cached_prefix(request: api.PrefixRequest) -> Call[api.PrefixResult]:
    """Fetch the longest published prefix of a document."""
    return _stream("PrefixResult", "/v1/beginning", request)


def prefix_index(version: str, wait: float) -> Call[api.PrefixIndex]:
    """List the keys of all prefixes, once their version is another, or after `wait` seconds."""
    path = f"/v1/beginnings?version={quote(version, safe='')}&wait={wait:g}"
    return Call("GET", path, "PrefixIndex", seconds=wait + SHORT_SECONDS)


def computed(frames: Iterable[bytes]) -> Call[api.ComputedResult]:
    """Publish what an engine computed, by frames."""
    return Call("POST", "/v1/computed", "ComputedResult", lines=True, seconds=LONG_SECONDS, frames=frames)


def plan(request: api.PlanRequest) -> Call[api.PlanResult]:
    """Plan how to get a cache."""
    return _stream("PlanResult", "/v1/plan", request)


def hosts() -> Call[api.HostsResult]:
    """List the hosts that invited the node."""
    return Call("GET", "/v1/hosts", "HostsResult")


def host_join(invitation: str, *, plain: bool = False) -> Call[api.JoinResult]:
    """Join a host by its invitation; with `plain` also one over http."""
    return _send("JoinResult", "/v1/hosts", api.JoinRequest(invitation=invitation, plain=plain))


def host_leave(peer: str) -> Call[api.LeaveResult]:
    """Forget a host."""
    return Call("DELETE", f"/v1/hosts/{quote(peer)}", "LeaveResult")


def verify(request: api.VerifyRequest) -> Call[api.VerifyResult]:
    """Verify an artifact."""
    return _stream("VerifyResult", "/v1/verify", request)


def verify_store() -> Call[api.StoreCheck]:
    """Verify every file of the store."""
    return _stream("StoreCheck", "/v1/verify", api.VerifyRequest(store=True))


def render(request: api.RenderRequest) -> Call[api.RenderResult]:
    """Render a conversation."""
    return _stream("RenderResult", "/v1/render", request)


def ask(request: api.AskRequest) -> Call[api.AskResult]:
    """Ask a question about a document."""
    return _stream("AskResult", "/v1/ask", request)
