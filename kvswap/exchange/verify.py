"""Going up the ladder with an artifact that is in the store (see `trust.ladder`).

Who fetches from a stranger goes as far as V5 before the artifact counts as there; what was found is kept,
as is the proof against a publisher that was caught.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Any

from kvswap.artifact import layout
from kvswap.artifact.sealing import FINGERPRINT, open_file
from kvswap.core.errors import Incompatible, IntegrityError, KvswapError, NotFound, Untrusted
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.exchange import audits, heads
from kvswap.exchange.claims import require_text
from kvswap.exchange.find import find
from kvswap.exchange.model_port import ModelChoice
from kvswap.exchange.node import AGENT, Node
from kvswap.exchange.request import Progress, silent
from kvswap.net import PeerAddress, messages
from kvswap.trust import Statement, verify_envelope
from kvswap.trust.accusation import accuses, claims, unusable
from kvswap.trust.agreement import compare
from kvswap.trust.ladder import STRANGER, Ladder, Level, Step, due, from_pipe
from kvswap.trust.noise import MARGIN, Noise
from kvswap.trust.sampling import new_seed

_OTHERS = 8  # publishers whose fingerprints are asked for
_COMPARES = (Level.TOKENS, Level.SAMPLES, Level.RECOMPUTE)
_NEED_NOISE = (Level.SAMPLES, Level.AGREEMENT, Level.RECOMPUTE)


async def verify_artifact(
    node: Node,
    reference: str | Cid,
    *,
    levels: Sequence[Level] | None = None,
    samples: int = LIMITS.usual_samples,
    text: str | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """A report by step.  Raises for what must not be used: a bad signature, digest or chunk, a step that failed.

    `levels` None: what the publisher's standing asks for, and the probe.
    """
    row = next(iter(node.lookup(reference)), None)
    envelope = node.store.envelope(row.id) if row is not None else None
    if row is None or envelope is None:
        raise NotFound(f"{reference} is not in the store", hint=f"kvswap fetch {reference}")
    statement = verify_envelope(envelope, int(time.time()), node.groups.keys)
    publisher = statement.manifest.publisher
    trusted = node.policy.policy.trusts(publisher)
    wanted = sorted({*due(listed=trusted), Level.PROBE}) if levels is None else levels
    ladder = await climb(node, statement, wanted, samples=samples, text=text, progress=progress)
    raise_for(node, statement, ladder)
    probe = next((s for s in ladder.steps if s.level == Level.PROBE and s.verdict != "skipped"), None)
    # On another class of machine honest numerics may tip a close token: told, not judged.
    if probe and probe.verdict == "failed" and probe.figures["same_environment"]:
        raise IntegrityError(
            f"artifact {row.id} does not continue as its probe says", cause="another model, or damaged tensors"
        )
    coverage = audits.coverage(node, row.id)
    return {
        "artifact": row.id,
        "verified": True,
        "publisher": publisher,
        "trusted": trusted,
        "signature": True,
        "chunks": len({statement.manifest.files[i].id for i in layout.needed_files(statement.manifest)}),
        "tensors": len(statement.manifest.tensors) if ladder.passed(Level.STRUCTURE) else None,
        "probe": probe.figures["tokens_equal"] if probe else None,
        "probe_bitwise": probe.figures["logits_equal"] if probe else None,
        "same_environment": probe.figures["same_environment"] if probe else None,
        "coverage": coverage.to_json() if coverage else None,
        "claims": claims(statement.manifest),
        **ladder.to_json(),
    }


async def climb(
    node: Node,
    statement: Statement,
    levels: Sequence[Level],
    *,
    samples: int = LIMITS.usual_samples,
    text: str | None = None,
    progress: Progress = silent,
) -> Ladder:
    """Do these steps, as far as they can be done here; what finds something wrong is signed and kept.

    Raises `IntegrityError` for chunks that are not what was signed, `NotFound` for those that are not here,
    `UsageError` for a text that is not the document's.
    """
    manifest = statement.manifest
    require_text(statement, text)
    steps: list[Step] = []
    if Level.POLICY in levels:
        steps.append(_policy(node, statement))
    files = {manifest.files[i].id for i in layout.needed_files(manifest)}
    every = files | {file.id for file in manifest.files}  # of a beginning other ones are here
    lacking = set(await asyncio.to_thread(node.store.missing, every))
    absent = files & lacking
    with node.store.lease(every):
        if Level.DIGESTS in levels:
            began = time.perf_counter()
            await asyncio.to_thread(_check_chunks, node, every - lacking)
        if absent:
            artifact = statement.artifact
            raise NotFound(
                f"{len(absent)} of {len(files)} chunks of {artifact} are not here", hint=f"kvswap fetch {artifact}"
            )
        if Level.DIGESTS in levels:
            steps.append(Step(Level.DIGESTS, "passed", time.perf_counter() - began, figures={"files": len(files)}))
        model = [level for level in levels if level > Level.DIGESTS]
        if model:
            steps += await _with_model(node, statement, model, samples, text, progress)
    ladder = Ladder(tuple(steps))
    node.records.add_checks(str(statement.artifact), [int(s.level) for s in steps if s.verdict == "passed"])
    return ladder


def _check_chunks(node: Node, cids: Iterable[Cid]) -> None:
    for cid in cids:
        node.store.check_chunk(cid)


def _policy(node: Node, statement: Statement) -> Step:
    publisher = statement.manifest.publisher
    stale = heads.freshness(node, publisher)
    figures = {"publisher": publisher, "withdrawals": stale or "none"}
    try:
        heads.require_current(node, statement)
        audits.refuse_if_failed(node, statement)
    except Untrusted as error:
        return Step(Level.POLICY, "failed", why=error.message, figures=figures)
    if node.policy.policy.trusts(publisher):
        return Step(Level.POLICY, "passed", figures=figures)
    return Step(Level.POLICY, "skipped", why=f"{publisher} is not on the allow-list", figures=figures)


async def _with_model(
    node: Node, statement: Statement, levels: Sequence[Level], samples: int, text: str | None, progress: Progress
) -> list[Step]:
    seed = new_seed()  # only now: the manifest and every chunk are fixed
    manifest = statement.manifest
    try:
        choice = await node.model.choose()
        noise = await noise_of(node, choice, progress) if set(levels) & set(_NEED_NOISE) else None
        made = await node.model.run(
            choice,
            "verify",
            progress,
            envelope=statement.envelope,
            key=statement.key,
            chunks=str(node.store.chunks_directory),
            levels=[int(level) for level in levels],
            samples=samples,
            seed=seed,
            text=text,
            noise=noise,
        )
    except (NotFound, Incompatible) as error:
        return [Step(level, "skipped", why=error.message) for level in levels]
    except IntegrityError:
        files = {manifest.files[i].id for i in layout.needed_files(manifest)}
        await asyncio.to_thread(_check_chunks, node, files)  # raises for a chunk that is damaged here
        if not is_own(node, statement):
            node.store.remove(str(statement.artifact))  # its chunks do not decode to what was signed with them
        raise
    steps = from_pipe(made["steps"])
    if Level.AGREEMENT in levels and noise is not None and not any(s.verdict == "failed" for s in steps):
        steps.append(await _agreement(node, statement, made["fingerprint"], Noise.of(noise)))
    for step in steps if not is_own(node, statement) else ():  # nobody audits himself
        passed = step.verdict == "passed" and step.level != Level.TOKENS
        signed = None
        if step.level in _COMPARES and (accuses(step) or passed):
            signed = audits.record(node, statement, choice, step, samples, seed)
        caught(node, statement, step, signed.id if signed else "")
    return sorted(steps, key=lambda s: s.level)


def is_own(node: Node, statement: Statement) -> bool:
    """Whether this node signed it, with the key it has now."""
    return statement.manifest.publisher == str(node.publisher.peer_id)


def caught(node: Node, statement: Statement, step: Step, evidence: str = "") -> bool:
    """Where a step proves an artifact wrong, never use, offer or ask for it again, nor anything of its publisher.

    Returns whether it does (see `trust.accusation`).
    """
    if not accuses(step) or is_own(node, statement):
        return False
    publisher, artifact = statement.manifest.publisher, str(statement.artifact)
    node.store.remove(artifact)
    why = f"V{int(step.level)}: {step.why}"
    audits.distrust(node, publisher, artifact, why, evidence, by=str(node.publisher.peer_id))
    return True


async def noise_of(node: Node, choice: ModelChoice, progress: Progress = silent) -> dict[str, Any]:
    """Honest noise of the model on this machine, measured once."""
    known = node.calibration.noise(choice.calibration_key)
    if known is None:
        await progress({"event": "noise", "model": choice.name})
        node.events.add("measuring_noise", model=choice.name)
        known = await node.model.run(choice, "noise")
        Noise.of(known)
        node.calibration.add_noise(choice.calibration_key, known)
    return known


# -- V6 ----------------------------------------------------------------------------------------------


async def _agreement(node: Node, statement: Statement, own: bytes, noise: Noise) -> Step:
    """Fingerprints of other publishers of the same tokens and model, beside that of the tensors at hand."""
    began = time.perf_counter()
    others = await _fingerprints(node, statement) if statement.manifest.exact else {}
    if not others:
        return Step(Level.AGREEMENT, "skipped", why="no other publisher of the same tokens was found")
    agreement = compare(own, others, noise.fingerprints)
    figures = {
        "publishers": len(others),
        "agreeing": agreement.agreeing,
        "worst": round(max(agreement.scores.values()), 2),
        "margin": MARGIN,
    }
    seconds = time.perf_counter() - began
    if agreement.holds:
        return Step(Level.AGREEMENT, "passed", seconds, figures=figures)
    why = f"{len(others) - agreement.agreeing} of {len(others)} other publishers made something else of the same tokens"
    return Step(Level.AGREEMENT, "failed", seconds, why, figures)


async def _fingerprints(node: Node, statement: Statement) -> dict[str, bytes]:
    """By publisher: one each, not the artifact's own, nobody who was caught."""
    manifest = statement.manifest
    candidates: dict[str, tuple[Statement, str | None]] = {}

    def consider(envelope: bytes, peer: str | None) -> None:
        try:
            other = verify_envelope(envelope, int(time.time()), node.groups.keys)
        except KvswapError:
            return
        theirs = other.manifest
        same = (
            theirs.model == manifest.model
            and theirs.prefix.token_digest == manifest.prefix.token_digest
            and theirs.layout == manifest.layout
            and theirs.fingerprint is not None
        )
        unknown = theirs.publisher not in (manifest.publisher, *candidates)
        if same and unknown and node.policy.policy.caught(theirs.publisher) is None and len(candidates) < _OTHERS:
            candidates[theirs.publisher] = (other, peer)

    document = statement.reference  # of a sealed artifact: by the name in its group, and in no other
    if document is None:
        return {}
    for row in await asyncio.to_thread(node.store.artifacts, document):
        if (held := node.store.envelope(row.id)) is not None:
            consider(held, None)
    model, dtype = statement.names.model(manifest.model.digest, manifest.layout.dtype)
    query = messages.Find(AGENT, document=document, model=model, dtype=dtype)
    for offer in await find(node, query):
        if offer.found.publisher in (manifest.publisher, *candidates):
            continue
        try:
            told = offer.found.envelope
            if told is None:
                told = await node.ask(PeerAddress(offer.peer), messages.GetManifest(offer.found.artifact), bytes)
            consider(told, offer.peer)
        except KvswapError:
            continue
    out = {}
    for publisher, (other, peer) in candidates.items():
        file = other.manifest.fingerprint
        assert file is not None  # noqa: S101 - considered
        try:
            if await asyncio.to_thread(node.store.has_chunk, file.id):
                data = await asyncio.to_thread(node.store.get_chunk, file.id)
            elif peer is not None:
                data = await node.ask(PeerAddress(peer), messages.GetChunk(str(file.id)), bytes)
            else:
                continue
        except KvswapError:
            continue
        try:
            out[publisher] = open_file(file, FINGERPRINT, data, other.seal)
        except IntegrityError:
            if peer is not None:
                node.lied(peer, "a fingerprint that is not what was signed")
    return out


