"""The jobs of the model process and their results, a struct each; what is said meanwhile is in `conversation`.

A job is known by its tag (`job`).  The pipe carries no floats: times are whole microseconds.  Nothing here needs torch,
so both sides import it.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar, get_args

import msgspec

from kvswap.artifact.manifest import Divergence, ModelIdentity, Numerics, Probe, TokenSequence
from kvswap.artifact.specs import Layout, TensorDigests
from kvswap.core import wire
from kvswap.core.errors import UsageError, WorkerFailed
from kvswap.trust.figures import CheckFigures
from kvswap.trust.levels import Level, LevelResult, Verdict
from kvswap.trust.noise import MICRO, NoiseRecord

R = TypeVar("R")
Samples = list[tuple[int, int, int]]
"""For each block that was computed: tokens before it, its tokens, microseconds."""


class PipeMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of all that goes through the pipe; both ends are of one version."""


class Job(PipeMessage, Generic[R], frozen=True, kw_only=True, tag_field="job"):
    """The base of a job, whose result is an `R`."""


class OpenedModel(PipeMessage, frozen=True, kw_only=True):
    """A model that is loaded."""

    identity: ModelIdentity
    numerics: Numerics
    context: int
    """The longest text that it takes, in tokens."""
    dtype: str


class OpenJob(Job[OpenedModel], frozen=True, kw_only=True, tag="open"):
    """Load a model from a directory."""

    directory: str
    label: str
    dtype: str
    device: str
    threads: int
    """Of the processor; 0: as many as there are."""


class TokenizedText(PipeMessage, frozen=True, kw_only=True):
    """A text as tokens."""

    tokens: int
    ids: bytes
    """The token ids, packed (`artifact.chain.pack_ids`)."""
    token_digest: bytes
    chain: list[bytes]
    """The chain digests of its blocks."""


class TokenizeJob(Job[TokenizedText], frozen=True, kw_only=True, tag="tokenize"):
    """Tokenise a document."""

    text: str
    block_tokens: int


class RenderedChat(PipeMessage, frozen=True, kw_only=True):
    """A conversation as the model's template writes it."""

    text: str
    tokens: int
    parts: list[tuple[str, int, int]]
    """Where its parts end: `system`, `tools` or `message`, the number of the message, tokens up to the end."""
    states: bool
    """The model keeps states."""
    continuation: str | None
    """The text that follows for the question that was given."""


class RenderJob(Job[RenderedChat], frozen=True, kw_only=True, tag="render"):
    """Render a conversation by the model's chat template."""

    chat: bytes
    """JSON of an object with `messages` and `tools`: the pipe carries no floats."""
    question: str | None = None


class Calibrated(PipeMessage, frozen=True, kw_only=True):
    """The costs of prefill and codecs on this machine."""

    samples: Samples
    codecs: dict[str, tuple[int, int, int]]
    """By codec: raw bytes, microseconds of encoding them with one thread, and of loading them with all."""


class CalibrateJob(Job[Calibrated], frozen=True, kw_only=True, tag="calibrate"):
    """Measure prefill and codecs with a few blocks of the model."""

    block_tokens: int
    predictor: str | None = None
    """The file of the model's predictor, to measure the predictive codec too."""
    blocks: int = 3


class PublishedCache(PipeMessage, frozen=True, kw_only=True):
    """The fields of a manifest beside its chunks, which came as events."""

    model: ModelIdentity
    prefix: TokenSequence
    layout: Layout
    numerics: Numerics
    tensors: list[TensorDigests]
    probe: Probe
    samples: Samples
    prefill_us: int
    reused: int = 0
    """The tokens that came from `PublishJob.base`."""


class PublishJob(Job[PublishedCache], frozen=True, kw_only=True, tag="publish"):
    """Prefill a document, and send its chunks and its fingerprint as events."""

    text: str
    block_tokens: int
    codec: str
    truncate: bool = False
    """Leave out what is over the model's context, to a whole block."""
    checkpoints: list[int] = []
    """Token counts that a reader shall be able to resume at, beside the usual ones."""
    predictor: str | None = None
    """The CID of the predictor, among the `chunks`, that the codec needs."""
    chunks: str | None = None
    """The directory of the node's chunks."""
    base: bytes | None = None
    """The envelope of an own artifact whose first blocks, all in `chunks`, may be those of this document."""
    base_key: bytes | None = None


