"""Verification of an artifact that is in the store, level by level (see `trust.levels`).

Who fetches from an untrusted publisher goes as far as V5 before the artifact counts as there; what was found is kept,
as is the proof against a publisher that was banned for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

from msgspec import structs

from kvswap.api.events import DisputeEvent, NoiseEvent
from kvswap.api.verification import Check, CoverageFigures, VerifyResult
from kvswap.artifact import layout
from kvswap.artifact.manifest import Manifest
from kvswap.core.errors import Incompatible, IntegrityError, KvswapError, NotFound, Untrusted
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.core.words import in_words
from kvswap.exchange.discovery.fingerprints import Agreed, accused, agree, fingerprints_of_others
from kvswap.exchange.model_port import ModelChoice
from kvswap.exchange.node.node import Node
from kvswap.exchange.publishing.own import verify_own
from kvswap.exchange.request import Progress, passing_on, silent
from kvswap.exchange.transfer.intervals import prepare_draw
from kvswap.exchange.verification import audits, status_records
from kvswap.exchange.verification.outcomes import conclude, dispute, is_own, reasons_against, verified_already
from kvswap.exchange.verification.use import require_text
from kvswap.trust import Statement, verify_envelope
from kvswap.trust.accusation import accuses, claims
from kvswap.trust.figures import CheckFigures
from kvswap.trust.levels import Level, LevelReport, LevelResult, due
from kvswap.trust.noise import Noise, NoiseRecord
from kvswap.trust.sampling import new_seed
from kvswap.worker.messages import CheckedArtifact, NoiseJob, VerifyJob

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
) -> VerifyResult:
    """Verify an artifact of the store, and return what each level found.

    `levels` None: what the publisher's standing asks for, and the probe.  Raises for what must not be used:
    `Untrusted` or `IntegrityError` for a bad signature, digest or chunk, or a level that failed; `NotFound`.
    """
    statement = await asyncio.to_thread(_in_store, node, reference)
    artifact, publisher = str(statement.artifact), statement.manifest.publisher
    trusted = node.trust.policy.policy.trusts(publisher)
    wanted = sorted({*due(listed=trusted), Level.PROBE}) if levels is None else levels

    async def look(results: Sequence[Level]) -> LevelReport:
        return await run_checks(node, statement, results, samples=samples, text=text, progress=progress)

    report = await (verify_own(node, statement, look, wanted) if is_own(node, statement) else look(wanted))
    raise_for(node, statement, report)
    probe = next((s for s in report.results if s.level == Level.PROBE and s.verdict != "skipped"), None)
    # On another class of machine honest numerics may tip a close token: told, not judged.
    if probe and probe.verdict == "failed" and probe.figures.same_environment:
        raise IntegrityError(
            f"artifact {artifact} does not continue as its probe says", cause="another model, or damaged tensors"
        )
    coverage = await asyncio.to_thread(audits.coverage, node, artifact)
    return VerifyResult(
        artifact=artifact,
        verified=True,
        publisher=publisher,
        trusted=trusted,
        signature=True,
        chunks=len(set(statement.manifest.ids_of(layout.needed_files(statement.manifest)))),
        tensors=len(statement.manifest.tensors) if report.passed(Level.STRUCTURE) else None,
        probe=probe.figures.tokens_equal if probe else None,
        probe_bitwise=probe.figures.logits_equal if probe else None,
        same_environment=probe.figures.same_environment if probe else None,
        coverage=CoverageFigures.from_json(coverage.to_json()) if coverage else None,
        claims=claims(statement.manifest),
        passed=report.names_passed,
        unchecked=report.unchecked,
        checks=[Check.from_json(result.to_json()) for result in report.results],
    )


def _in_store(node: Node, reference: str | Cid) -> Statement:
    """Return the newest that is here and in its time.  Raises `NotFound`, or what is wrong with the newest."""
    failure: KvswapError = NotFound(f"{reference} is not in the store", hint=f"kvswap fetch {reference}")
    for number, row in enumerate(node.lookup(reference)):
        try:
            if (envelope := node.store.envelope(row.id)) is not None:
                return verify_envelope(envelope, int(time.time()), node.trust.groups.keys)
        except Untrusted as error:
            failure = failure if number else error
    raise failure


def _file_ids(manifest: Manifest) -> tuple[set[Cid], set[Cid]]:
    """Return the ids of the files that a reader of the whole needs, and those of all files."""
    return set(manifest.ids_of(layout.needed_files(manifest))), {file.id for file in manifest.files}


async def run_checks(
    node: Node,
    statement: Statement,
    levels: Sequence[Level],
    *,
    samples: int = LIMITS.usual_samples,
    text: str | None = None,
    progress: Progress = silent,
) -> LevelReport:
    """Run these verification levels, as far as it can be done here; what finds something wrong is signed and kept.

    Raises `IntegrityError` for chunks that are not what was signed, `NotFound` for those that are not here,
    `UsageError` for a text that is not the document's.
    """
    manifest = statement.manifest
    require_text(statement, text)
    results: list[LevelResult] = []
    if Level.POLICY in levels:
        results.append(await asyncio.to_thread(_policy, node, statement))
    files, every = await asyncio.to_thread(_file_ids, manifest)  # of a prefix other ones are here
    lacking = set(await asyncio.to_thread(node.store.missing, every))
    absent = files & lacking
    async with node.store.held(lambda: every):
        if Level.DIGESTS in levels:
            began = time.perf_counter()
            await asyncio.to_thread(_check_chunks, node, every - lacking)
        if absent:
            artifact = statement.artifact
            raise NotFound(
                f"{len(absent)} of {len(files)} chunks of {artifact} are not here", hint=f"kvswap fetch {artifact}"
            )
        if Level.DIGESTS in levels:
            results.append(
                LevelResult(
                    Level.DIGESTS, "passed", time.perf_counter() - began, figures=CheckFigures(files=len(files))
                )
            )
        model = [level for level in levels if level > Level.DIGESTS]
        if model:
            results += await _with_model(node, statement, model, samples, text, progress)
    report = LevelReport(tuple(results))
    await asyncio.to_thread(_remember, node, statement, levels, report)
    return report


def _remember(node: Node, statement: Statement, levels: Sequence[Level], report: LevelReport) -> None:
    passed = [int(result.level) for result in report.results if result.verdict == "passed"]
    node.trust.records.add_checks(str(statement.artifact), passed)
    conclude(node, statement, levels, report)


def _check_chunks(node: Node, cids: Iterable[Cid]) -> None:
    for cid in cids:
        node.store.check_chunk(cid)


def forget_damaged(node: Node, statement: Statement) -> int:
    """Unlist the damaged or lost chunks of an artifact here, and return how many these were.  Blocks.

    Call it when the model process could not use one: the index says that all is here until it is told otherwise.
    """
    cids = {file.id for file in statement.manifest.files}
    with node.store.lease(cids):
        listed, lost = cids - set(node.store.missing(cids)), 0
        for cid in listed:
            try:
                node.store.check_chunk(cid)
            except (IntegrityError, NotFound):
                lost += 1
    return lost


def _policy(node: Node, statement: Statement) -> LevelResult:
    publisher = statement.manifest.publisher
    stale = status_records.freshness(node, publisher)
    figures = CheckFigures(publisher=publisher, withdrawals=stale or "none")
    try:
        status_records.require_current(node, statement)
        audits.refuse_if_failed(node, statement)
    except Untrusted as error:
        return LevelResult(Level.POLICY, "failed", why=error.message, figures=figures)
    if node.trust.policy.policy.trusts(publisher):
        return LevelResult(Level.POLICY, "passed", figures=figures)
    return LevelResult(Level.POLICY, "skipped", why=f"{publisher} is not on the allow-list", figures=figures)


async def _with_model(
    node: Node, statement: Statement, levels: Sequence[Level], samples: int, text: str | None, progress: Progress
) -> list[LevelResult]:
    manifest = statement.manifest

    async def run(levels: Sequence[Level]) -> CheckedArtifact:
        job = VerifyJob(
            envelope=statement.envelope,
            key=statement.key,
            chunks=str(node.store.chunks_directory),
            levels=[int(level) for level in levels],
            samples=samples,
            seed=seed,
            text=text,
            noise=noise,
        )
        return await node.model.run(choice, job, passing_on(progress))

    try:
        choice = await node.model.choose()
        noise = await noise_of(node, choice, progress) if set(levels) & set(_NEED_NOISE) else None
        # Only now is drawn: the manifest, and with it every chunk's digest, is fixed.
        seed = await prepare_draw(node, statement, samples, progress) if Level.SAMPLES in levels else new_seed()
        done = await run(levels)
    except (NotFound, Incompatible) as error:
        return [LevelResult(level, "skipped", why=error.message) for level in levels]
    except IntegrityError:
        files = set(manifest.ids_of(layout.needed_files(manifest)))
        await asyncio.to_thread(_check_chunks, node, files)  # raises for a chunk that is damaged here
        if not is_own(node, statement):
            # Its chunks do not decode to what was signed with them.
            await asyncio.to_thread(node.store.remove, str(statement.artifact))
        raise
    results = [step.result for step in done.steps]
    if Level.AGREEMENT in levels and noise is not None and not any(s.verdict == "failed" for s in results):
        began = time.perf_counter()
        fingerprints = await fingerprints_of_others(node, statement)
        honest = Noise.of(noise)
        agreed = agree(node, statement, done.fingerprint, fingerprints, honest, began)
        results.append(agreed.result)
        if agreed.against and not node.trust.policy.policy.trusts(manifest.publisher):
            await asyncio.to_thread(dispute, node, statement, agreed.result)  # first: settling may take long, or fail
            results = await _resolve_dispute(node, statement, agreed, results, done, honest, run, progress)
    if not is_own(node, statement):  # nobody audits himself
        await asyncio.to_thread(_audit, node, statement, choice, results, samples, seed)
    return sorted(results, key=lambda s: s.level)


def _audit(
    node: Node, statement: Statement, choice: ModelChoice, results: Sequence[LevelResult], samples: int, seed: bytes
) -> None:
    """Sign what each step found that compares with the model, and act on what proves the artifact wrong."""
    for result in results:
        # An audit that passed tells positions, which intervals have none of.
        passed = result.verdict == "passed" and result.level != Level.TOKENS and result.figures.intervals is None
        signed = None
        if result.level in _COMPARES and (accuses(result) or passed):
            signed = audits.record(node, statement, choice, result, samples, seed)
        ban_if_proven(node, statement, result, signed.id if signed else "")


async def _resolve_dispute(
    node: Node,
    statement: Statement,
    agreed: Agreed,
    results: list[LevelResult],
    done: CheckedArtifact,
    noise: Noise,
    run: Callable[[Sequence[Level]], Awaitable[CheckedArtifact]],
    progress: Progress,
) -> list[LevelResult]:
    """Return the steps with V7, which says who is right; whose fingerprint is not what this node computes is banned."""
    recomputed = next((s for s in results if s.level == Level.RECOMPUTE), None)
    if recomputed is None:
        await progress(DisputeEvent(artifacts=[str(fingerprint.statement.artifact) for fingerprint in agreed.against]))
        try:
            done = structs.replace(await run([Level.RECOMPUTE]), fingerprint=done.fingerprint)
            (recomputed,) = (step.result for step in done.steps)
        except (NotFound, Incompatible) as error:
            recomputed = LevelResult(Level.RECOMPUTE, "skipped", why=error.message)
        results = [*results, recomputed]
    if recomputed.verdict != "passed":
        return results
    against = partial(accused, computed=done.computed, noise=noise, ours=done.numerics)
    for fingerprint in agreed.untrusted:
        if (result := against(fingerprint.statement, fingerprint.data)) is not None:
            await asyncio.to_thread(ban_if_proven, node, fingerprint.statement, result)
    right = replace(
        agreed.result, verdict="passed", why=f"{agreed.result.why}; full recomputation shows that this one is right"
    )
    found = against(statement, done.fingerprint) or right
    return [found if result is agreed.result else result for result in results]


def ban_if_proven(node: Node, statement: Statement, result: LevelResult, evidence: str = "") -> bool:
    """Remove an artifact and ban its publisher where a step proves it wrong; return True if it does.

    Nothing of it is used, offered or asked for again (see `trust.accusation`).  Blocks.
    """
    if not accuses(result) or is_own(node, statement):
        return False
    publisher, artifact = statement.manifest.publisher, str(statement.artifact)
    with contextlib.suppress(NotFound):  # of another publisher's, only the fingerprint was looked at
        node.store.remove(artifact)
    why = f"V{int(result.level)}: {result.why}"
    audits.ban_publisher(node, publisher, artifact, why, evidence, by=node.identity.own)
    return True


async def noise_of(node: Node, choice: ModelChoice, progress: Progress = silent) -> NoiseRecord:
    """Return the honest noise of the model on this machine, measured once."""
    known = node.calibration.noise(choice.calibration_key)
    if known is None or not _is_noise(known):  # or measured by a version that looked at less
        await progress(NoiseEvent(model=choice.name))
        node.events.add("measuring_noise", model=choice.name)
        known = (await node.model.run(choice, NoiseJob())).noise
        Noise.of(known)
        node.calibration.add_noise(choice.calibration_key, known)
    return known


def _is_noise(known: NoiseRecord) -> bool:
    try:
        Noise.of(known)
    except ValueError:
        return False
    return True


# -- untrusted publishers ------------------------------------------------------------------------


async def verify_untrusted(
    node: Node, statement: Statement, text: str | None, samples: int, progress: Progress
) -> LevelReport | None:
    """Verify an untrusted publisher's artifact before anything of it is used.  None: there was nothing to do.

    Raises `IntegrityError` for what is wrong, `Untrusted` naming what could not be checked.
    """
    if await asyncio.to_thread(verified_already, node, statement):
        return None
    report = await run_checks(node, statement, due(listed=False), samples=samples, text=text, progress=progress)
    raise_for(node, statement, report)
    refuse_unusable(statement, reasons_against(statement, report), report.unchecked)
    return report


def refuse_unusable(statement: Statement, reasons: dict[str, str], unchecked: dict[str, str]) -> None:
    """Raise `Untrusted` for an untrusted publisher's artifact that cannot be verified, for these reasons, if any."""
    if not reasons:
        return
    named = in_words("; ".join(f"{where}: {why}" for where, why in reasons.items()))
    raise Untrusted(
        f"artifact {statement.artifact} is an untrusted publisher's and could not be verified ({named})",
        cause="a signature does not say that a cache belongs to its text",
        hint="give the document's file instead of its digest; or kvswap trust add " + statement.manifest.publisher,
        unchecked=unchecked | reasons,
    )


def raise_for(node: Node, statement: Statement, report: LevelReport) -> None:
    """Raise `IntegrityError`, or `Untrusted`, for a level that found something wrong."""
    result = next((s for s in report.results if accuses(s)), report.failed)
    if result is None:
        return
    if result.level == Level.POLICY:
        raise Untrusted(f"artifact {statement.artifact} is not to be used: {result.why}")
    publisher = statement.manifest.publisher
    proved = accuses(result) and not is_own(node, statement)
    raise IntegrityError(
        f"artifact {statement.artifact} failed verification ({result.level.words}): {result.why}",
        cause=f"{publisher} signed a cache that is not the model's own" if accuses(result) else "somebody is wrong",
        hint=f"kvswap trust audits {publisher}" if proved else f"kvswap verify {statement.artifact} --level 7",
        step=f"V{int(result.level)}",
        publisher=publisher,
    )
