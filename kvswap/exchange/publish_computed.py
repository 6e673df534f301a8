"""Publishing what a serving engine computed: it sends the chunks, this node signs what it says of them.

An engine's kernels are not those of the model process, so nothing is claimed bitwise, unless the engine says by a probe
what it computes: then readers claim it who have the same engine, and compare the probe.  Where the node has the model,
the engine's cache and one computed here answer the same question: equal tokens make the claim `token-verified`,
anything else leaves it at `tolerance`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import msgspec

from kvswap.api.caches import ComputedResult, DivergenceFigures
from kvswap.artifact.manifest import (
    Divergence,
    DocumentRef,
    EngineProbe,
    Manifest,
    ModelIdentity,
    Numerics,
    Probe,
    TokenSequence,
    version_of,
)
from kvswap.core.errors import Incompatible, IntegrityError, KvswapError, UsageError
from kvswap.core.ids import blake3_digest
from kvswap.exchange.model_port import own_model
from kvswap.exchange.node.node import Node
from kvswap.exchange.publishing.ingest import Ingested, Producer, ingest
from kvswap.exchange.publishing.signing import new_life, reusable
from kvswap.exchange.request import Progress, silent
from kvswap.trust import Group, Statement
from kvswap.trust.groups import PUBLIC
from kvswap.worker.messages import ComparedCaches, CompareJob, EngineComputed

NO_PROBE = Probe(question=[], tokens=[], logits=blake3_digest(b""))
_MOST_KL = 50_000  # millionths of a nat a token: more than int8 loses (43,500 on Qwen2.5-Coder-0.5B)
EXACTNESS_CLAIMS = ("token-verified", "tolerance")  # that an engine's cache can have


@dataclass(frozen=True, slots=True)
class Computed:
    """The description of a cache that an engine is about to send."""

    model: ModelIdentity
    dtype: str
    ids: tuple[int, ...]
    block_tokens: int
    numerics: Numerics
    group: str | None = None
    compare: bool = True  # with what the model process computes, where there is one
    document: DocumentRef | None = None
    engine: EngineProbe | None = None
    predictor: bytes | None = None  # what `predictive` chunks are coded against

    @property
    def prefix(self) -> TokenSequence:
        """The token sequence, as a manifest names it."""
        from kvswap.artifact.chain import token_sequence_of  # numpy, which most nodes have no use for

        return token_sequence_of(self.model.digest, self.ids, self.block_tokens)


async def publish_computed(
    node: Node, computed: Computed, run: Producer[EngineComputed], progress: Progress = silent
) -> ComputedResult:
    """Publish the cache that `run` sends; one of the same kind that this node already published is reused.

    Nothing is read of `run` then.  Raises `UsageError` for a claim that an engine cannot make, `Incompatible` for a
    cache that does not continue as the model does.
    """
    name = computed.group or node.settings.group
    readers = node.trust.groups.get(name) if name else None
    prefix = await asyncio.to_thread(lambda: computed.prefix)
    claims = (*EXACTNESS_CLAIMS, "bitwise") if computed.engine is not None else EXACTNESS_CLAIMS
    if computed.numerics.claim not in claims:
        raise UsageError(f"what an engine made cannot be claimed to be {computed.numerics.claim[:40]!r}")
    if computed.predictor is not None:
        await asyncio.to_thread(_require_predictor, computed.predictor)
    before = await asyncio.to_thread(_own, node, computed, prefix, readers)
    if before is not None:
        return _result(before, None, reused=True)
    divergence: Divergence | None = None

    async def describe(ingested: Ingested[EngineComputed]) -> Manifest:
        nonlocal divergence
        layout = ingested.result.layout
        manifest = Manifest(
            version=version_of(layout),
            model=computed.model,
            prefix=prefix,
            layout=layout,
            numerics=computed.numerics,
            tensors=ingested.result.tensors,
            chunks=ingested.refs,
            probe=NO_PROBE,
            predictor=ingested.predictor,
            fingerprint=ingested.fingerprint,
            life=new_life(node),
            publisher=node.identity.own,
            document=computed.document,
            extensions=["engine"] if computed.engine is not None else [],
            engine=computed.engine,
        )
        compared = await _compared(node, computed, manifest, ingested) if computed.compare else None
        if compared is None:
            return manifest
        divergence = compared.divergence
        _require_alike(divergence)
        claim = EXACTNESS_CLAIMS[0] if divergence.equal == divergence.steps else EXACTNESS_CLAIMS[1]
        numerics = msgspec.structs.replace(computed.numerics, claim=claim)
        return msgspec.structs.replace(manifest, numerics=numerics, probe=compared.probe)

    return _result(
        await ingest(node, run, progress, describe, readers, predictor=computed.predictor), divergence, reused=False
    )


def _require_predictor(data: bytes) -> None:
    """Check that a predictor loads, as readers will load it.  Raises `IntegrityError`."""
    from kvswap.codec import predictive  # numpy, which most nodes have no use for

    predictive.load(data)


def _require_alike(divergence: Divergence) -> None:
    """Raise `Incompatible` for a cache that is further off than rounding in any kernel: nothing of it is signed."""
    if divergence.kl > _MOST_KL:
        raise Incompatible(
            f"the engine's cache does not continue as the model does: {divergence.kl / 1e6:.2f} nats a token apart, "
            f"{divergence.equal} of {divergence.steps} tokens the same",
            cause="the engine computes with other weights, or in another way, than the model's files say",
            hint="start the engine with the model's own files and settings",
            field="numerics",
        )


async def _compared(
    node: Node, computed: Computed, manifest: Manifest, ingested: Ingested[EngineComputed]
) -> ComparedCaches | None:
    """Compare how the cache and the model process's own answer; None where that cannot be done."""
    choice = await own_model(node.model)
    if choice is None or (choice.identity.digest, choice.dtype) != (computed.model.digest, computed.dtype):
        return None
    job = CompareJob(
        manifest=await asyncio.to_thread(manifest.encode),
        chunks=str(node.store.chunks_directory),
        ids=list(computed.ids),
        key=ingested.seal.key if ingested.seal is not None else None,
    )
    try:
        return await node.model.run(choice, job)
    except IntegrityError:
        raise  # what it sent is not what it says
    except KvswapError as error:
        node.events.add("not_compared", tokens=manifest.prefix.tokens, reason=error.message)
        return None


def _own(node: Node, computed: Computed, prefix: TokenSequence, readers: Group | None) -> Statement | None:
    """Return what this node published of the same tokens, computed in the same way, for the same readers."""
    identifiers = readers or PUBLIC
    wanted = identifiers.model(computed.model.digest, computed.dtype)
    for row, _ in node.store.longest_prefix(identifiers.chain(prefix.chain)[-1:]):
        statement = reusable(node, row) if (row.model, row.dtype) == wanted else None
        if statement is None or statement.manifest.prefix.token_digest != prefix.token_digest:
            continue
        if statement.manifest.numerics.environment == computed.numerics.environment:
            return statement
    return None


def _result(statement: Statement, divergence: Divergence | None, *, reused: bool) -> ComputedResult:
    manifest = statement.manifest
    return ComputedResult(
        artifact=str(statement.artifact),
        tokens=manifest.prefix.tokens,
        claim=manifest.numerics.claim,
        compared=DivergenceFigures(**msgspec.structs.asdict(divergence)) if divergence is not None else None,
        wire_bytes=manifest.wire_bytes,
        reused=reused,
    )
