"""A saved state becomes chunks of an artifact, and chunks become the state again, bit for bit, without torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest import mock

import msgspec
import numpy as np
import pytest

from kvswap.artifact import layout as layouts
from kvswap.artifact.chain import token_sequence_of
from kvswap.artifact.consistency import check
from kvswap.artifact.manifest import FileRef, Manifest, version_of
from kvswap.artifact.parts import EncodedChunk
from kvswap.codec import base, predictive
from kvswap.core.errors import Incompatible, IntegrityError, UsageError
from kvswap.core.ids import Cid
from kvswap.integrations import llamacpp
from kvswap.integrations.llamacpp import SlotFile, parse_slot_file
from kvswap.integrations.llamacpp.chunks import (
    GatheredSequence,
    artifact_layout,
    encode_sequence,
    load_rows,
    require_layout,
)
from kvswap.integrations.llamacpp.gguf import GgufFile, read_gguf
from kvswap.integrations.llamacpp.identity import gguf_identity
from kvswap.integrations.llamacpp.mapping import GgufLayout, layout_for, model_rows, parts_of, rows_of, slot_file_of
from tests.integrations.llamacpp.goldens import slot_file
from tests.llama import tiny
from tests.support import make_artifact, plain_predictor

pytest.importorskip("gguf")
BLOCK = 16


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GgufFile]:
    folder = tmp_path_factory.mktemp("gguf")
    return {
        way: read_gguf(tiny.write(folder / f"{way}.gguf", architecture))
        for way, architecture in (("dense", "llama"), ("sliding", "gemma3"))
    }


def opened(models: dict[str, GgufFile], name: str) -> tuple[GgufFile, SlotFile, GgufLayout]:
    file = parse_slot_file(slot_file(name))
    model = models[name.partition("-")[0]]
    return model, file, layout_for(model, llamacpp.shape_of(file))


def published(model: GgufFile, gathered: GatheredSequence, codec: str = "planes") -> tuple[Manifest, dict[Cid, bytes]]:
    """The manifest of what was gathered, and its chunks."""
    shape = artifact_layout(gathered.layout, BLOCK)
    *chunks, digests = encode_sequence(gathered, shape, BLOCK, codec)
    assert all(isinstance(chunk, EncodedChunk) for chunk in chunks)
    identity = gguf_identity(model.path)
    manifest = msgspec.structs.replace(
        make_artifact(now=1_700_000_000).manifest,
        version=version_of(shape),
        model=identity,
        prefix=token_sequence_of(identity.digest, gathered.ids, BLOCK),
        layout=shape,
        tensors=digests,
        chunks=[chunk.ref for chunk in chunks],
        predictor=None,
        fingerprint=None,
        divergence=None,
    )
    check(manifest)
    return manifest, {chunk.ref.id: chunk.wire for chunk in chunks}


@pytest.mark.parametrize("name", ["dense-f16", "dense-bf16", "dense-q8_0", "dense-f16-noflash"])
@pytest.mark.parametrize("tokens", [16, 32, 48])
def test_the_beginning_of_a_state_comes_back_bit_for_bit(models: dict[str, GgufFile], name: str, tokens: int) -> None:
    model, file, layout = opened(models, name)
    gathered = GatheredSequence(layout)
    gathered.add(file)
    manifest, chunks = published(model, gathered)
    rows = load_rows(manifest, layout, chunks.__getitem__, tokens)
    shape = llamacpp.shape_of(file)
    made = slot_file_of(layout, shape, file.ids[:tokens], rows)
    assert llamacpp.write_slot_file(made) == llamacpp.write_slot_file(llamacpp.cut(file, tokens))
    codecs = {chunk.codec for chunk in manifest.chunks}
    assert codecs == {"raw"} if "q8_0" in name else codecs <= {"raw", "planes"}
    assert manifest.layout.dtype == {"f16": "float16", "bf16": "bfloat16", "q8_0": "q8_0"}[name.split("-")[1]]


def test_two_documents_that_begin_alike_share_chunks(models: dict[str, GgufFile]) -> None:
    model, file, layout = opened(models, "dense-f16")
    whole, part = GatheredSequence(layout), GatheredSequence(layout)
    whole.add(file)
    part.add(llamacpp.cut(file, 40))
    (first, _), (second, _) = published(model, whole), published(model, part)
    shared = {chunk.cid for chunk in first.chunks} & {chunk.cid for chunk in second.chunks}
    assert len(shared) == 2 * len(first.layout.groups)  # two whole blocks of 16
    assert first.prefix.chain[:2] == second.prefix.chain[:2] != first.prefix.chain[1:3]


def saves(file: SlotFile, window: int, ends: list[int]) -> list[SlotFile]:
    """The slot files that were saved while a sequence grew, each with the window before its end."""
    made = np.random.default_rng(5)
    sliding = file.state.caches[1]
    tokens = len(file.ids)
    full = [
        llamacpp.LayerRows(*(made.integers(0, 256, (tokens, row), np.uint8) for row in (k.row_bytes, v.row_bytes)))
        for k, v in zip(sliding.keys, sliding.values, strict=True)
    ]
    shape = llamacpp.shape_of(file)
    out = []
    for end in ends:
        low = max(0, end - window)
        late = [llamacpp.LayerRows(rows.keys[low:end], rows.values[low:end]) for rows in full]
        out.append(llamacpp.build(shape, file.ids[:end], [llamacpp.layer_rows(file.state.caches[0], 0, end), late]))
    return out


def test_sliding_layers_are_gathered_of_several_saves(models: dict[str, GgufFile]) -> None:
    model, file, layout = opened(models, "sliding-f16")
    assert layout.window == 32 and [layer.kind for layer in layout.layers] == ["sliding"] * 5 + ["full"]
    several = saves(file, 32, [30, 32, 60, 80])
    gathered = GatheredSequence(layout)
    for one in several:
        gathered.add(one)
    manifest, chunks = published(model, gathered)
    for tokens, save in ((32, several[1]), (80, several[3])):
        rows = load_rows(manifest, layout, chunks.__getitem__, tokens)
        made = slot_file_of(layout, llamacpp.shape_of(file), file.ids[:tokens], rows)
        seen = max(0, tokens - 31)
        for one, other in zip(
            model_rows(layout, made, seen, tokens), model_rows(layout, save, seen, tokens), strict=True
        ):
            assert (one.keys == other.keys).all() and (one.values == other.values).all()
        sliding = made.state.caches[1]
        assert sliding.first == max(0, tokens - 33)  # with cells that nothing sees, which llama-server asks for
        assert not sliding.keys[0].rows(slice(0, max(0, seen - sliding.first))).any()


def test_a_gap_between_two_saves_is_refused(models: dict[str, GgufFile]) -> None:
    _, file, layout = opened(models, "sliding-f16")
    first, second = saves(file, 32, [20, 80])
    gathered = GatheredSequence(layout)
    gathered.add(first)
    with pytest.raises(Incompatible, match="from 20 to 47"):
        gathered.add(second)
    with pytest.raises(Incompatible, match="another sequence"):
        gathered.add(replace(first, ids=(9, *first.ids[1:])))


def test_keys_are_stored_by_halves_as_transformers_has_them(models: dict[str, GgufFile]) -> None:
    _, file, layout = opened(models, "dense-f16")
    rows = model_rows(layout, file, 0, 48)[0]
    keys, values = parts_of(layout, 0, rows)
    assert layout.halves and keys.shape == values.shape == (1, 48, 64)
    plain = rows.keys.view(np.uint16).reshape(48, 64)
    assert (keys[0, :, :32] == plain[:, 0::2]).all() and (keys[0, :, 32:] == plain[:, 1::2]).all()
    assert (values[0] == rows.values.view(np.uint16)).all()
    again = rows_of(layout, (keys, values))
    assert (again.keys == rows.keys).all() and (again.values == rows.values).all()
    assert not opened(models, "sliding-f16")[2].halves and not opened(models, "dense-q8_0")[2].halves


def test_what_does_not_fit_a_server_is_refused_by_name(models: dict[str, GgufFile]) -> None:
    model, file, layout = opened(models, "dense-f16")
    gathered = GatheredSequence(layout)
    gathered.add(file)
    manifest, chunks = published(model, gathered)
    for name, field in (("dense-bf16", "layout.dtype"), ("dense-q8_0", "layout.dtype")):
        with pytest.raises(Incompatible) as refused:
            require_layout(manifest, opened(models, name)[2])
        assert refused.value.details["field"] == field
    with pytest.raises(Incompatible) as refused:
        require_layout(manifest, replace(layout, halves=False, rope="{}"))
    assert refused.value.details["field"] == "layout.rope"
    with pytest.raises(UsageError, match="cannot resume after 40"):
        load_rows(manifest, layout, chunks.__getitem__, 40)
    damaged = {cid: bytes([data[0] ^ 1, *data[1:]]) for cid, data in chunks.items()}
    with pytest.raises(IntegrityError):
        load_rows(manifest, layout, damaged.__getitem__, 48)


def test_an_architecture_that_was_not_tried_is_refused(models: dict[str, GgufFile], tmp_path: Path) -> None:
    model, file, _ = opened(models, "sliding-f16")
    shape = llamacpp.shape_of(file)
    other = replace(model, metadata={**model.metadata, "general.architecture": "cohere2", "cohere2.block_count": 6})
    with pytest.raises(Incompatible, match="cohere2") as refused:
        layout_for(other, shape)
    assert refused.value.details["field"] == "architecture"
    with pytest.raises(Incompatible, match="6 layers, and the model has 2"):
        layout_for(models["dense"], shape)


def test_every_token_that_is_needed_is_in_a_chunk(models: dict[str, GgufFile]) -> None:
    model, file, layout = opened(models, "dense-f16")
    gathered = GatheredSequence(layout)
    gathered.add(file)
    manifest, _ = published(model, gathered)
    assert layouts.resumable(manifest, 47) == 32 and layouts.resumable(manifest, 48) == 48


def test_a_predictor_codes_a_cache_of_float16_and_gives_every_bit_back(models: dict[str, GgufFile]) -> None:
    model, file, layout = opened(models, "dense-f16")
    gathered = GatheredSequence(layout)
    gathered.add(file)
    predictor = plain_predictor(layout.layers)
    shape = artifact_layout(layout, BLOCK)
    with mock.patch.object(base, "_PLANES_MAY_BE_BETTER", 9.0):  # random numbers cannot be predicted
        *chunks, _ = encode_sequence(gathered, shape, BLOCK, "predictive", predictor)
    assert {chunk.ref.codec for chunk in chunks} == {"predictive"}
    packed = predictive.dump(predictor)
    manifest, _ = published(model, gathered)
    manifest = msgspec.structs.replace(
        manifest, chunks=[chunk.ref for chunk in chunks], predictor=FileRef(bytes(Cid.of(packed)), len(packed))
    )
    files = {chunk.ref.id: chunk.wire for chunk in chunks} | {Cid.of(packed): packed}
    rows = load_rows(manifest, layout, files.__getitem__, 48)
    made = slot_file_of(layout, llamacpp.shape_of(file), file.ids, rows)
    assert llamacpp.write_slot_file(made) == slot_file("dense-f16")
