"""The jobs of the model process as the pipe carries them: each is read into what was sent, or refused by name."""

from __future__ import annotations

import io
from typing import Any, get_args

import pytest

from kvswap.artifact.manifest import ModelIdentity, Numerics
from kvswap.core import wire
from kvswap.core.errors import KvswapError, UsageError, WorkerFailed
from kvswap.trust.figures import CheckFigures, micro
from kvswap.trust.levels import Level, LevelResult
from kvswap.trust.noise import NoiseRecord, SpreadRecord
from kvswap.worker import jobs, protocol
from kvswap.worker.messages import (
    JOBS,
    AnswerJob,
    AnyJob,
    CalibrateJob,
    CheckedArtifact,
    CheckResult,
    CompareJob,
    Job,
    JobEnd,
    NoiseJob,
    OpenedModel,
    OpenJob,
    PublishJob,
    RenderJob,
    TokenizedText,
    TokenizeJob,
    TrainJob,
    TranscodeJob,
    UnitCosts,
    VerifyJob,
    end_of,
    job_of,
    result_of,
    tag_of,
)

WORK = UnitCosts(compute=[3, 4], wire=[5, 0], load=[1, 1], last=2, rate=9, computes=True, eager=False, lowest=1)
_SPREAD = SpreadRecord([[3, 4]], 5, 6)
NOISE = NoiseRecord(samples=None, recompute=_SPREAD, fingerprints=_SPREAD, intervals=_SPREAD)
SENT: list[Job[Any]] = [
    OpenJob(directory="/m", label="m", dtype="bfloat16", device="cpu", threads=0),
    TokenizeJob(text="a text", block_tokens=4),
    CalibrateJob(block_tokens=4, predictor="p", blocks=2),
    PublishJob(text="a text", block_tokens=4, codec="planes", checkpoints=[4], truncate=True),
    TranscodeJob(envelope=b"\xff\0", key=b"k", codec="raw", chunks="/c"),
    CompareJob(manifest=b"\xff\0", chunks="/c", ids=[1, 2]),
    TrainJob(corpus="/t", tokens=9, block_tokens=4),
    AnswerJob(question="What?", steps=3, block_tokens=4, envelope=b"\xff\0", chunks="/c", tokens=4, work=WORK),
    VerifyJob(envelope=b"\xff\0", chunks="/c", levels=[2, 7], samples=8, seed=bytes(32), noise=NOISE),
    NoiseJob(),
    RenderJob(chat=b'{"messages": [], "tools": [{"minimum": 0.5}]}', question="What?"),
]


def carried(value: Any) -> Any:
    return protocol.read(io.BytesIO(protocol.frame(wire.plain(value))))


@pytest.mark.parametrize("job", SENT, ids=tag_of)
def test_a_job_is_read_as_it_was_sent(job: Job[Any]) -> None:
    message = carried(job)
    assert message["job"] == tag_of(job)
    assert job_of(message) == job


def test_each_job_has_its_tag_its_function_and_is_sent_here() -> None:
    assert set(JOBS) == set(get_args(AnyJob)) == {type(job) for job in SENT} == set(Job.__subclasses__()) & set(JOBS)
    assert len({tag_of(job) for job in JOBS}) == len(JOBS)
    assert set(jobs._JOBS) == set(JOBS) - {OpenJob}


@pytest.mark.parametrize("message", [{}, {"job": 5}, {"job": ["open"]}, {"job": "do_open"}, {"job": "open" * 100}])
def test_an_unknown_job_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="unknown job") as caught:
        job_of(message)
    assert len(caught.value.message) < 80


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"job": "tokenize", "text": "a"}, "block_tokens"),
        ({"job": "tokenize", "text": "a", "block_tokens": "4"}, "block_tokens"),
        ({"job": "tokenize", "text": "a", "block_tokens": 4, "blocks": 1}, "blocks"),
        ({"job": "compare", "manifest": "text", "chunks": "/c", "ids": []}, "manifest"),
    ],
)
def test_a_field_that_does_not_fit_is_named(message: dict[str, Any], field: str) -> None:
    with pytest.raises(WorkerFailed, match=field):
        job_of(message)


def test_a_result_is_read_as_the_jobs_own() -> None:
    identity = ModelIdentity(
        label="m", weights=bytes(32), config=bytes(32), tokenizer=bytes(32), adapters=[], parameters=1
    )
    opened = OpenedModel(identity=identity, numerics=numerics(), context=9, dtype="float32")
    assert result_of(SENT[0], carried(opened)) == opened
    text = TokenizedText(tokens=1, ids=b"\xff", token_digest=b"d", chain=[b"c"])
    assert result_of(SENT[1], carried(text)) == text


@pytest.mark.parametrize(
    "value", [{}, {"tokens": 1.5}, None, {"tokens": 1, "ids": "x", "token_digest": b"", "chain": []}]
)
def test_a_result_that_is_none_is_the_model_processs_fault(value: Any) -> None:
    with pytest.raises(KvswapError) as caught:
        result_of(SENT[1], value)
    assert type(caught.value) is WorkerFailed and caught.value.hint


def test_the_outcome_of_a_level_loses_nothing_but_parts_of_a_microsecond() -> None:
    result = LevelResult(
        Level.SAMPLES, "failed", 0.25, "why", CheckFigures(worst=micro(1.5), wrong=2, bitwise=False), True
    )
    checked = CheckedArtifact(steps=[CheckResult.of(result)], fingerprint=b"", computed=b"f", numerics=numerics())
    read = result_of(SENT[8], carried(checked))
    assert read == checked and [step.result for step in read.steps] == [result]


def test_the_end_of_a_job_is_a_result_or_an_error() -> None:
    for end in (JobEnd(result={"tokens": 1}), JobEnd(error={"code": "x"}), JobEnd(error={"code": "x"}, trace="t")):
        assert end_of(carried(end)) == end
    for message in ({}, {"result": 5}, {"error": "x"}, {"result": {}, "error": {}}, {"result": {}, "more": 1}):
        with pytest.raises(WorkerFailed):
            end_of(message)


def numerics() -> Numerics:
    words = dict.fromkeys(
        ("schedule", "attention", "compute_dtype", "torch", "transformers", "device", "isa", "claim"), ""
    )
    return Numerics(**words, threads=1)
