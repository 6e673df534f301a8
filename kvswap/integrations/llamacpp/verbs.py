"""`kvswap publish --model x.gguf` and `kvswap ask --model x.gguf`: a document through llama.cpp and the node.

The server runs beside this process and ends with it; the node finds, fetches, signs and keeps.  No torch is needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvswap.api import AskResult, PlanSummary, PublishResult
from kvswap.artifact.chain import pack_ids
from kvswap.artifact.manifest import DocumentRef, Manifest
from kvswap.client import Client
from kvswap.client.loading import statement_of
from kvswap.core.defaults import ANSWER_TOKENS, BLOCK_TOKENS
from kvswap.core.directories import models_directory
from kvswap.core.errors import InvalidDocument, KvswapError, NotFound, PlanSaysPrefill
from kvswap.integrations.llamacpp.chunks import load_rows
from kvswap.integrations.llamacpp.gguf import read_gguf
from kvswap.integrations.llamacpp.identity import gguf_identity
from kvswap.integrations.llamacpp.mapping import slot_file_of
from kvswap.integrations.llamacpp.probe import Judgement, judge
from kvswap.integrations.llamacpp.publishing import Progress, computed_sequence, ends_of, publish_sequence
from kvswap.integrations.llamacpp.remembered import environment_key, keep, recall
from kvswap.integrations.llamacpp.server import Described, LlamaServer, describe, started_server
from kvswap.integrations.llamacpp.state import SlotFile
from kvswap.model.question import question_text
from kvswap.store.files import chunk_reader

STEP_SECONDS = 3_600.0  # for one request to the server: a long document on a slow machine
_LEAST_CONTEXT = 512
_BYTES_A_TOKEN = 2  # fewer than any text has on average; where it has, the server is started once more


def remembered() -> Path:
    """Return the folder for what is kept of GGUF files and of the servers that are started for them."""
    return models_directory() / ".gguf"


@dataclass(frozen=True, slots=True)
class PublishChoices:
    """The choices of a publication; `progress` is called with the tokens that are computed so far."""

    codec: str = "planes"
    source: str | None = None
    group: str | None = None
    cache_type: str = "f16"
    block_tokens: int = BLOCK_TOKENS
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class AskChoices:
    """The choices of a question; with `prefill` nothing is looked for, with `force` what is found is used."""

    max_tokens: int = ANSWER_TOKENS
    prefill: bool = False
    force: bool = False
    ignore_eos: bool = False
    group: str | None = None
    cache_type: str = "f16"
    block_tokens: int = BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class _Opened:
    server: LlamaServer
    described: Described
    ids: list[int]


@contextlib.contextmanager
def _opened(model: Path, text: str, headroom: int, cache_type: str) -> Iterator[_Opened]:
    """Start a server with place for a document and `headroom` more tokens, and give the document's ids.

    Raises `InvalidDocument` for a text longer than the model reads.
    """
    identity = gguf_identity(model, cache=remembered())
    file = read_gguf(model)
    most = file.number("context_length")
    context = min(most, max(_LEAST_CONTEXT, len(text.encode()) // _BYTES_A_TOKEN + headroom))
    with contextlib.ExitStack() as started:
        server = started.enter_context(started_server(model, context, cache_type=cache_type))
        ids = server.tokens(text)
        needed = len(ids) + headroom
        if needed > most or not ids:
            why = f"{len(ids)} tokens and {headroom} more, and the model reads {most}"
            raise InvalidDocument(
                f"this document has {why}", cause="it is longer than the model can read", hint="a shorter one"
            )
        if needed > context:
            started.close()
            server = started.enter_context(started_server(model, needed, cache_type=cache_type))
        key = environment_key(identity, cache_type)
        described = recall(remembered(), key, file, identity)
        if described is None:
            described = describe(server, file, identity)
            keep(remembered(), key, described)
        yield _Opened(server, described, ids)


def publish_document(client: Client, text: str, model: Path, choices: PublishChoices) -> PublishResult:
    """Prefill a document with a GGUF model through llama.cpp, and publish its keys and values.

    Raises `NotFound` where nothing runs llama.cpp here, `Incompatible` for a model that cannot be shared.
    """
    began = time.monotonic()
    with _opened(model, text, 1, choices.cache_type) as opened:
        gathered = computed_sequence(opened.server, opened.described, opened.ids, STEP_SECONDS, choices.progress)
        data = text.encode()
        document = DocumentRef(hashlib.sha256(data).digest(), len(data), "text/plain", choices.source)
        done = publish_sequence(
            client,
            opened.described,
            gathered,
            block_tokens=choices.block_tokens,
            codec=choices.codec,
            group=choices.group,
            document=document,
        )
    manifest = statement_of(client.details(done.artifact)).manifest
    return PublishResult(
        artifact=done.artifact,
        document=document.reference,
        group=choices.group,
        model=manifest.model.label,
        tokens=done.tokens,
        checkpoints=[],
        state_bytes=0,
        raw_bytes=manifest.raw_bytes,
        wire_bytes=done.wire_bytes,
        codec=manifest.codecs[0],
        lossless=manifest.lossless,
        divergence=None,
        seconds=time.monotonic() - began,
        reused=done.reused,
    )


@dataclass(frozen=True, slots=True)
class LoadedPrefix:
    """A published prefix as a slot file of exactly its tokens, and what its server is to this one."""

    artifact: str
    file: SlotFile
    judgement: Judgement
    plan: PlanSummary


def published_prefix(
    client: Client,
    described: Described,
    ids: Sequence[int],
    *,
    block_tokens: int = BLOCK_TOKENS,
    force: bool = False,
    local: bool = False,
    group: str | None = None,
    seconds: float | None = None,
) -> LoadedPrefix:
    """Find the longest published prefix of token ids through the node, and build the slot file of it.

    Every chunk is checked, and the server that made it is compared with this one by the probe.  Raises `NotFound`,
    `PlanSaysPrefill`, `Incompatible` for what a server made that computes something else, and what
    `Client.cached_prefix` raises.
    """
    found = client.cached_prefix(
        pack_ids(ids),
        model=described.identity.digest,
        dtype=described.layout.dtype,
        block_tokens=block_tokens,
        parts=True,
        curve=(described.token_seconds * block_tokens, 0.0),
        force=force,
        local=local,
        group=group,
        seconds=seconds,
    )
    details = client.details(found.artifact)
    statement = statement_of(details)
    manifest: Manifest = statement.manifest
    judgement = judge(manifest.engine, described.probe)
    read = chunk_reader(Path(details.chunks_directory))
    rows = load_rows(manifest, described.layout, read, found.tokens, statement.seal)
    file = slot_file_of(described.layout, described.shape, ids[: found.tokens], rows)
    return LoadedPrefix(found.artifact, file, judgement, found.plan)


class _Template:
    """The chat template of a server, in the form of a tokenizer's."""

    def __init__(self, server: LlamaServer) -> None:
        self._server = server

    def apply_chat_template(self, messages: Sequence[Any], **_: Any) -> str:
        """Return messages as the text of a prompt."""
        answer = self._server.call("/apply-template", {"messages": list(messages)})
        return str(answer["prompt"])


