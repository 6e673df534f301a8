"""What tests share: synthetic artifacts through the real writer, tiny random models, daemons as processes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints
from unittest import mock

import msgspec
import numpy as np

from kvswap import Client
from kvswap.artifact import chain, dsse, layout
from kvswap.artifact.blocks import Blocks
from kvswap.artifact.checkpoints import usual_checkpoints
from kvswap.artifact.consistency import parse_manifest
from kvswap.artifact.manifest import (
    ChunkRef,
    DocumentRef,
    FileRef,
    Life,
    Manifest,
    ModelIdentity,
    Numerics,
    Probe,
    TokenSequence,
    layout_of,
    version_of,
)
from kvswap.artifact.sealing import FINGERPRINT, KIND, PREDICTOR, ChunkPosition, chunk_position
from kvswap.artifact.specs import ITEM_BYTES, LayerGroup, LayerSpec, Layout, TensorDigests
from kvswap.codec import Predictor, base, predictive
from kvswap.codec.predictive.predictor import Stack, Tensor
from kvswap.codec.predictive.rans import FrequencyTables
from kvswap.core import wire
from kvswap.core.errors import KvswapError, NotFound
from kvswap.core.ids import Cid
from kvswap.trust import Group, Key, Statement, read_statement
from kvswap.trust.groups import Sealing
from tests import warm

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "examples" / "documents" / "python-special-methods.txt"
FULL = LayerSpec.key_value("full", 2, 8, 8)
SLIDING = LayerSpec.key_value("sliding", 2, 8, 4, 6)


def key(number: int = 1) -> Key:
    """A deterministic key."""
    return Key.from_seed(hashlib.sha256(b"test key %d" % number).digest())


def identity(label: str = "tiny") -> ModelIdentity:
    parts = [hashlib.sha256(f"{label} {name}".encode()).digest() for name in ("weights", "config", "tokenizer")]
    return ModelIdentity(label, parts[0], parts[1], parts[2], [], 1000)


@dataclass
class Ingested:
    """An artifact made for a test: its statement, chunks by CID, and the tensors it holds."""

    statement: Statement
    chunks: dict[Cid, bytes]
    layers: list[tuple[np.ndarray, np.ndarray]]

    @property
    def manifest(self) -> Manifest:
        return self.statement.manifest

    @property
    def id(self) -> str:
        return str(self.statement.artifact)


class HeldChunk:
    """A chunk in memory, where a server expects an open file."""

    def __init__(self, data: bytes) -> None:
        self._data, self.length = data, len(data)

    def read_into(self, into: memoryview, at: int) -> int:
        piece = self._data[at : at + len(into)]
        into[: len(piece)] = piece
        return len(piece)


def plain_predictor(specs: Sequence[LayerSpec]) -> Predictor:
    """By hand, so that its bytes are the same everywhere: expects values around 0, as wide as 1, of full layers."""
    stacks: dict[LayerSpec, list[int]] = {}
    for index, spec in enumerate(specs):
        if spec.kind == "full":
            stacks.setdefault(spec, []).append(index)

    def tensor(channels: int, given: int, token: int) -> Tensor:
        ones = np.ones(channels, np.int32)
        weights = np.zeros((given, channels), np.int8)
        return Tensor(
            8,
            0 * ones,
            6502 * ones,
            weights,
            ones,
            np.zeros(channels, np.int16),
            4096 * ones,
            np.zeros(token, np.int16),
        )

    made = []
    for spec, layers in stacks.items():
        k, v = spec.heads * spec.k_dim, spec.heads * spec.v_dim
        before = [min(place, 2) * (k + v) for place in range(len(layers))]
        made.append(
            Stack(
                tuple(layers),
                2,
                np.empty((0, 24, 2), np.int32),
                tuple(tensor(k, n, 5 if n else 1) for n in before),
                tuple(tensor(v, n + k, 7 if n else 3) for n in before),
                np.empty((0, k + v), np.int16),
                (0, 0),
            )
        )
    near = [1 + 32 * max(0, 11 - abs(symbol - 64)) for symbol in range(127)]
    return Predictor(tuple(made), FrequencyTables(np.array([[*near, 4096 - sum(near)]] * 96, np.uint16)))


def make_artifact(
    signer: Key | None = None,
    *,
    tokens: int = 21,
    block_tokens: int = 8,
    specs: tuple[LayerSpec, ...] = (FULL, FULL, SLIDING),
    dtype: str = "bfloat16",
    codec: str = "planes",
    text: bytes = b"a document for tests",
    seed: int = 0,
    coded_by: Predictor | None = None,
    groups: Sequence[LayerGroup] | None = None,
    now: int | None = None,
    lifetime: int = 86_400,
    model: ModelIdentity | None = None,
    checkpoints: Sequence[int] = (),
    **changes: Any,
) -> Ingested:
    """Random tensors through the real chunk writer, a manifest around them, signed.  `changes` replace fields.

    States are the same at each of the `checkpoints`, but that its number is added to their first word.
    """
    import torch

    from kvswap.artifact.tensors import DTYPES, Layers, LayerTensors, by_layer, context_of, digest_layer, encode_chunk

    signer = signer or key()
    now = int(time.time()) if now is None else now
    model = model or identity()
    rng = np.random.default_rng(seed)

    # Exponents near 1.0, so that coding helps as it does on real caches.
    def values(shape: tuple[int, ...], dtype: str) -> np.ndarray:
        plain = rng.normal(size=shape).astype(np.float32).view(np.uint32)
        if dtype == "float32":
            return plain
        if dtype == "q8_0":
            return (plain >> 16).astype(np.uint8)
        if dtype == "float16":
            return plain.view(np.float32).astype(np.float16).view(np.uint16)
        return (plain >> 16).astype(np.uint16)

    predictor = plain_predictor(specs) if codec == "predictive" and coded_by is None else coded_by
    layers = [tuple(values(t.part_shape(tokens), t.dtype or dtype) for t in s.tensors) for s in specs]
    groups = layout.plan_groups(specs, dtype, block_tokens) if groups is None else list(groups)
    shape = layout_of(dtype, '{"rope_theta":10000.0}', list(specs), groups, checkpoints)
    refs: list[ChunkRef] = []
    chunks: dict[Cid, bytes] = {}
    blocks = Blocks(tokens, block_tokens, checkpoints)

    def part(index: int, place: int, start: int, stop: int) -> np.ndarray:
        spec, tensor = specs[index], layers[index][place]
        if spec.tensors[place].rows is None:
            first, last = layout.stored_span(spec, start, stop)
            return np.ascontiguousarray(tensor[:, first:last])
        state = tensor.copy()
        state.flat[0] = stop
        return state

    for block, (start, stop) in enumerate(blocks):
        earlier: Layers = {}
        for run, group in enumerate(shape.groups):
            if not layout.raw_length(shape, run, start, stop) and shape.is_state(run):
                continue
            begin, _ = layout.stored_span(specs[group.layers[0]], start, stop)
            parts = [part(index, place, start, stop) for index, place in shape.members[run]]
            with mock.patch.object(base, "_PLANES_MAY_BE_BETTER", 9.0):  # nothing here can be predicted
                context = context_of(predictor, shape, run, begin, earlier)
                chunk = encode_chunk(parts, shape.group_dtype(run), codec, block, run, context)
            earlier |= by_layer(shape, run, parts)
            refs.append(chunk.ref)
            chunks[chunk.ref.id] = chunk.wire
    digests: list[TensorDigests] = []
    for index, spec in enumerate(specs):
        first, stop = layout.held_span(spec, tokens)
        held = []
        for place, told in enumerate(spec.tensors):
            last = part(index, place, 0, tokens)
            of = layers[index][place][:, first:stop] if told.rows is None else last
            size = ITEM_BYTES[told.dtype or dtype]
            integers = torch.from_numpy(np.ascontiguousarray(of).view(f"i{size}"))
            held.append(integers.view(DTYPES[told.dtype or dtype]))
        digests.append(digest_layer(LayerTensors(spec, tuple(held), first, stop - first)))
    ids = [int(i) for i in rng.integers(0, 1000, tokens)]
    fields: dict[str, Any] = {
        "version": version_of(shape),
        "model": model,
        "document": DocumentRef(sha256=hashlib.sha256(text).digest(), length=len(text), media_type="text/plain"),
        "prefix": TokenSequence(
            tokens=tokens,
            token_digest=chain.token_digest(ids),
            block_tokens=block_tokens,
            chain=chain.chain_digests(model.digest, ids, block_tokens, checkpoints),
            start=0,
            special_tokens=True,
        ),
        "layout": shape,
        "numerics": Numerics("blocks", "sdpa", dtype, "2.0", "5.0", "cpu", "AVX2", 2, "bitwise"),
        "tensors": digests,
        "chunks": refs,
        "probe": Probe(question=[1, 2], tokens=[3, 4], logits=b"\1" * 32),
        "life": Life(issued=now, expires=now + lifetime, sequence=now),
        "publisher": str(signer.peer_id),
    }
    if predictor is not None:
        data = predictive.dump(predictor)
        chunks[Cid.of(data)] = data
        fields["predictor"] = FileRef(cid=bytes(Cid.of(data)), length=len(data))
    fields.update(changes)
    manifest = Manifest(**fields)
    if not manifest.lossless:  # what is signed is what comes back
        from kvswap.artifact.assembly import load

        fields["tensors"] = [digest_layer(held) for held in load(manifest, chunks.__getitem__)]
        manifest = Manifest(**fields)
    envelope = dsse.seal(manifest.encode(), str(signer.peer_id), signer.sign)
    return Ingested(read_statement(envelope), chunks, layers)


def manifest_of(fields: dict[str, Any]) -> Manifest:
    """A manifest of the plain values that jobs of the model process return, checked as every reader checks it."""
    types = get_type_hints(Manifest)
    values = {name: wire.convert(value, types[name]) for name, value in fields.items()}
    return parse_manifest(Manifest(version=version_of(values["layout"]), **values).encode())


def group(name: str = "team", number: int = 1) -> Group:
    """A group with a deterministic key."""
    return Group(name, hashlib.sha256(b"test group %d" % number).digest())


def seal_for(
    made: Ingested, readers: Group, signer: Key | None = None, salt: bytes | None = None, **changes: Any
) -> Ingested:
    """The same artifact for a group; `changes` replace fields of its manifest, also so that it is wrong."""
    signer = signer or key()
    sealing = Sealing.new(readers) if salt is None else Sealing(readers, salt, readers.seal(salt))
    chunks: dict[Cid, bytes] = {}

    def close(place: ChunkPosition, file: Any) -> Any:
        data = sealing.seal.close(place, made.chunks[file.id])
        chunks[Cid.of(data)] = data
        return msgspec.structs.replace(file, cid=bytes(Cid.of(data)), length=len(data))

    old = made.manifest
    fields: dict[str, Any] = {"chunks": [close(chunk_position(ref), ref) for ref in old.chunks]}
    if old.predictor is not None:
        fields["predictor"] = close(PREDICTOR, old.predictor)
    if old.fingerprint is not None:
        fields["fingerprint"] = close(FINGERPRINT, old.fingerprint)
    manifest = msgspec.structs.replace(old, **(fields | changes))
    envelope = dsse.seal(sealing.payload(manifest), str(signer.peer_id), signer.sign, KIND)
    statement = Statement(Cid.of(sealing.payload(manifest)), manifest, envelope, sealing.seal, readers)
    return Ingested(statement, chunks, made.layers)


def captured(loaded: Any, cache: Any, ids: list[int], block_tokens: int, checkpoints: Sequence[int] = ()) -> Any:
    """Prefill `cache` with `ids` as a publisher does; yields (block, group, parts, layout)."""
    from kvswap.artifact.tensors import as_part
    from kvswap.model.cache import capture_block, layer_specs
    from kvswap.model.prefill import canonical_prefill

    shape: Layout | None = None
    for block in canonical_prefill(loaded, cache, ids, block_tokens, cuts=checkpoints):
        if shape is None:
            specs = layer_specs(cache)
            groups = layout.plan_groups(specs, loaded.dtype, block_tokens)
            points = usual_checkpoints(specs, loaded.dtype, Blocks(len(ids), block_tokens), checkpoints)
            shape = layout_of(loaded.dtype, loaded.rope(), specs, groups, points)
        for number in range(len(shape.groups)):
            if not layout.raw_length(shape, number, block.start, block.stop):
                continue
            tensors = capture_block(cache, shape, number, block.start, block.stop)
            yield block.index, number, [as_part(t) for t in tensors], shape


def stock(home: Path, *made: Ingested, only: Any = None) -> None:
    """Put artifacts into the store of a node that is not running; `only`: these chunks of them."""

    from kvswap.exchange.node.listing import list_artifact
    from kvswap.store import Store

    store = Store.open(home / "store")
    try:
        for artifact in made:
            for cid, data in artifact.chunks.items():
                if only is None or cid in only:
                    store.put_chunk(data, cid)
            list_artifact(store, artifact.statement)
    finally:
        store.close()


def publish_ids(
    loaded: Any, ids: list[int], block_tokens: int, codec: str = "planes", checkpoints: Sequence[int] = ()
) -> Ingested:
    """An artifact of these ids by a real model, signed by the test key."""
    from kvswap.artifact.tensors import digest_layer, encode_chunk
    from kvswap.model.cache import held_tensors, new_cache

    cache = new_cache(loaded.model.config, len(ids))
    refs, chunks = [], {}
    for block, run_number, parts, shape in captured(loaded, cache, ids, block_tokens, checkpoints):
        chunk = encode_chunk(parts, shape.group_dtype(run_number), codec, block, run_number)
        refs.append(chunk.ref)
        chunks[chunk.ref.id] = chunk.wire
    made = make_artifact(
        tokens=len(ids),
        block_tokens=block_tokens,
        version=version_of(shape),
        layout=shape,
        prefix=chain.token_sequence_of(identity().digest, ids, block_tokens, cuts=checkpoints),
        chunks=refs,
        tensors=[digest_layer(held) for held in held_tensors(cache, shape.layers, len(ids))],
    )
    return Ingested(made.statement, chunks, [])


class NoModel:
    """A node without a model: it can publish nothing, but find, judge, fetch and serve everything."""

    async def choose(self, name: str | None = None) -> Any:
        raise NotFound("no model on this node")

    async def run(self, *_: Any, **__: Any) -> Any:
        raise NotFound("no model on this node")

    async def warm(self, choice: Any) -> None:
        raise NotFound("no model on this node")


# -- tiny models -------------------------------------------------------------------------------------


def tiny_model(directory: Path, kind: str, seed: int = 0, head_dim: int = 16) -> Path:
    """A randomly initialised model of a real architecture with a real tokenizer, as a directory."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        AutoModelForCausalLM,
        Gemma3TextConfig,
        LlamaConfig,
        PreTrainedTokenizerFast,
        Qwen3Config,
    )

    common = {
        "vocab_size": 400,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": head_dim,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    config = {
        "llama": lambda: LlamaConfig(num_hidden_layers=3, **common),
        "qwen3": lambda: Qwen3Config(num_hidden_layers=3, **common),
        # a window smaller and one larger than the blocks that the tests use
        "gemma3": lambda: Gemma3TextConfig(num_hidden_layers=6, sliding_window=24, query_pre_attn_scalar=16, **common),
        "gemma3-wide": lambda: Gemma3TextConfig(
            num_hidden_layers=6, sliding_window=80, query_pre_attn_scalar=16, **common
        ),
    }[kind]()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():  # larger weights, so that logits are not all alike
            parameter.mul_(2.0 if parameter.dim() > 1 else 1.0)
    model.save_pretrained(directory)
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([DOCUMENT.read_text()], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(directory)
    return directory


# -- daemons as processes ----------------------------------------------------------------------------


@dataclass
class Daemon:
    """One `kvswap daemon` process with a home of its own."""

    home: Path
    flags: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    program: tuple[str, ...] = ("kvswap",)  # or a test's own, that misbehaves
    wrapper: tuple[str, ...] = ()  # a command that runs it, such as unshare
    cold: bool = False  # started by a command, with all its imports, and not as `tests.warm` does
    process: subprocess.Popen[str] | warm.Process | None = None
    ready: dict[str, Any] = field(default_factory=dict)

    def start(self) -> Daemon:
        environment = {**os.environ, **self.env}
        arguments = ["daemon", "--json", "--home", str(self.home), "--no-mdns", *self.flags]
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "stderr.log").open("a") as log:
            if self.cold or self.wrapper or not warm.able(environment):
                command = [*self.wrapper, sys.executable, "-m", *self.program, *arguments]
                self.process = subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, cwd=ROOT
                )
            else:
                self.process = warm.start(self.program, arguments, environment, ROOT, log.fileno())
        assert self.process.stdout is not None
        line = self.process.stdout.readline()  # printed once everything listens
        if not line:
            raise AssertionError(f"the daemon did not start: {(self.home / 'stderr.log').read_text()}")
        self.ready = json.loads(line)
        return self

    @property
    def client(self) -> Client:
        return Client(self.home)

    @property
    def address(self) -> str:
        return str(self.ready["addresses"][0])

    @property
    def publisher(self) -> str:
        return str(self.ready["publisher"])

    def stop(self, how: int = signal.SIGTERM) -> int:
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(how)
        code = self.process.wait(600)
        if self.process.stdout:
            self.process.stdout.close()
        return code