# -- strangers ---------------------------------------------------------------------------------------


def settled(node: Node, statement: Statement) -> bool:
    """Whether nothing is left to verify: a trusted publisher's, or what went through V5 here before."""
    if node.policy.policy.trusts(statement.manifest.publisher):
        return True
    return {int(level) for level in STRANGER if level not in (Level.POLICY, Level.AGREEMENT)} <= node.records.checks(
        str(statement.artifact)
    )


async def settle(node: Node, statement: Statement, text: str | None, samples: int, progress: Progress) -> Ladder | None:
    """Verify what a stranger made, before anything of it is used.  None: there was nothing to do.

    Raises `IntegrityError` for what is wrong, `Untrusted` naming what could not be checked.
    """
    if settled(node, statement):
        return None
    ladder = await climb(node, statement, due(listed=False), samples=samples, text=text, progress=progress)
    raise_for(node, statement, ladder)
    refuse_unusable(statement, unusable(statement.manifest, ladder), ladder.unchecked)
    return ladder


def refuse_unusable(statement: Statement, reasons: dict[str, str], unchecked: dict[str, str]) -> None:
    """Raise `Untrusted` for a stranger's artifact that cannot be verified, for these reasons; nothing without any."""
    if not reasons:
        return
    named = "; ".join(f"{where}: {why}" for where, why in reasons.items())
    raise Untrusted(
        f"artifact {statement.artifact} is a stranger's and could not be verified ({named})",
        cause="a signature does not say that a cache belongs to its text",
        hint="give the document's file instead of its digest; or kvswap trust add " + statement.manifest.publisher,
        unchecked=unchecked | reasons,
    )