def ask_document(client: Client, text: str, question: str, model: Path, choices: AskChoices) -> AskResult:
    """Answer a question on a document with a GGUF model through llama.cpp, from a published cache where there is one.

    Whatever is wrong with what was found, the answer is made: then the document is prefilled, and the plan says why.
    """
    began = time.monotonic()
    headroom = choices.max_tokens + len(question.encode()) + 256
    with _opened(model, text, headroom, choices.cache_type) as opened:
        server, described, ids = opened.server, opened.described, opened.ids
        asked = server.tokens(question_text(_Template(server), question), first=False)
        loaded: LoadedPrefix | None = None
        plan = PlanSummary(action="prefill", seconds=0.0, dollars=0.0, reason="prefilling was asked for")
        if not choices.prefill:
            try:
                loaded = published_prefix(
                    client,
                    described,
                    ids,
                    block_tokens=choices.block_tokens,
                    force=choices.force,
                    group=choices.group,
                )
                plan = loaded.plan
                server.restore(loaded.file)
            except (NotFound, PlanSaysPrefill) as error:
                loaded = None
                plan = PlanSummary(action="prefill", seconds=0.0, dollars=0.0, reason=error.message)
            except KvswapError as error:
                loaded = None
                server.erase()  # a restore that failed may have left something
                plan = PlanSummary(action="prefill", seconds=0.0, dollars=0.0, reason=f"not used: {error.message}")
        held = len(loaded.file.ids) if loaded is not None else 0
        taken = _prefilled(server, ids, held, described.layout.window)
        ready = time.monotonic() - began
        answer = server.complete([*ids, *asked], choices.max_tokens, STEP_SECONDS, ignore_eos=choices.ignore_eos)
        seconds = time.monotonic() - began
    cached = taken if taken is not None else _cached(answer)
    return _answered(answer, loaded if cached else None, plan, len(ids), ready, seconds)


def _prefilled(server: LlamaServer, ids: Sequence[int], held: int, window: int | None) -> int | None:
    """Prefill what a slot does not hold of a document, as publishers do: then an answer has the bits of theirs.

    Returns the tokens that the server took of the `held` ones, None if there was nothing to compute.
    """
    taken = None
    for end in ends_of(len(ids), window):
        if end > held:
            answer = server.complete(ids[:end], 0, STEP_SECONDS)
            taken = min(held, _cached(answer)) if taken is None else taken
    return taken


def _cached(answer: dict[str, Any]) -> int:
    """Return the tokens that a server says that it had in its cache."""
    timings = answer.get("timings")
    return int(timings.get("cache_n", 0)) if isinstance(timings, dict) else 0


def _answered(
    answer: dict[str, Any], loaded: LoadedPrefix | None, plan: PlanSummary, tokens: int, ready: float, seconds: float
) -> AskResult:
    timings = answer.get("timings") or {}
    cached = min(len(loaded.file.ids), tokens) if loaded is not None else 0
    if loaded is None and plan.action != "prefill":
        plan = PlanSummary(
            action="prefill", seconds=0.0, dollars=0.0, reason="llama-server took the cache and prefilled all the same"
        )
    made = float(timings.get("predicted_ms", 0.0)) / 1e3
    return AskResult(
        text=str(answer["content"]),
        token_ids=[int(token) for token in answer.get("tokens") or []],
        plan=plan,
        ttft_seconds=max(0.0, seconds - made),
        logits_digest=None,
        claim=loaded.judgement.claim if loaded is not None else "bitwise",
        tokens=tokens,
        artifact=loaded.artifact if loaded is not None else None,
        unchecked={},
        fetched_tokens=cached,
        computed_tokens=tokens - cached,
        wire_bytes=0,
        peers=[],
        ready_seconds=ready,
        load_seconds=0.0,
        prefill_seconds=float(timings.get("prompt_ms", 0.0)) / 1e3,
        seconds=seconds,
    )
