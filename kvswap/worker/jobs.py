"""The jobs of the model process: load, tokenise, publish, answer, verify, calibrate, train.

A job is a method; one of more than a few lines has a module of its own beside this one.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvswap.artifact import chain, layout
from kvswap.artifact.consistency import parse_manifest
from kvswap.core import wire
from kvswap.core.errors import Interrupted, InvalidDocument, UsageError, WorkerFailed
from kvswap.core.ids import Cid
from kvswap.worker.inbox import Inbox, JobPipe
from kvswap.worker.publishing import PROBE_TEXT, Publishing, micro, send

Send = Callable[[dict[str, Any]], None]


class Jobs:
    """The jobs of one model process, which holds at most one model."""

    def __init__(self, send: Send, cancelled: threading.Event, inbox: Inbox | None = None) -> None:
        self._send = send
        self._cancelled = cancelled
        self._inbox = inbox or Inbox()
        self._loaded: Any = None
        self._predictors: Any = OrderedDict()

    def run(self, message: dict[str, Any]) -> dict[str, Any]:
        """Do one job by name; the message's other entries are its parameters.

        Raises `UsageError` for an unknown job, and the `KvswapError` of the job.
        """
        job = message.pop("job", None)
        method = getattr(self, f"do_{job}", None)
        if method is None:
            raise UsageError(f"unknown job {job!r}")
        result: dict[str, Any] = method(**message)
        return result

    def _event(self, kind: str, **values: Any) -> None:
        self._send({"event": kind, **values})

    def _send_token(self, token: int) -> None:
        self._event("token", id=token, text=self.loaded.tokenizer.decode([token]))

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise Interrupted("stopped", cause="the caller went away")

    def _pipe(self) -> JobPipe:
        return JobPipe(self._inbox, self._event, self._check_cancelled)

    @property
    def loaded(self) -> Any:
        """The loaded model; without one it raises `WorkerFailed`."""
        if self._loaded is None:
            raise WorkerFailed("no model is loaded")
        return self._loaded

    # -- jobs ------------------------------------------------------------------------------------

    def do_open(self, directory: str, label: str, dtype: str, device: str, threads: int) -> dict[str, Any]:
        """Load a model, and return its identity, numerics, context length in tokens, and dtype."""
        from kvswap.model.load import load_model
        from kvswap.model.tokenizing import template_of

        self._loaded = load_model(Path(directory), label, dtype, device, threads)
        template_of(self._loaded.tokenizer, "opened here, so that no document waits for the file")
        return {
            "identity": wire.plain(self.loaded.identity),
            "numerics": wire.plain(self.loaded.numerics()),
            "context": self.loaded.context,
            "dtype": dtype,
        }

    def do_tokenize(self, text: str, block_tokens: int) -> dict[str, Any]:
        """Return the token count, token digest and chain digests of a document."""
        ids = self.loaded.tokenize(text)
        return {
            "tokens": len(ids),
            "ids": chain.pack_ids(ids),
            "token_digest": chain.token_digest(ids),
            "chain": chain.chain_digests(self.loaded.identity.digest, ids, block_tokens),
        }

    def do_calibrate(self, block_tokens: int, predictor: str | None = None, blocks: int = 3) -> dict[str, Any]:
        """Measure prefill and codecs on this machine, after a warm-up.

        Returns for each of a few blocks [tokens before it, tokens, microseconds], and for each codec what `codec_rates`
        returns.
        """
        from kvswap.model.cache import new_cache
        from kvswap.model.prefill import canonical_prefill
        from kvswap.worker.calibrating import codec_rates

        usable = max(1, min(blocks, self.loaded.context // block_tokens))
        vocabulary = int(self.loaded.model.config.get_text_config(decoder=True).vocab_size)
        ids = [(i * 7919) % vocabulary for i in range(usable * block_tokens)]
        samples: list[list[float]] = []
        for take in (1, usable):  # the first pass warms caches and allocators
            samples = []
            cache = new_cache(self.loaded.model.config, len(ids))
            for block in canonical_prefill(self.loaded, cache, ids[: take * block_tokens], block_tokens):
                samples.append([block.start, block.stop - block.start, block.seconds])
                self._check_cancelled()
        known = Path(predictor) if predictor else None
        rates = codec_rates(self.loaded, cache, usable * block_tokens, block_tokens, known)
        return {"samples": micro(samples), "codecs": rates}

    def do_publish(
        self,
        text: str,
        block_tokens: int,
        codec: str,
        truncate: bool,
        predictor: str | None = None,
        chunks: str | None = None,
        checkpoints: list[int] | None = None,
    ) -> dict[str, Any]:
        """Prefill a document and send its encoded chunks as events; return what else the manifest needs."""
        from kvswap import codec as codecs
        from kvswap.artifact.assembly import read_predictor

        codecs.get(codec)
        known = read_predictor(Cid.parse(predictor), _files(str(chunks)), self._predictors) if predictor else None
        return Publishing(self.loaded, codec, known, self._event, self._check_cancelled).run(
            text, block_tokens, truncate, checkpoints or ()
        )

    def do_recode(
        self, envelope: bytes, codec: str, chunks: str, predictor: str | None = None, key: bytes | None = None
    ) -> dict[str, Any]:
        """Transcode an artifact's chunks to another codec, and send them as events.

        For a lossy codec it returns the effect on answers, the probe and the tensor digests.  `key` decrypts the
        artifact where it is sealed, here and in other jobs; the chunks that are sent are not encrypted.
        """
        import msgspec

        from kvswap import codec as codecs
        from kvswap.artifact.assembly import load, read_predictor
        from kvswap.artifact.tensors import digest_layer
        from kvswap.artifact.transcode import transcode
        from kvswap.model.cache import build_cache
        from kvswap.model.prefill import check_reach_of
        from kvswap.trust import one_key, read_statement
        from kvswap.worker.comparing import STEPS, compare

        loaded, source = self.loaded, _files(chunks)
        statement = read_statement(envelope, one_key(key))
        manifest = statement.manifest
        layout.check_compatible(manifest, loaded.identity.digest, loaded.dtype)
        known = read_predictor(Cid.parse(predictor), source, self._predictors) if predictor else None
        lossless = codecs.get(codec).lossless
        question = manifest.probe.question or loaded.tokenize_continuation(PROBE_TEXT)
        if not lossless:
            check_reach_of(loaded, manifest, len(question) + STEPS)
        refs: list[Any] = []
        wires: dict[Cid, bytes] = {}
        for chunk in transcode(manifest, source, codec, known, self._predictors, statement.seal):
            self._check_cancelled()
            refs.append(chunk.ref)
            if not lossless:
                wires[chunk.ref.id] = chunk.wire
            send(chunk, self._event)
        if lossless:
            return {}
        other_manifest = msgspec.structs.replace(manifest, chunks=refs, predictor=None)
        position = manifest.prefix.tokens

        def cache(of: Any, read: Any, seal: Any) -> Callable[[int], Any]:
            return lambda headroom: build_cache(
                loaded.model.config, load(of, read, headroom=headroom, seal=seal), position, loaded.device
            )

        right, other = cache(manifest, source, statement.seal), cache(other_manifest, wires.__getitem__, None)
        divergence, probe = compare(loaded, right, other, position, question)
        tensors = [digest_layer(held) for held in load(other_manifest, wires.__getitem__)]
        return {"divergence": wire.plain(divergence), "probe": wire.plain(probe), "tensors": wire.plain(tensors)}

    def do_compare(self, manifest: bytes, chunks: str, ids: list[int], key: bytes | None = None) -> dict[str, Any]:
        """Compare a cache that an engine computed from `ids` with one computed here; return its divergence and probe.

        `manifest` is not signed yet; `key` decrypts the chunks where they are sealed.
        """
        from kvswap.artifact.assembly import load
        from kvswap.artifact.sealing import TAG_BYTES, Seal
        from kvswap.model.cache import build_cache, new_cache
        from kvswap.model.prefill import canonical_prefill, check_length, check_reach_of
        from kvswap.worker.comparing import STEPS, compare

        loaded, source = self.loaded, _files(chunks)
        seal = Seal(key) if key is not None else None
        other_manifest = parse_manifest(manifest, added=TAG_BYTES if seal is not None else 0)
        layout.check_compatible(other_manifest, loaded.identity.digest, loaded.dtype)
        question, position = loaded.tokenize_continuation(PROBE_TEXT), other_manifest.prefix.tokens
        check_reach_of(loaded, other_manifest, len(question) + STEPS)
        check_length(loaded, position + len(question) + STEPS)
        computed = new_cache(loaded.model.config, position + len(question) + STEPS)
        for block in canonical_prefill(loaded, computed, ids, other_manifest.prefix.block_tokens):
            self._event("prefill", block=block.index + 1, tokens=block.stop)
            self._check_cancelled()
        divergence, probe = compare(
            loaded,
            lambda headroom: computed,
            lambda headroom: build_cache(
                loaded.model.config, load(other_manifest, source, headroom=headroom, seal=seal), position, loaded.device
            ),
            position,
            question,
        )
        return {"divergence": wire.plain(divergence), "probe": wire.plain(probe)}

    def do_train(self, corpus: str, tokens: int, block_tokens: int) -> dict[str, Any]:
        """Train a predictor on the texts below a directory, send it as an event, and return the tokens used."""
        from kvswap.worker.training import train_predictor

        data, done = train_predictor(
            self.loaded,
            Path(corpus),
            tokens,
            block_tokens,
            lambda done: self._event("train", tokens=done, of=tokens),
            self._check_cancelled,
        )
        self._event("predictor", data=data)
        return {"tokens": done}

    def do_answer(
        self,
        question: str,
        steps: int,
        block_tokens: int,
        text: str | None = None,
        envelope: bytes | None = None,
        key: bytes | None = None,
        chunks: str | None = None,
        tokens: int | None = None,
        work: dict[str, Any] | None = None,
        ignore_eos: bool = False,
        check: bool = False,
    ) -> dict[str, Any]:
        """Continue greedily with `question`, from an artifact's cache or after prefilling `text`.

        With both, the artifact covers the first `tokens` tokens and the rest of `text` is prefilled on the canonical
        schedule, which gives the same bits as prefilling all of it.  `steps` is the most tokens of the answer.  `work`
        says what of the artifact is still to arrive and what each part would cost: see `hybrid`.  With `check`, layer 0
        of what was loaded is compared with the text's tokens (V3, in `first_layer`); raises `IntegrityError` for a
        proof that it differs.
        """
        from kvswap.model.cache import new_cache
        from kvswap.model.prefill import Hooks, canonical_prefill, check_length, check_reach, greedy, stop_ids
        from kvswap.model.question import question_text
        from kvswap.trust import one_key, read_statement
        from kvswap.worker.first_layer import FirstLayer, require
        from kvswap.worker.hybrid import Filled, fill

        loaded = self.loaded
        began = time.perf_counter()
        following = loaded.tokenize_continuation(question_text(loaded.tokenizer, question))
        if not following:
            raise InvalidDocument("the question is empty")
        ids = loaded.tokenize(text) if text is not None else None
        headroom = len(following) + steps
        if ids is not None and envelope is None:
            check_reach(loaded, len(ids), headroom, block_tokens)
        loaded_first: FirstLayer | None = None
        position = 0
        filled = Filled()
        claim = "bitwise"
        if envelope is not None:
            statement = read_statement(envelope, one_key(key))
            assembled = fill(
                loaded, statement, _files(str(chunks)), tokens, headroom, ids, work, self._predictors, self._pipe()
            )
            cache, position, filled, claim = assembled
            if check and text is not None:  # before the cache is used: further tokens move sliding windows
                loaded_first = self._first_layer(statement, str(chunks), cache, text, tokens)
            if tokens is None:
                ids = None  # the artifact is the whole document, or as much as fits the model
        else:
            cache = new_cache(loaded.model.config, len(ids or []) + headroom)
        total = len(ids) if ids is not None else position
        check_length(loaded, total + headroom)
        samples, prefill_seconds = filled.samples, filled.compute_seconds
        if ids is not None and position < len(ids):
            start = time.perf_counter()
            blocks = layout.block_count(len(ids), block_tokens)
            for block in canonical_prefill(loaded, cache, ids, block_tokens, position):
                samples.append([block.start, block.stop - block.start, block.seconds])
                self._event("prefill", block=block.index + 1, blocks=blocks, tokens=block.stop)
                self._check_cancelled()
            prefill_seconds += time.perf_counter() - start
        before = time.perf_counter() - began
        answer = greedy(
            loaded,
            cache,
            total,
            following,
            steps,
            stop_ids=frozenset() if ignore_eos else stop_ids(loaded),
            hooks=Hooks(self._send_token, cancelled=self._cancelled.is_set),
        )
        look = loaded_first.check() if loaded_first is not None else None  # only now: the answer does not wait
        if look is not None:
            require(look)
        return {
            "first_layer": {"verdict": look.verdict, "why": look.why} if look is not None else None,
            "text": loaded.tokenizer.decode(answer.ids, skip_special_tokens=True),
            "token_ids": answer.ids,
            "logits_digest": answer.logits_digest,
            "tokens": total,
            "computed": filled.computed + total - position,
            "claim": claim,
            "load_us": int(filled.load_seconds * 1e6),
            "prefill_us": int(prefill_seconds * 1e6),
            "ready_us": int(before * 1e6),
            "first_us": int((before + answer.first_seconds) * 1e6),
            "total_us": int((before + answer.seconds) * 1e6),
            "samples": micro(samples),
        }

    def _first_layer(self, statement: Any, chunks: str, cache: Any, text: str, tokens: int | None) -> Any:
        """Prepare V3 for a cache just loaded, whole or its first `tokens` tokens."""
        from kvswap.artifact.assembly import load
        from kvswap.worker.document import of_prefix, of_text
        from kvswap.worker.first_layer import FirstLayer

        loaded, manifest = self.loaded, statement.manifest
        document = of_text(loaded, manifest, text) if tokens is None else of_prefix(loaded, manifest, text, tokens)

        def again() -> Any:
            source = _files(chunks)
            return load(manifest, source, tokens=tokens, predictors=self._predictors, seal=statement.seal)

        position = manifest.prefix.tokens if tokens is None else tokens
        return FirstLayer(loaded, loaded.identity.digest, manifest, cache, document, position, again)

    def do_verify(
        self,
        envelope: bytes,
        chunks: str,
        levels: list[int],
        samples: int,
        seed: bytes,
        key: bytes | None = None,
        text: str | None = None,
        noise: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Run checks of the verification levels that need the model; see `verifying`.

        Returns their outcomes, the fingerprint of the cache if V6 is among the levels, the fingerprint of what V7
        recomputed, and this machine's numerics.
        """
        from kvswap.trust import one_key, read_statement
        from kvswap.trust.levels import Level, to_pipe
        from kvswap.trust.noise import Noise
        from kvswap.worker.verifying import Checks

        checks = Checks(
            self.loaded,
            read_statement(envelope, one_key(key)),
            _files(chunks),
            self._predictors,
            text=text,
            noise=Noise.of(noise) if noise is not None else None,
            samples=samples,
            seed=seed,
            send_event=self._event,
            check=self._check_cancelled,
        )
        steps = checks.run([Level(level) for level in levels])
        fingerprint = checks.fingerprint() if Level.AGREEMENT in levels else b""
        return {
            "steps": to_pipe(steps),
            "fingerprint": fingerprint,
            "computed": checks.computed_fingerprint(),
            "numerics": wire.plain(self.loaded.numerics()),
        }

    def do_noise(self) -> dict[str, Any]:
        """Measure by how much correct caches of this model differ on this machine."""
        from kvswap.worker.noise import measure

        return measure(self.loaded, self._check_cancelled).plain()


def _files(chunks: str) -> Callable[[Cid], bytes]:
    from kvswap.store.files import chunk_reader

    return chunk_reader(Path(chunks))