def kvswap(
    home: Path, *arguments: str, env: dict[str, str] | None = None, timeout: float = 600, typed: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would, in a process of its own."""
    environment = {**os.environ, **(env or {})}
    if warm.able(environment):
        return warm.run(["--home", str(home), *arguments], environment, timeout, typed)
    return subprocess.run(
        [sys.executable, "-m", "kvswap", "--home", str(home), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        input=typed,
        env=environment,
    )


class Running:
    """A command line under way, in a process of its own."""

    def __init__(self, home: Path, *arguments: str) -> None:
        self._out, self._err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115 - closed when read
        line, streams = ["--home", str(home), *arguments], (self._out.fileno(), self._err.fileno())
        self.process: subprocess.Popen[bytes] | warm.Process
        if warm.able(os.environ):
            self.process = warm.begin(line, os.environ, streams)
        else:
            command = [sys.executable, "-m", "kvswap", *line]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=streams[0], stderr=streams[1])

    @property
    def returncode(self) -> int | None:
        return self.process.returncode

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """Wait for its end; what it wrote to both streams.  Raises `subprocess.TimeoutExpired`."""
        self.process.wait(timeout)
        texts = []
        for stream in (self._out, self._err):
            stream.seek(0)
            texts.append(stream.read().decode())
            stream.close()
        return texts[0], texts[1]


def last_json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return json.loads(done.stdout.strip().splitlines()[-1])


def until(condition: Any, seconds: float = 600.0, what: str = "condition") -> Any:
    """Poll until the condition gives something true.  The time is a bound, not a wait."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            value = condition()
        except KvswapError:
            value = None
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come true within {seconds} s")


def run(coroutine: Any, seconds: float = 900.0) -> Any:
    """Run a coroutine to its end.  The time ends what hangs, and no slow machine comes near it."""
    return asyncio.run(asyncio.wait_for(coroutine, seconds))
