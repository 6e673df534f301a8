"""The requests, built once for both clients.  Pure: no IO."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any
from urllib import parse

from kvswap.core.documents import check_unicode
from kvswap.core.limits import LIMITS
from kvswap.cost import Objective

LONG_SECONDS = 3600.0  # publish, fetch, ask: their own time-outs are in the daemon
SHORT_SECONDS = 30.0


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
        """How long the beginning of the answer may take: an answer of lines begins at once."""
        return SHORT_SECONDS if self.lines and self.frames is None else self.seconds


class Frames:
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


@dataclass(frozen=True, slots=True)
class Accept:
    """What a caller takes beyond what is safe by itself."""

    force: bool = False  # fetch although the plan says that prefilling is better
    tofu: bool = False  # trust the publisher from now on, if it is not known yet
    inexact: bool = False  # a cache that is not the model's own to the bit
    strangers: bool = False  # of publishers that are not listed, once it is verified by recomputing
    samples: int = LIMITS.usual_samples  # so many positions
    group: str | None = None  # look only among what is sealed for this group


def _long(path: str, **body: Any) -> Call:
    return Call("POST", path, {k: v for k, v in body.items() if v is not None}, True, LONG_SECONDS)


def _wish(objective: Objective) -> dict[str, Any]:
    return {("objective" if name == "by" else name): value for name, value in asdict(objective).items()}


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


def pin(ref: str, pinned: bool) -> Call:
    return Call("POST", f"/v1/artifacts/{quote(ref, safe=':')}/{'pin' if pinned else 'unpin'}")


def collect(target_bytes: int | None) -> Call:
    return Call("POST", "/v1/gc", {"target_bytes": target_bytes}, seconds=600)


def events(follow: bool) -> Call:
    return Call("GET", f"/v1/events?follow={int(follow)}&heartbeat=1", lines=True, seconds=LONG_SECONDS)


def trust_list() -> Call:
    return Call("GET", "/v1/trust")


def trust_add(peer: str, label: str) -> Call:
    return Call("POST", "/v1/trust", {"peer": peer, "label": label})


def trust_remove(peer: str) -> Call:
    return Call("DELETE", f"/v1/trust/{quote(peer)}")


def groups() -> Call:
    return Call("GET", "/v1/groups")


def group_add(name: str | None, key: str | None) -> Call:
    return Call("POST", "/v1/groups", {k: v for k, v in (("name", name), ("key", key)) if v is not None})


def group_export(name: str) -> Call:
    return Call("POST", f"/v1/groups/{quote(name, safe='')}/export")


def group_remove(name: str) -> Call:
    return Call("DELETE", f"/v1/groups/{quote(name, safe='')}")


def publish(
    text: str, model: str | None, codec: str | None, truncate: bool, source: str | None, group: str | None
) -> Call:
    return _long("/v1/publish", text=text, model=model, codec=codec, truncate=truncate, source=source, group=group)


def train(corpus: str, model: str | None, tokens: int) -> Call:
    return _long("/v1/codec/train", corpus=corpus, model=model, tokens=tokens)


def fetch(ref: str, text: str | None, accept: Accept, objective: Objective) -> Call:
    return _long("/v1/fetch", ref=ref, text=text, **asdict(accept), **_wish(objective))


def withdraw(ref: str, why: str) -> Call:
    return Call("POST", f"/v1/artifacts/{quote(ref, safe=':')}/withdraw", {"why": why})


def rotate() -> Call:
    return Call("POST", "/v1/rotate", {})


def audits(publisher: str | None) -> Call:
    return Call("GET", "/v1/audits" + (f"?publisher={quote(publisher)}" if publisher else ""))


def beginning(asked: dict[str, Any], tofu: bool, group: str | None) -> Call:
    return _long("/v1/beginning", **asked, tofu=tofu, group=group)


def beginning_of_ids(
    ids: bytes,
    model: bytes,
    dtype: str,
    block_tokens: int,
    parts: bool,
    curve: tuple[float, float] | None,
    seconds: float | None,
    force: bool,
    local: bool,
    group: str | None,
) -> Call:
    asked = {"ids": base64.b64encode(ids).decode(), "model": model.hex(), "dtype": dtype, "block_tokens": block_tokens}
    return beginning(
        asked | {"parts": parts, "curve": curve, "seconds": seconds, "force": force, "local": local}, False, group
    )


def beginnings(version: str, wait: float) -> Call:
    path = f"/v1/beginnings?version={quote(version, safe='')}&wait={wait:g}"
    return Call("GET", path, seconds=wait + SHORT_SECONDS)


def computed(frames: Iterable[bytes]) -> Call:
    return Call("POST", "/v1/computed", lines=True, seconds=LONG_SECONDS, frames=frames)


def plan(ref: str, text: str | None, inexact: bool, group: str | None, objective: Objective, host: str | None) -> Call:
    return _long("/v1/plan", ref=ref, text=text, inexact=inexact, group=group, host=host, **_wish(objective))


def hosts() -> Call:
    return Call("GET", "/v1/hosts")


def host_join(invitation: str, *, plain: bool = False) -> Call:
    return Call("POST", "/v1/hosts", {"invitation": invitation, "plain": plain})


def host_leave(peer: str) -> Call:
    return Call("DELETE", f"/v1/hosts/{quote(peer)}")


def verify(ref: str | None, store: bool, level: int | None, samples: int, text: str | None) -> Call:
    return _long("/v1/verify", ref=ref, store=store, level=level, samples=samples, text=text)


def ask(
    ref: str,
    question: str,
    max_tokens: int,
    text: str | None,
    prefill: bool,
    accept: Accept,
    objective: Objective,
    ignore_eos: bool,
    host: str | None,
) -> Call:
    return _long(
        "/v1/ask",
        host=host,
        ref=ref,
        question=question,
        max_tokens=max_tokens,
        text=text,
        prefill=prefill,
        ignore_eos=ignore_eos,
        **asdict(accept),
        **_wish(objective),
    )
