"""The asyncio client.  The blocking one is made from this file by `.ci/unasync`."""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any

from kvswap import api
from kvswap.client import calls
from kvswap.client.answers import read_as
from kvswap.client.base_aio import OnEvent
from kvswap.client.sender_aio import to_thread
from kvswap.client.values import AsyncArtifact, CacheReport, model_argument, read_source, with_files
from kvswap.client.verbs_aio import AsyncVerbs
from kvswap.core.defaults import ANSWER_TOKENS, BLOCK_TOKENS, HEADROOM_TOKENS, TRAINING_TOKENS
from kvswap.core.documents import check_text
from kvswap.core.errors import (
    DaemonNotRunning,
    Incompatible,
    IntegrityError,
    KvswapError,
    NotFound,
    PeerError,
    PlanSaysPrefill,
    Untrusted,
)
from kvswap.core.ids import document_digest
from kvswap.core.limits import LIMITS
from kvswap.cost import MIX, Objective


class AsyncClient(AsyncVerbs):
    """A running daemon: that of a home, or the one at a URL.

    `home` is its directory (default: yours).  `url` names it instead: `http://127.0.0.1:PORT` with the `token` of its
    `daemon.json`, or `unix:/path/to/daemon.sock`, the socket in its home, which needs no token.  A verb raises
    `DaemonNotRunning` when nothing answers there, and other errors of `kvswap.errors` as it says.

    Each call has a connection of its own, so there is nothing that `close` must free.
    """

    async def status(self) -> api.StatusResult:
        """Say how the node is: peers, store, model, what does not work."""
        return await self._do(calls.status())

    async def id(self) -> api.IdentityResult:
        """Return the PeerId, publisher and addresses of this node."""
        return await self._do(calls.identity())

    async def peers(self) -> list[api.PeerRow]:
        """List peers with what was experienced with them."""
        return (await self._do(calls.peers())).peers

    async def block(self, peer: str, blocked: bool = True) -> api.BlockResult:
        """Block a peer, which is then neither served nor asked; with `blocked` false, end that."""
        return await self._do(calls.block(peer, blocked))

    async def ls(self) -> list[api.StoredArtifact]:
        """List the artifacts in the store."""
        return (await self._do(calls.artifacts())).artifacts

    async def show(self, ref: str) -> api.ArtifactDetails:
        """Show an artifact in the store: its index row, manifest and envelope."""
        return await self._do(calls.show(ref))

    async def details(self, ref: str) -> api.ArtifactDetails:
        """Show an artifact with what opens its files where they are sealed: all that a process needs to read it."""
        return await self._do(calls.show(ref, key=True))

    async def publish(
        self,
        text: str | Path,
        *,
        model: str | None = None,
        codec: str | None = None,
        truncate: bool = False,
        source: str | None = None,
        group: str | None = None,
        checkpoints: Sequence[int] = (),
        on_event: OnEvent | None = None,
    ) -> api.PublishResult:
        """Prefill and publish a document, given as its text, or as the path of its file or folder.

        `checkpoints` are token counts that readers shall be able to resume at, beside the usual ones.

        A KV cache reveals its text: publish public documents, or seal it for the members of `group`.
        """
        document, files = await to_thread(read_source, text)
        request = api.PublishRequest(
            text=document,
            model=model_argument(model),
            codec=codec,
            truncate=truncate,
            source=source,
            group=group,
            checkpoints=list(checkpoints),
        )
        done = await self._do(calls.publish(request), on_event)
        return with_files(done, files) if files else done

    async def codec_train(
        self, corpus: str, *, model: str | None = None, tokens: int = TRAINING_TOKENS, on_event: OnEvent | None = None
    ) -> api.TrainResult:
        """Train the predictive codec on the text files below a directory of the daemon's machine."""
        request = api.TrainRequest(corpus=str(Path(corpus).absolute()), model=model_argument(model), tokens=tokens)
        return await self._do(calls.train(request), on_event)

    async def fetch(
        self,
        ref: str,
        *,
        force: bool = False,
        tofu: bool = False,
        allow_lossy: bool = False,
        allow_untrusted: bool = False,
        samples: int = LIMITS.usual_samples,
        group: str | None = None,
        text: str | None = None,
        objective: Objective = MIX,
        on_event: OnEvent | None = None,
    ) -> AsyncArtifact:
        """Make an artifact local and verified.  The report's `verification` says what nobody looked at.

        `allow_untrusted`: take an untrusted publisher's artifact, once `samples` positions were
        computed again (V5); with the document's `text`, or else by reading the tokens back from the cache.
        Raises `PlanSaysPrefill`, `NotFound`, `Untrusted`, `Incompatible`, `IntegrityError`, `PeerError`.
        """
        request = api.FetchRequest(
            ref=ref,
            text=text,
            force=force,
            trust_on_first_use=tofu,
            allow_lossy=allow_lossy,
            allow_untrusted=allow_untrusted,
            samples=samples,
            group=group,
            **api.aim_fields(objective),
        )
        report = await self._do(calls.fetch(request), on_event)
        return AsyncArtifact(report.artifact, report, lambda: self.details(report.artifact))

    async def plan(
        self,
        ref: str,
        *,
        text: str | None = None,
        allow_lossy: bool = False,
        group: str | None = None,
        host: str | None = None,
        objective: Objective = MIX,
        on_event: OnEvent | None = None,
    ) -> api.PlanResult:
        """Say what `ask` would do, fetch, prefill, both at once or ask a host, with seconds, dollars and the reason."""
        request = api.PlanRequest(
            ref=ref, text=text, allow_lossy=allow_lossy, group=group, host=host, **api.aim_fields(objective)
        )
        return await self._do(calls.plan(request), on_event)

    async def withdraw(self, ref: str, why: str = "") -> api.WithdrawResult:
        """Take back own artifacts: who hears of it uses and serves them no more."""
        return await self._do(calls.withdraw(ref, why))

    async def groups(self) -> list[api.GroupRow]:
        """List the groups this node is in, without their secrets."""
        return (await self._do(calls.groups())).groups

    async def group_new(self, name: str) -> api.GroupResult:
        """Make a group with a key of its own; who is given the key is a member."""
        return await self._do(calls.group_add(name, None))

    async def group_import(self, key: str, name: str | None = None) -> api.GroupResult:
        """Join the group of this key, which `group_export` of another member gave."""
        return await self._do(calls.group_add(name, key))

    async def group_export(self, name: str) -> api.GroupKey:
        """Return the key of a group.  It is a secret: who has it is a member."""
        return await self._do(calls.group_export(name))

    async def group_remove(self, name: str) -> api.GroupLeaveResult:
        """Forget a group's key."""
        return await self._do(calls.group_remove(name))

    async def hosts(self) -> list[api.HostRow]:
        """List the hosts that invited this node, each with its offer or its `problem`."""
        return (await self._do(calls.hosts())).hosts

    async def host_join(self, invitation: str, *, plain: bool = False) -> api.JoinResult:
        """Accept the invitation of a host, as `kvswap host invite` printed it; `plain`: also one over http."""
        return await self._do(calls.host_join(invitation, plain=plain))

    async def host_leave(self, peer: str) -> api.LeaveResult:
        """Forget a host."""
        return await self._do(calls.host_leave(peer))

    async def trust_rotate(self) -> api.RotateResult:
        """Make a new publisher key, which the old one names: who trusts the old one follows."""
        return await self._do(calls.rotate())

    async def audits(self, publisher: str | None = None) -> list[api.AuditFinding]:
        """List what verifying found, here and by auditors whom this node trusts; of one `publisher`, if given."""
        return (await self._do(calls.audits(publisher))).audits

    async def ask(
        self,
        ref: str,
        question: str,
        *,
        max_tokens: int = ANSWER_TOKENS,
        text: str | None = None,
        prefill: bool = False,
        force: bool = False,
        tofu: bool = False,
        allow_lossy: bool = False,
        allow_untrusted: bool = False,
        samples: int = LIMITS.usual_samples,
        group: str | None = None,
        objective: Objective = MIX,
        ignore_eos: bool = False,
        host: str | None = None,
        continuation: str | None = None,
        on_event: OnEvent | None = None,
    ) -> api.AskResult:
        """Answer from a document's cache, in the node's model process.

        `host`: ask the host with this PeerId, or with `auto` the best of those known where the plan says so.  A host
        gets to know the question.  `continuation`: the text that follows a conversation's prefix (`render`).
        """
        request = api.AskRequest(
            ref=ref,
            question=question,
            max_tokens=max_tokens,
            text=text,
            prefill=prefill,
            force=force,
            trust_on_first_use=tofu,
            allow_lossy=allow_lossy,
            allow_untrusted=allow_untrusted,
            samples=samples,
            group=group,
            ignore_eos=ignore_eos,
            host=host,
            continuation=continuation,
            **api.aim_fields(objective),
        )
        return await self._do(calls.ask(request), on_event)

    async def cached_prefix(
        self,
        ids: bytes,
        *,
        model: bytes,
        dtype: str,
        block_tokens: int = BLOCK_TOKENS,
        parts: bool = True,
        curve: tuple[float, float] | None = None,
        seconds: float | None = None,
        force: bool = False,
        local: bool = False,
        group: str | None = None,
        on_event: OnEvent | None = None,
    ) -> api.PrefixResult:
        """Fetch the longest published prefix of token ids (u32, little endian).

        For engines that know ids and no text.  `parts`: also a
        part of a block, where the document ends there.  `curve`: seconds that a block, and each token before it,
        cost to prefill there.  `seconds`: the longest to wait for peers to say what they have; `local`: ask none.
        Raises `NotFound`, `PlanSaysPrefill` and what `fetch` does.
        """
        request = api.PrefixRequest(
            ids=base64.b64encode(ids).decode(),
            model=model.hex(),
            dtype=dtype,
            block_tokens=block_tokens,
            parts=parts,
            curve=curve,
            seconds=seconds,
            force=force,
            local=local,
            group=group,
        )
        return await self._do(calls.cached_prefix(request), on_event)

    async def prefix_index(self, version: str = "", wait: float = 0.0) -> tuple[str, bytes | None]:
        """Return keys of all prefixes that a look-up could find, 8 bytes each; None: ask for each.

        Returns `(version, keys)`, at once when the version is another one, else after `wait` seconds.
        """
        index = await self._do(calls.prefix_index(version, wait))
        return index.version, base64.b64decode(index.packed) if index.packed is not None else None

    async def publish_computed(self, frames: Iterable[bytes], *, on_event: OnEvent | None = None) -> api.ComputedResult:
        """Publish what an engine computed, by the frames of `POST /v1/computed` (`docs/extending.md`)."""
        return await self._do(calls.computed(frames), on_event)

    async def rm(self, ref: str, *, keep_pushed: bool = False) -> api.RemoveResult:
        """Remove an artifact, or all of a document, also from where it was pushed; `keep_pushed`: from here alone."""
        return await self._do(calls.remove(ref, keep_pushed))

    async def pin(self, ref: str, pinned: bool = True) -> api.PinResult:
        """Keep an artifact whatever space is needed; or, with `pinned` false, no longer."""
        return await self._do(calls.pin(ref, pinned))

    async def gc(self, target_bytes: int | None = None) -> api.CollectResult:
        """Free space in the store, down to `target_bytes` where given."""
        return await self._do(calls.collect(target_bytes))

    async def trust_ls(self) -> api.TrustResult:
        """List the publishers on the allow-list, and those found to be wrong."""
        return await self._do(calls.trust_list())

    async def trust_add(self, peer: str, label: str = "") -> api.TrustedPublisher:
        """Put a publisher on the allow-list."""
        return await self._do(calls.trust_add(peer, label))

    async def trust_rm(self, peer: str) -> api.LeaveResult:
        """Take a publisher off the allow-list."""
        return await self._do(calls.trust_remove(peer))

    async def events(self, follow: bool = False) -> AsyncIterator[api.NodeEvent]:
        """Yield the events of late; with `follow`, also those to come, without end."""
        call = calls.events(follow)
        async with contextlib.aclosing(self._sender.lines(call)) as messages:
            async for event in messages:
                yield read_as(call, event, self._target.where)

    async def get_cache(
        self,
        text: str,
        model: Any,
        tokenizer: Any,
        *,
        block_tokens: int = BLOCK_TOKENS,
        headroom: int = HEADROOM_TOKENS,
        tofu: bool = False,
        allow_untrusted: bool = False,
        group: str | None = None,
        prefill_alone: bool = True,
    ) -> tuple[Any, CacheReport]:
        """Get a cache of `text` for this model: fetched where that is possible and worth it, else prefilled here.

        Of a document that nobody published, the beginning that it shares with a published one is fetched.  Where no
        daemon runs it is prefilled, or with `prefill_alone` false `DaemonNotRunning` raised.  `headroom`: tokens that
        may follow before the cache must be copied.  Returns the cache and what was done.
        """
        from kvswap.client.loading import LocalPrefill, check_precision, load_for

        began, document = time.perf_counter(), document_digest(check_text(text))
        await to_thread(check_precision, model)
        refused: KvswapError
        try:
            artifact = await self.fetch(document, tofu=tofu, allow_untrusted=allow_untrusted, group=group, text=text)
            details = await self.details(artifact.id)
            cache = await to_thread(load_for, text, details, model, tokenizer, headroom)
            reason, tokens = artifact.report.plan.reason, artifact.tokens
            return cache, CacheReport.of("fetch", reason, began, tokens, tokens, artifact.id)
        except DaemonNotRunning as error:
            if not prefill_alone:
                raise
            refused = error
        except (NotFound, PlanSaysPrefill, Untrusted, Incompatible, IntegrityError, PeerError) as error:
            refused = error
        local = await to_thread(LocalPrefill, text, model, tokenizer, block_tokens)
        found: api.PrefixResult | None = None
        with contextlib.suppress(NotFound, PlanSaysPrefill, Incompatible, PeerError):
            if isinstance(refused, NotFound):
                request = api.PrefixRequest(
                    **await to_thread(local.cached_prefix), trust_on_first_use=tofu, group=group
                )
                found = await self._do(calls.cached_prefix(request))
        shared, tokens = None, 0
        if found is not None and found.tokens:
            shared, tokens = await self.details(found.artifact), found.tokens
        cache = await to_thread(local.cache, headroom, shared, tokens)
        of = found.artifact if found is not None else None
        return cache, CacheReport.of("prefill", refused.message, began, local.tokens, tokens, of)
