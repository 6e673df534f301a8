"""The blocking client, on the standard library's HTTP."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kvswap.client import calls
from kvswap.client.answers import (
    HEADER,
    HEARTBEAT,
    error_of,
    message_of,
    not_ours,
    result_of,
    silence_seconds,
    silent,
    went_away,
)
from kvswap.client.calls import Accept, Call
from kvswap.client.values import Artifact, model_argument, report
from kvswap.core.documents import check_text
from kvswap.core.errors import (
    Incompatible,
    IntegrityError,
    KvswapError,
    NotFound,
    PeerError,
    PlanSaysPrefill,
    Untrusted,
)
from kvswap.core.failures import as_kvswap_error
from kvswap.core.ids import document_digest
from kvswap.core.limits import LIMITS
from kvswap.core.places import home_directory
from kvswap.core.runfile import RunFile, not_running
from kvswap.cost import MIX, Objective

OnEvent = Callable[[dict[str, Any]], None]
_CALLING = "calling the daemon"


class Client:
    """The running daemon of a home.  Raises `DaemonNotRunning` when there is none."""

    def __init__(self, home: str | Path | None = None) -> None:
        self.home = home_directory(str(home) if home is not None else None)

    # -- transport -------------------------------------------------------------------------------

    def _lines(self, call: Call) -> Generator[dict[str, Any], None, None]:
        """The messages of an answer; of one that is no answer of lines, the whole as a result."""
        run = RunFile.read(self.home)
        url = urlsplit(run.url)
        connection = http.client.HTTPConnection(str(url.hostname), url.port, timeout=call.head_seconds)
        body, headers = self._body(call, run)
        waits = call.head_seconds
        try:
            try:
                connection.connect()
            except ConnectionError as error:
                raise not_running(self.home) from error
            socket = connection.sock  # which the answer may take from the connection
            try:
                connection.request(call.method, call.path, body, headers)
            except ConnectionError:  # it may have said why before it closed
                if isinstance(body, calls.Frames) and body.error is not None:
                    raise  # it was not the daemon that ended it
                socket.settimeout(calls.SHORT_SECONDS)
                with contextlib.suppress(http.client.HTTPException):
                    refused = connection.getresponse()
                    raise error_of(message_of(refused.read(), self.home), refused.status) from None
                raise
            response = connection.getresponse()
            if response.status != 200 or not call.lines:
                message = message_of(response.read(), self.home)
                if response.status != 200:
                    raise error_of(message, response.status)
                yield {"result": message}
                return
            waits = silence_seconds(call, response.headers.get(HEADER))
            socket.settimeout(waits)
            while line := response.readline():
                message = message_of(line, self.home)
                if message.get("event") != HEARTBEAT:
                    yield message
        except KvswapError:
            raise
        except (OSError, http.client.HTTPException) as error:  # what a callback of the caller's raises is not seen here
            if isinstance(body, calls.Frames) and body.error is not None:
                raise body.error from None
            raise self._told(error, waits) from error
        finally:
            connection.close()

    def _body(self, call: Call, run: RunFile) -> tuple[bytes | calls.Frames | None, dict[str, str]]:
        headers = {"Authorization": f"Bearer {run.token}"}
        if call.body is not None:
            return json.dumps(call.body).encode(), {**headers, "Content-Type": "application/json"}
        return calls.Frames(call.frames) if call.frames is not None else None, headers

    def _told(self, error: Exception, waited: float) -> KvswapError:
        if isinstance(error, TimeoutError):
            return silent(self.home, waited)
        if isinstance(error, ConnectionError | http.client.IncompleteRead):
            return went_away(error)
        return not_ours(self.home) if isinstance(error, http.client.HTTPException) else as_kvswap_error(error, _CALLING)

    def _do(self, call: Call, on_event: OnEvent | None = None) -> dict[str, Any]:
        with contextlib.closing(self._lines(call)) as messages:
            for message in messages:
                if "event" not in message:
                    return result_of(message, self.home)
                if on_event is not None:
                    on_event(message)
        raise went_away()

    # -- verbs -----------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        return self._do(calls.status())

    def identity(self) -> dict[str, Any]:
        """`{"peer", "publisher", "addresses"}` of this node."""
        return self._do(calls.identity())

    def peers(self) -> list[dict[str, Any]]:
        return list(self._do(calls.peers())["peers"])

    def block(self, peer: str, blocked: bool = True) -> dict[str, Any]:
        """Neither serve nor ask a peer; or, with `blocked` false, do so again."""
        return self._do(calls.block(peer, blocked))

    def artifacts(self) -> list[dict[str, Any]]:
        return list(self._do(calls.artifacts())["artifacts"])

    def show(self, ref: str) -> dict[str, Any]:
        """An artifact in the store: its index row, manifest and envelope."""
        return self._do(calls.show(ref))

    def details(self, ref: str) -> dict[str, Any]:
        """The same, and what opens its files where they are sealed: all that a process needs to read it."""
        return self._do(calls.show(ref, key=True))

    def publish(
        self,
        text: str,
        *,
        model: str | None = None,
        codec: str | None = None,
        truncate: bool = False,
        source: str | None = None,
        group: str | None = None,
        on_event: OnEvent | None = None,
    ) -> dict[str, Any]:
        """Prefill and publish a document's text.  A KV cache reveals its text: publish public documents.

        `group`: sealed for the members of this group instead.
        """
        return self._do(calls.publish(text, model_argument(model), codec, truncate, source, group), on_event)

    def train(
        self, corpus: str, *, model: str | None = None, tokens: int = 40_000, on_event: OnEvent | None = None
    ) -> dict[str, Any]:
        """Train the predictive codec on the text files below a directory of the daemon's machine."""
        return self._do(calls.train(str(Path(corpus).absolute()), model_argument(model), tokens), on_event)

    def fetch(
        self,
        ref: str,
        *,
        force: bool = False,
        tofu: bool = False,
        inexact: bool = False,
        strangers: bool = False,
        samples: int = LIMITS.usual_samples,
        group: str | None = None,
        text: str | None = None,
        objective: Objective = MIX,
        on_event: OnEvent | None = None,
    ) -> Artifact:
        """Make an artifact local and verified.  The report's `verification` says what nobody looked at.

        `strangers`: take what a publisher made who is not on the allow-list, once `samples` positions were computed
        again (V5); with the document's `text`, or else by reading the tokens back from the cache.
        Raises `PlanSaysPrefill`, `NotFound`, `Untrusted`, `Incompatible`, `IntegrityError`, `PeerError`.
        """
        report = self._do(
            calls.fetch(ref, text, Accept(force, tofu, inexact, strangers, samples, group), objective), on_event
        )
        return Artifact(report["artifact"], report, lambda: self.details(report["artifact"]))

    def plan(
        self,
        ref: str,
        *,
        text: str | None = None,
        inexact: bool = False,
        group: str | None = None,
        host: str | None = None,
        objective: Objective = MIX,
        on_event: OnEvent | None = None,
    ) -> dict[str, Any]:
        return self._do(calls.plan(ref, text, inexact, group, objective, host), on_event)

    def verify(
        self,
        ref: str | None = None,
        *,
        store: bool = False,
        level: int | None = None,
        samples: int = LIMITS.usual_samples,
        text: str | None = None,
        on_event: OnEvent | None = None,
    ) -> dict[str, Any]:
        """Check an artifact up to a step of the ladder (0 to 7), or with `store` every file of the store."""
        return self._do(calls.verify(ref, store, level, samples, text), on_event)

    def withdraw(self, ref: str, why: str = "") -> dict[str, Any]:
        """Take back own artifacts: who hears of it uses and serves them no more."""
        return self._do(calls.withdraw(ref, why))

    def groups(self) -> list[dict[str, Any]]:
        """The groups this node is in: `{"name", "mark"}`, no secrets."""
        return list((self._do(calls.groups()))["groups"])

    def group_new(self, name: str) -> dict[str, Any]:
        """A group with a key of its own; who is given the key is a member."""
        return self._do(calls.group_add(name, None))

    def group_import(self, key: str, name: str | None = None) -> dict[str, Any]:
        """Join the group of this key, which `group_export` of another member gave."""
        return self._do(calls.group_add(name, key))

    def group_export(self, name: str) -> dict[str, Any]:
        """`{"name", "key"}`: a secret."""
        return self._do(calls.group_export(name))

    def group_remove(self, name: str) -> dict[str, Any]:
        """Forget a group's key."""
        return self._do(calls.group_remove(name))

    def hosts(self) -> list[dict[str, Any]]:
        """The hosts that invited this node, each with its offer or its `problem`."""
        return list((self._do(calls.hosts()))["hosts"])

    def host_join(self, invitation: str, *, plain: bool = False) -> dict[str, Any]:
        """Accept the invitation of a host, as `kvswap host invite` printed it; `plain`: also one over http."""
        return self._do(calls.host_join(invitation, plain=plain))

    def host_leave(self, peer: str) -> dict[str, Any]:
        """Forget a host."""
        return self._do(calls.host_leave(peer))

    def rotate(self) -> dict[str, Any]:
        """A new publisher key, which the old one names: who trusts the old one follows."""
        return self._do(calls.rotate())

    def audits(self, publisher: str | None = None) -> list[dict[str, Any]]:
        """What was found by verifying: here, and by auditors whom this node trusts."""
        return list(self._do(calls.audits(publisher))["audits"])

    def ask(
        self,
        ref: str,
        question: str,
        *,
        max_tokens: int = 64,
        text: str | None = None,
        prefill: bool = False,
        force: bool = False,
        tofu: bool = False,
        inexact: bool = False,
        strangers: bool = False,
        samples: int = LIMITS.usual_samples,
        group: str | None = None,
        objective: Objective = MIX,
        ignore_eos: bool = False,
        host: str | None = None,
        on_event: OnEvent | None = None,
    ) -> dict[str, Any]:
        """Answer from a document's cache, in the node's model process.

        `host`: ask the host with this PeerId, or with `auto` the best of those known where the plan says so.  A host
        gets to know the question.
        """
        accept = Accept(force, tofu, inexact, strangers, samples, group)
        return self._do(
            calls.ask(ref, question, max_tokens, text, prefill, accept, objective, ignore_eos, host), on_event
        )

    def beginning(
        self,
        ids: bytes,
        *,
        model: bytes,
        dtype: str,
        block_tokens: int = 256,
        parts: bool = True,
        curve: tuple[float, float] | None = None,
        seconds: float | None = None,
        force: bool = False,
        local: bool = False,
        group: str | None = None,
        on_event: OnEvent | None = None,
    ) -> dict[str, Any]:
        """The longest published beginning of token ids (u32, little endian), made local.

        Returns `{"artifact", "tokens", "whole", "plan"}`.  For engines that know ids and no text.  `parts`: also a
        part of a block, where the document ends there.  `curve`: seconds that a block, and each token before it,
        cost to prefill there.  `seconds`: the longest to wait for peers to say what they have; `local`: ask none.
        Raises `NotFound`, `PlanSaysPrefill` and what `fetch` does.
        """
        call = calls.beginning_of_ids(ids, model, dtype, block_tokens, parts, curve, seconds, force, local, group)
        return self._do(call, on_event)

    def beginnings(self, version: str = "", wait: float = 0.0) -> tuple[str, bytes | None]:
        """Keys of all beginnings that a look-up could find, 8 bytes each; None: ask for each.

        Returns `(version, keys)`, at once when the version is another one, else after `wait` seconds.
        """
        told = self._do(calls.beginnings(version, wait))
        return str(told["version"]), base64.b64decode(told["keys"]) if told["keys"] is not None else None

    def publish_computed(self, frames: Iterable[bytes], *, on_event: OnEvent | None = None) -> dict[str, Any]:
        """Publish what an engine computed, by the frames of `POST /v1/computed` (`docs/extending.md`)."""
        return self._do(calls.computed(frames), on_event)

    def remove(self, ref: str) -> dict[str, Any]:
        return self._do(calls.remove(ref))

    def pin(self, ref: str, pinned: bool = True) -> dict[str, Any]:
        return self._do(calls.pin(ref, pinned))

    def collect(self, target_bytes: int | None = None) -> dict[str, Any]:
        return self._do(calls.collect(target_bytes))

    def trust_list(self) -> dict[str, Any]:
        return self._do(calls.trust_list())

    def trust_add(self, peer: str, label: str = "") -> dict[str, Any]:
        return self._do(calls.trust_add(peer, label))

    def trust_remove(self, peer: str) -> dict[str, Any]:
        return self._do(calls.trust_remove(peer))

    def events(self, follow: bool = False) -> Iterator[dict[str, Any]]:
        """What happened lately; with `follow`, for ever."""
        yield from self._lines(calls.events(follow))

    def prefix(
        self,
        text: str,
        model: Any,
        tokenizer: Any,
        *,
        block_tokens: int = 256,
        room: int = 1024,
        tofu: bool = False,
        strangers: bool = False,
        group: str | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """A cache of `text` for this model: fetched where that is possible and worth it, else prefilled here.

        Of a document that nobody published, the beginning that it shares with a published one is fetched.
        Returns the cache and a report: `action`, `reason`, `seconds`, `tokens`, `fetched_tokens`, `artifact`.
        """
        from kvswap.client.loading import LocalPrefill, check_precision, load_for

        began, document = time.perf_counter(), document_digest(check_text(text))
        check_precision(model)
        try:
            artifact = self.fetch(document, tofu=tofu, strangers=strangers, group=group, text=text)
            cache = load_for(text, self.details(artifact.id), model, tokenizer, room)
        except (NotFound, PlanSaysPrefill, Untrusted, Incompatible, IntegrityError, PeerError) as error:
            local = LocalPrefill(text, model, tokenizer, block_tokens)
            begun: dict[str, Any] = {"artifact": None, "tokens": 0}
            with contextlib.suppress(NotFound, PlanSaysPrefill, Incompatible, PeerError):
                if isinstance(error, NotFound):
                    begun = self._do(calls.beginning(local.beginning(), tofu, group))
            shared = self.details(begun["artifact"]) if begun["tokens"] else None
            cache = local.cache(room, shared, begun["tokens"])
            return cache, report("prefill", error.message, began, local.tokens, begun["tokens"], begun["artifact"])
        reason = artifact.report["plan"]["reason"]
        return cache, report("fetch", reason, began, artifact.tokens, artifact.tokens, artifact.id)