class EngineComputed(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a manifest that a serving engine sends after the chunks of the cache that it computed."""

    layout: Layout
    tensors: list[TensorDigests]


class TranscodedCache(PipeMessage, frozen=True, kw_only=True):
    """The effect of a lossy codec; nothing for a lossless one."""

    divergence: Divergence | None = None
    probe: Probe | None = None
    tensors: list[TensorDigests] | None = None


class TranscodeJob(Job[TranscodedCache], frozen=True, kw_only=True, tag="recode"):
    """Code an artifact's chunks in another codec, and send them as events, not encrypted."""

    envelope: bytes
    key: bytes | None = None
    """What decrypts the artifact, if it is sealed; the same in other jobs."""
    codec: str
    chunks: str
    predictor: str | None = None


class ComparedCaches(PipeMessage, frozen=True, kw_only=True):
    """The distance of two caches of the same tokens, by what is answered from them."""

    divergence: Divergence
    probe: Probe


class CompareJob(Job[ComparedCaches], frozen=True, kw_only=True, tag="compare"):
    """Compare a cache that an engine computed from `ids` with one computed here; its `manifest` is not signed yet."""

    manifest: bytes
    key: bytes | None = None
    chunks: str
    ids: list[int]


class TrainedPredictor(PipeMessage, frozen=True, kw_only=True):
    """A predictor, which came as an event, was trained on so many tokens."""

    tokens: int


class TrainJob(Job[TrainedPredictor], frozen=True, kw_only=True, tag="train"):
    """Train a predictor on the texts below a directory, and send it as an event."""

    corpus: str
    tokens: int
    block_tokens: int


class UnitCosts(PipeMessage, frozen=True, kw_only=True):
    """The costs of each unit of an artifact, for a cache that is filled while it arrives (see `worker.hybrid`)."""

    compute: list[int]
    """Microseconds of computing each unit."""
    wire: list[int]
    """Bytes of each unit that are still to arrive."""
    load: list[int]
    """Microseconds of loading each unit."""
    last: int = 0
    """Microseconds of loading after the last unit has arrived."""
    rate: int = 0
    """Bytes a second that are expected."""
    computes: bool = False
    """Units may be computed."""
    eager: bool = True
    """Compute whatever is faster computed, also where bytes cost nothing."""
    lowest: int = 0
    """The first unit that is fetched at all."""


class FirstLayerCheck(PipeMessage, frozen=True, kw_only=True):
    """The outcome of comparing the first layer of a cache with the text's tokens (V3)."""

    verdict: str
    why: str


class ComputedAnswer(PipeMessage, frozen=True, kw_only=True):
    """An answer, and what it took; times in microseconds from the job's begin."""

    text: str
    token_ids: list[int]
    logits_digest: str
    tokens: int
    """Tokens of the document."""
    computed: int
    """Tokens of it that were computed here."""
    claim: str
    """The exactness claim that holds for the cache."""
    load_us: int
    prefill_us: int
    ready_us: int
    first_us: int
    total_us: int
    samples: Samples
    first_layer: FirstLayerCheck | None = None


class AnswerJob(Job[ComputedAnswer], frozen=True, kw_only=True, tag="answer"):
    """Continue greedily with a question, from an artifact's cache or after prefilling a text.

    With both, the artifact covers the first `tokens` tokens and the rest of the text is prefilled on the canonical
    schedule, which gives the same bits as prefilling all of it.
    """

    question: str
    continuation: str | None = None
    """The text that follows the document, where it is not a user turn with the question."""
    steps: int
    """The most tokens of the answer."""
    block_tokens: int
    ignore_eos: bool = False
    text: str | None = None
    envelope: bytes | None = None
    key: bytes | None = None
    chunks: str | None = None
    tokens: int | None = None
    """None: the artifact is the whole document."""
    work: UnitCosts | None = None
    """None: the artifact is in the store."""
    check: bool = False
    """Compare the first layer of what is loaded with the text's tokens."""


class CheckResult(PipeMessage, frozen=True, kw_only=True):
    """The outcome of one level of verification, as `trust.levels.LevelResult`."""

    level: int
    verdict: Verdict
    us: int
    why: str
    proven: bool
    figures: CheckFigures

    @classmethod
    def of(cls, result: LevelResult) -> CheckResult:
        """Write a check as the pipe carries it."""
        return cls(
            level=int(result.level),
            verdict=result.verdict,
            us=int(result.seconds * MICRO),
            why=result.why,
            proven=result.proven,
            figures=result.figures,
        )

    @property
    def result(self) -> LevelResult:
        """The check that was written."""
        return LevelResult(Level(self.level), self.verdict, self.us / MICRO, self.why, self.figures, self.proven)


class CheckedArtifact(PipeMessage, frozen=True, kw_only=True):
    """The outcomes of levels of verification."""

    steps: list[CheckResult]
    fingerprint: bytes
    """Of the artifact's cache, if V6 was among the levels; else empty."""
    computed: bytes
    """The fingerprint of what V7 computed, or empty."""
    numerics: Numerics
    """Of this machine."""


class VerifyJob(Job[CheckedArtifact], frozen=True, kw_only=True, tag="verify"):
    """Run the levels of verification that need the model."""

    envelope: bytes
    key: bytes | None = None
    chunks: str
    levels: list[int]
    samples: int
    seed: bytes
    text: str | None = None
    noise: NoiseRecord | None = None
    """The honest noise, if it was measured."""


class MeasuredNoise(PipeMessage, frozen=True, kw_only=True):
    """The honest noise of a model on this machine."""

    noise: NoiseRecord


class NoiseJob(Job[MeasuredNoise], frozen=True, kw_only=True, tag="noise"):
    """Measure how far apart right caches of the model are on this machine."""


AnyJob = (
    OpenJob
    | TokenizeJob
    | RenderJob
    | CalibrateJob
    | PublishJob
    | TranscodeJob
    | CompareJob
    | TrainJob
    | AnswerJob
    | VerifyJob
    | NoiseJob
)
JOBS: tuple[type[Job[Any]], ...] = get_args(AnyJob)


class JobEnd(PipeMessage, frozen=True, kw_only=True, omit_defaults=True):
    """The end of a job: its result, or the error that it ended with."""

    result: dict[str, Any] | None = None
    """The fields of the job's result (`result_of`)."""
    error: dict[str, Any] | None = None
    """The error, as `KvswapError.to_dict` writes it."""
    trace: str | None = None
    """The traceback of an error that was not ours, for the node's log alone."""


def tag_of(job: type[Job[Any]] | Job[Any]) -> str:
    """Return the name of a job in the pipe."""
    return str(job.__struct_config__.tag)


_BY_TAG = {tag_of(job): job for job in JOBS}


def result_of(job: Job[R], value: Any) -> R:
    """Read the result of a job from plain values.  Raises `WorkerFailed` for what is none."""
    (base,) = type(job).__orig_bases__  # type: ignore[attr-defined]
    (kind,) = get_args(base)
    result: R = wire.convert(value, kind, WorkerFailed)
    return result


def end_of(message: dict[str, Any]) -> JobEnd:
    """Read the end of a job from plain values.  Raises `WorkerFailed` for what is none."""
    end = wire.convert(message, JobEnd, WorkerFailed)
    if (end.result is None) == (end.error is None):
        raise WorkerFailed("the end of a job is a result or an error")
    return end


def job_of(message: dict[str, Any]) -> Job[Any]:
    """Read a job from plain values.  Raises `UsageError` for one that is not known, `WorkerFailed` for its fields."""
    name = message.get("job")
    kind = _BY_TAG.get(str(name))
    if kind is None:
        raise UsageError(f"unknown job {str(name)[:40]!r}")
    return wire.convert(message, kind, WorkerFailed)