def raise_for(node: Node, statement: Statement, ladder: Ladder) -> None:
    """Raise `IntegrityError`, or `Untrusted`, for a step that found something wrong."""
    step = ladder.failed
    if step is None:
        return
    if step.level == Level.POLICY:
        raise Untrusted(f"artifact {statement.artifact} is not to be used: {step.why}")
    publisher = statement.manifest.publisher
    proved = accuses(step) and not is_own(node, statement)
    raise IntegrityError(
        f"artifact {statement.artifact} failed V{int(step.level)}: {step.why}",
        cause=f"{publisher} signed a cache that is not the model's own" if accuses(step) else "somebody is wrong",
        hint=f"kvswap trust audits {publisher}" if proved else f"kvswap verify {statement.artifact} --level 7",
        step=f"V{int(step.level)}",
        publisher=publisher,
    )


def verification(node: Node, statement: Statement, ladder: Ladder | None) -> dict[str, Any]:
    """What a fetch says of how far an artifact was verified."""
    if ladder is not None:
        return {k: v for k, v in ladder.to_json().items() if k != "steps"}
    before = node.records.checks(str(statement.artifact)) | {int(Level.POLICY), int(Level.DIGESTS)}
    if is_own(node, statement):
        return {"passed": ["V0", "V1"], "unchecked": {}, "own": True}
    why = "its publisher is trusted; kvswap verify --level N checks it"
    return {
        "passed": [f"V{level}" for level in sorted(before)],
        "unchecked": {f"V{int(level)}": why for level in Level if int(level) not in before},
    }
