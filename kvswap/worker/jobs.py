"""The jobs of the model process, by the type of their message; all but the shortest are modules of their own."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from kvswap.artifact import chain
from kvswap.core import wire
from kvswap.core.errors import Interrupted, WorkerFailed
from kvswap.worker import messages
from kvswap.worker.answering import answer
from kvswap.worker.calibrating import calibrate
from kvswap.worker.comparing import compare_computed
from kvswap.worker.conversation import JobEvent
from kvswap.worker.inbox import Inbox, JobContext, JobPipe
from kvswap.worker.messages import Job
from kvswap.worker.publishing import publish
from kvswap.worker.rendering import render
from kvswap.worker.training import train
from kvswap.worker.transcoding import transcode
from kvswap.worker.verifying import verify

R = TypeVar("R")
Send = Callable[[dict[str, Any]], None]


class Jobs:
    """The jobs of one model process, which holds at most one model."""

    def __init__(self, send: Send, cancelled: threading.Event, inbox: Inbox | None = None) -> None:
        """`send` sends a frame to the node; `cancelled` is set when the running job has to stop."""
        self._send = send
        self._cancelled = cancelled
        self._inbox = inbox or Inbox()
        self._loaded: Any = None
        self._predictors: Any = OrderedDict()

    @property
    def loaded(self) -> Any:
        """The loaded model; without one it raises `WorkerFailed`."""
        if self._loaded is None:
            raise WorkerFailed("no model is loaded")
        return self._loaded

    def run(self, message: dict[str, Any]) -> dict[str, Any]:
        """Do a job as it comes through the pipe, and return its result for the pipe.

        Raises `UsageError` for an unknown job, `WorkerFailed` for one that cannot be read, and the job's own error.
        """
        result: dict[str, Any] = wire.plain(self.do(messages.job_of(message)))
        return result

    def do(self, job: Job[R]) -> R:
        """Do one job, and return its result.  Raises the job's own `KvswapError`."""
        if isinstance(job, messages.OpenJob):
            return self._open(job)  # type: ignore[return-value]
        context = JobContext(self.loaded, self._predictors, self._pipe())
        result: R = _JOBS[type(job)](context, job)
        return result

    def _open(self, job: messages.OpenJob) -> messages.OpenedModel:
        """Load the model that all other jobs are of."""
        from kvswap.model.load import load_model
        from kvswap.model.tokenizing import template_of

        loaded: Any = load_model(Path(job.directory), job.label, job.dtype, job.device, job.threads)
        self._loaded = loaded
        template_of(loaded.tokenizer, "opened here, so that no document waits for the file")
        return messages.OpenedModel(
            identity=loaded.identity, numerics=loaded.numerics(), context=loaded.context, dtype=job.dtype
        )

    def _pipe(self) -> JobPipe:
        return JobPipe(self._inbox, self._event, self._check_cancelled, self._cancelled.is_set)

    def _event(self, event: JobEvent) -> None:
        self._send(wire.plain(event))

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise Interrupted("stopped", cause="the caller went away")


def tokenize(context: JobContext, job: messages.TokenizeJob) -> messages.TokenizedText:
    """Tokenise a document, and compute its digests."""
    ids = context.loaded.tokenize(job.text)
    return messages.TokenizedText(
        tokens=len(ids),
        ids=chain.pack_ids(ids),
        token_digest=chain.token_digest(ids),
        chain=chain.chain_digests(context.loaded.identity.digest, ids, job.block_tokens),
    )


def measure_noise(context: JobContext, job: messages.NoiseJob) -> messages.MeasuredNoise:
    """Measure by how much correct caches of this model differ on this machine."""
    from kvswap.worker.noise import measure

    return messages.MeasuredNoise(noise=measure(context.loaded, context.pipe.check).record)


_JOBS: dict[type[Job[Any]], Callable[[JobContext, Any], Any]] = {
    messages.TokenizeJob: tokenize,
    messages.RenderJob: render,
    messages.CalibrateJob: calibrate,
    messages.PublishJob: publish,
    messages.TranscodeJob: transcode,
    messages.CompareJob: compare_computed,
    messages.TrainJob: train,
    messages.AnswerJob: answer,
    messages.VerifyJob: verify,
    messages.NoiseJob: measure_noise,
}
