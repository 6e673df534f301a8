"""The codec `predictive`: exact for every bit pattern, the same bits from every backend, and no harm from hostile bytes."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvswap.codec.parts import widened
from kvswap.codec.predictive import BACKENDS, Context, Predictor, decode, dump, encode, fast, load, plain, rope, train
from kvswap.codec.predictive.buckets import CONTEXTS, FORMATS
from kvswap.codec.predictive.rans import FrequencyTables
from kvswap.core.errors import Incompatible, IntegrityError, UsageError
from kvswap.core.limits import LIMITS

LAYERS, HEADS, DIM = 4, 2, 8
WORD = {"bfloat16": np.uint16, "float16": np.uint16, "float32": np.uint32}
EVERY = list(BACKENDS.values())


def as_words(values: Any, dtype: str) -> Any:
    if dtype == "float16":
        return values.astype(np.float16).view(np.uint16)
    bits = values.astype(np.float32).view(np.uint32)
    return (bits >> 16).astype(np.uint16) if dtype == "bfloat16" else bits


def document(seed: int, tokens: int, dtype: str = "bfloat16", start: int = 0, noise: float = 0.1) -> list[Any]:
    """K and V of each layer: later ones are mixtures of earlier ones and noise; K is turned."""
    mixing = np.random.default_rng(0)
    rng = np.random.default_rng(seed)
    turns = rope.powers(1.0 / 100.0 ** (np.arange(DIM // 2) / (DIM // 2)))
    cos, sin = rope.tables(turns, np.arange(start, start + tokens, dtype=np.int64))
    state = rng.normal(size=(tokens, HEADS * DIM))
    parts = []
    for _ in range(LAYERS):
        for kind in range(2):
            state = np.tanh(state @ mixing.normal(size=(HEADS * DIM, HEADS * DIM)) * 0.3) + noise * rng.normal(
                size=state.shape
            )
            out = np.rint(state * 2**16).astype(np.int64).reshape(tokens, HEADS, DIM)
            out = out if kind else rope.rotate(out, cos, sin, back=False)
            parts.append(np.ascontiguousarray(as_words(out / 2**16, dtype).transpose(1, 0, 2)))
    return parts


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    turns = rope.powers(1.0 / 100.0 ** (np.arange(DIM // 2) / (DIM // 2)))
    trainer = train.Trainer(range(LAYERS), turns, 2, "bfloat16")
    for seed in range(8):
        trainer.add(document(seed, 300))
    stack, counts = trainer.finish("predictive")
    return train.predictor([stack], [counts])


TOKENS = 40  # that the first layer of `status_queries` tells apart


def status_queries(seed: int, tokens: int, start: int = 0, only: int = TOKENS) -> list[Any]:
    """As `document`, with a first layer that says nothing but the token."""
    table = np.random.default_rng(1).normal(size=(TOKENS, 2, HEADS * DIM))
    ids = np.random.default_rng(seed).integers(0, only, tokens)
    return _first_layer(table[ids], start) + document(seed, tokens, start=start)[2:]


def _first_layer(rows: Any, start: int = 0) -> list[Any]:
    turns = rope.powers(1.0 / 100.0 ** (np.arange(DIM // 2) / (DIM // 2)))
    cos, sin = rope.tables(turns, np.arange(start, start + len(rows), dtype=np.int64))
    out = []
    for kind in range(2):
        whole = np.rint(rows[:, kind] * 2**16).astype(np.int64).reshape(len(rows), HEADS, DIM)
        whole = whole if kind else rope.rotate(whole, cos, sin, back=False)
        out.append(np.ascontiguousarray(as_words(whole / 2**16, "bfloat16").transpose(1, 0, 2)))
    return out


@pytest.fixture(scope="module")
def token_table() -> Predictor:
    """Knows the first 30 of the 40 tokens."""
    turns = rope.powers(1.0 / 100.0 ** (np.arange(DIM // 2) / (DIM // 2)))
    table = np.random.default_rng(1).normal(size=(TOKENS, 2, HEADS * DIM))
    k, v = _first_layer(table[:30])
    trainer = train.Trainer(range(LAYERS), turns, 2, "bfloat16", [(k, v)])
    for seed in range(8):
        trainer.add(status_queries(seed, 300))
    stack, counts = trainer.finish("predictive")
    return load(dump(train.predictor([stack], [counts])))


def context(predictor: Predictor, start: int = 0, place: int = 0, before: Any = ()) -> Context:
    return Context(predictor, predictor.stacks[0], place, list(before), start)


def round_trip(where: Context, parts: list[Any], dtype: str) -> bytes:
    """Through every pair of backends; they must agree to the bit."""
    wires = [encode(where, parts, dtype, engine) for engine in EVERY]
    assert len(set(wires)) == 1
    for engine in EVERY:
        out = [np.zeros_like(p) for p in parts]
        decode(where, wires[0], out, dtype, engine)
        for a, b in zip(out, parts, strict=True):
            assert a.tobytes() == b.tobytes()
    return wires[0]


def test_what_it_was_trained_for_gets_smaller(predictor: Predictor) -> None:
    parts = document(100, 256)
    wire = round_trip(context(predictor), parts, "bfloat16")
    assert len(wire) - 600 < 0.62 * sum(p.nbytes for p in parts)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("tokens", [1, 2, 63, 129])
def test_every_dtype_and_length(predictor: Predictor, dtype: str, tokens: int) -> None:
    round_trip(context(predictor, 12_345), document(7, tokens, dtype, 12_345), dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_all_bit_patterns(predictor: Predictor, dtype: str) -> None:
    """Zeros of both signs, denormals, infinities, every NaN."""
    every = np.arange(1 << 16, dtype=np.uint16)
    random.Random(1).shuffle(every)
    tokens = (1 << 16) // (2 * LAYERS * HEADS * DIM)
    parts = [p.copy() for p in every.reshape(2 * LAYERS, HEADS, tokens, DIM)]
    wire = round_trip(context(predictor), parts, dtype)
    assert len(wire) < 1.8 * every.nbytes  # so the registry stores it otherwise


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(sorted(FORMATS)),
    tokens=st.integers(1, 9),
    start=st.integers(0, 100_000),
    seed=st.integers(0, 1 << 30),
    kind=st.sampled_from(["bits", "huge", "tiny", "constant", "sink", "usual"]),
)
def test_adversarial_tensors(predictor: Predictor, dtype: str, tokens: int, start: int, seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    parts = document(seed, tokens, dtype, start)
    if kind == "bits":
        parts = [rng.integers(0, 1 << (8 * p.itemsize), p.shape, dtype=p.dtype) for p in parts]
    elif kind in ("huge", "tiny"):
        by = 1e4 if kind == "huge" else 1e-6
        parts = [as_words(rng.normal(size=p.shape) * by, dtype) for p in parts]
    elif kind == "constant":
        parts = [np.full_like(p, 0x3F80) for p in parts]
    elif kind == "sink":  # a token, and a channel, far from everything
        for p in parts:
            p[:, 0] = as_words(np.full(p[:, 0].shape, 300.0), dtype)
            p[..., 3] = as_words(np.full(p[..., 3].shape, -40.0), dtype)
    round_trip(context(predictor, start), parts, dtype)


def test_tokens_known_by_heart(token_table: Predictor) -> None:
    """The first layer costs nearly nothing where its tokens are known, and is right where they are not."""
    first = [
        round_trip(context(token_table, 70), status_queries(50, 256, 70, only)[:2], "bfloat16") for only in (30, TOKENS)
    ]
    raw = 2 * 256 * HEADS * DIM * 2
    assert len(first[0]) - 1100 < 0.4 * raw  # 1,100: header, entries and the coder's states
    assert len(first[0]) + 0.1 * raw < len(first[1])
    round_trip(context(token_table, 70), status_queries(51, 256, 70), "bfloat16")
    round_trip(context(token_table, 0, 2, status_queries(52, 64)[:4]), status_queries(52, 64)[4:], "bfloat16")
    round_trip(context(token_table, 0, 1, status_queries(52, 64)[:2]), status_queries(52, 64)[2:], "bfloat16")
    round_trip(context(token_table), document(53, 64), "bfloat16")


def test_entries_that_the_memory_does_not_have_are_refused(token_table: Predictor, predictor: Predictor) -> None:
    parts = status_queries(3, 16)
    wire = bytearray(encode(context(token_table), parts, "bfloat16"))
    out = [np.zeros_like(p) for p in parts]
    wire[plain.HEADER.size : plain.HEADER.size + 2] = (31).to_bytes(2, "little")
    with pytest.raises(IntegrityError, match="entry"):
        decode(context(token_table), bytes(wire), out, "bfloat16")
    with pytest.raises(IntegrityError, match="which of its tokens"):
        decode(context(predictor), bytes(wire), out, "bfloat16")


@pytest.mark.parametrize("narrow", ["bfloat16", "float16"])
def test_wide_words_with_narrow_values_cost_nothing_more(predictor: Predictor, narrow: str) -> None:
    parts = document(12, 128, narrow)
    wide = [widened(p, narrow) for p in parts]
    wire = round_trip(context(predictor), wide, "float32")
    assert wire == round_trip(context(predictor), parts, narrow)
    later = round_trip(context(predictor, 0, 2, wide[:4]), wide[4:], "float32")
    assert later == round_trip(context(predictor, 0, 2, parts[:4]), parts[4:], narrow)
    wide[5][0, 0, 0] ^= 1  # a single other bit, and nothing is narrow any more
    assert len(round_trip(context(predictor), wide, "float32")) > 1.4 * len(wire)
    with pytest.raises(IntegrityError):
        out = [np.zeros_like(p) for p in parts[4:]]
        decode(context(predictor, 0, 2, parts[:4]), later, out, "float16" if narrow == "bfloat16" else "bfloat16")


def test_a_narrow_chunk_is_not_coded_against_wide_values(predictor: Predictor) -> None:
    parts = document(12, 32, "float32")
    parts[4:] = [widened((p >> 16).astype(np.uint16), "bfloat16") for p in parts[4:]]
    wire = bytearray(round_trip(context(predictor, 0, 2, parts[:4]), parts[4:], "float32"))
    wire[1] = 0
    with pytest.raises(IntegrityError):
        decode(context(predictor, 0, 2, parts[:4]), bytes(wire), [np.zeros_like(p) for p in parts[4:]], "float32")


def test_a_chunk_of_later_layers_is_coded_against_those_before_it(predictor: Predictor) -> None:
    parts = document(9, 256)
    alone = round_trip(context(predictor, 0, 2), parts[4:], "bfloat16")
    known = round_trip(context(predictor, 0, 2, parts[:4]), parts[4:], "bfloat16")
    assert len(known) < 0.95 * len(alone)
    with pytest.raises(IntegrityError):  # decoded against something else, it is noticed or, elsewhere, not right
        out = [np.zeros_like(p) for p in parts[4:]]
        decode(context(predictor, 0, 2), known, out, "bfloat16")
        assert all((a == b).all() for a, b in zip(out, parts[4:], strict=True))


def test_decoding_into_views_of_a_larger_cache(predictor: Predictor) -> None:
    parts = document(3, 100)
    wire = encode(context(predictor), parts, "bfloat16")
    headroom = [np.zeros((HEADS, 150, DIM), np.uint16) for _ in parts]
    decode(context(predictor), wire, [r[:, 20:120] for r in headroom], "bfloat16")
    assert all((r[:, 20:120] == p).all() and not r[:, :20].any() for r, p in zip(headroom, parts, strict=True))


def test_threads_change_nothing(predictor: Predictor) -> None:
    documents = [document(s, 128, start=128 * s) for s in range(6)]
    alone = [encode(context(predictor, 128 * s), d, "bfloat16") for s, d in enumerate(documents)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda s: encode(context(predictor, 128 * s), documents[s], "bfloat16"), range(6)))
    assert alone == together


@pytest.mark.skipif(not fast.AVAILABLE, reason="the C module was not built")
@pytest.mark.parametrize("by", [0, 2, 4])
def test_every_kernel_sums_alike(predictor: Predictor, by: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if by > fast._BY:
        pytest.skip("this processor does not have it")
    monkeypatch.setattr(fast, "_BY", by)
    rng = np.random.default_rng(5)
    for tensor in (predictor.stacks[0].k[3], predictor.stacks[0].v[3]):
        tensor.prepared.clear()
        size, channels = tensor.weights.shape
        for extreme in (False, True):
            given = rng.integers(-127, 128, (67, size)).astype(np.int8)
            given = np.where(given < 0, -127, 127).astype(np.int8) if extreme else given
            lossless = given.astype(np.int64) @ tensor.weights.astype(np.int64)
            assert (fast.sums(tensor, [given])[:, :channels] == lossless).all()
            assert (plain.sums(tensor, [given]) == lossless).all()
        tensor.prepared.clear()


@pytest.mark.skipif(not fast.AVAILABLE, reason="the C module was not built")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_one_at_a_time_decodes_as_sixteen_do(predictor: Predictor, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With values of every kind in every place of a group."""
    parts = document(21, 200, dtype)
    rng = np.random.default_rng(3)
    for part in parts:
        part[rng.random(part.shape) < 0.05] = 0
        part[rng.random(part.shape) < 0.05] = 0x7FFF
        part[rng.random(part.shape) < 0.1] >>= 3
    wire = encode(context(predictor), parts, dtype)
    for sixteens in (True, False):
        monkeypatch.setattr(fast, "_SIXTEENS", sixteens)
        out = [np.zeros_like(p) for p in parts]
        decode(context(predictor), wire, out, dtype)
        assert all((a == b).all() for a, b in zip(out, parts, strict=True))


@pytest.mark.skipif(not fast.AVAILABLE, reason="the C module was not built")
def test_the_c_module_trusts_no_length(predictor: Predictor) -> None:
    tensor = predictor.stacks[0].k[0]
    mu = np.zeros((4, HEADS * DIM), np.int32)
    nothing = np.empty((4, 0), np.int32)
    with pytest.raises(ValueError):
        fast._fast.expected(mu, np.empty(0, np.int32), tensor.scale, tensor.mean[:3], nothing, nothing, 4, 16, 2, 0, 16)
    with pytest.raises(ValueError):
        fast._fast.sums(mu, mu, mu, mu, 1 << 40, 4, 64, 4)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_stream_is_an_error_or_other_bits_and_never_more(predictor: Predictor, data: st.DataObject) -> None:
    """Cut, changed, extended; both backends judge alike."""
    parts = document(1, 24)
    wire = bytearray(encode(context(predictor), parts, "bfloat16"))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(wire) - 1))
        wire[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(-20, 20))
    hostile = bytes(wire[:cut]) if cut < 0 else bytes(wire) + bytes(cut)
    outcomes = []
    for engine in EVERY:
        out = [np.zeros_like(p) for p in parts]
        try:
            decode(context(predictor), hostile, out, "bfloat16", engine)
            outcomes.append(b"".join(p.tobytes() for p in out))
        except IntegrityError:
            outcomes.append(b"")
    assert len(set(outcomes)) == 1


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=3000))
def test_noise_is_no_stream(predictor_bytes: bytes) -> None:
    flat = load(_flat_predictor())
    parts = [np.zeros((1, 3, 4), np.uint16), np.zeros((1, 3, 4), np.uint16)]
    for engine in EVERY:
        with pytest.raises(IntegrityError):
            decode(Context(flat, flat.stacks[0], 0, [], 0), predictor_bytes, parts, "bfloat16", engine)


def _flat_predictor() -> bytes:
    trainer = train.Trainer([0], np.empty((0, rope.BITS, 2), np.int32), 1, "bfloat16")
    rng = np.random.default_rng(0)
    trainer.add([as_words(rng.normal(size=(1, 50, 4)), "bfloat16") for _ in range(2)])
    stack, _ = trainer.finish("predictive")
    return dump(Predictor((stack,), FrequencyTables.flat(CONTEXTS)))


def test_a_predictor_survives_being_written(predictor: Predictor) -> None:
    data = dump(predictor)
    again = load(data)
    assert dump(again) == data
    parts = document(11, 64)
    assert encode(context(again), parts, "bfloat16") == encode(context(predictor), parts, "bfloat16")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_predictor_is_refused_or_harmless(predictor: Predictor, data: st.DataObject) -> None:
    """Whatever is accepted encodes and decodes to the same bits, at worst into more bytes."""
    raw = bytearray(dump(predictor))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        changed = load(bytes(raw))
    except IntegrityError:
        return
    try:
        round_trip(context(changed), document(1, 5), "bfloat16")
    except Incompatible:
        return


@pytest.mark.parametrize(
    "what", ["before", "weights", "bomb", "memory", "missing", "unit", "version", "layers", "token", "tables"]
)
def test_a_predictor_out_of_bounds_is_refused(predictor: Predictor, what: str) -> None:
    from kvswap.core import wire

    value = wire.parse(dump(predictor))
    stack = value["stacks"][0]
    if what == "before":
        stack["before"] = 9
    elif what == "weights":
        raw = zstandard.decompress(stack["k"][1]["weights"])
        stack["k"][1]["weights"] = zstandard.compress(b"\x80" + raw[1:])
    elif what == "bomb":
        stack["k"][1]["weights"] = zstandard.compress(bytes(LIMITS.predictor_raw_bytes + 1))
    elif what == "memory":
        stack["memory"] = zstandard.compress(bytes(6))
    elif what == "missing":
        stack["missing"] = [0, 1 << 40]
    elif what == "unit":
        stack["v"][0]["unit"] = 25
    elif what == "version":
        value["version"] = 2
    elif what == "layers":
        stack["layers"] = [0, 0, 1, 2]
    elif what == "token":
        stack["k"][0]["token"] = b"\0" * 8
    else:
        value["tables"] = bytes(len(value["tables"]))
    with pytest.raises(IntegrityError):
        load(wire.pack(value))


def test_another_model_is_named_as_such(predictor: Predictor) -> None:
    with pytest.raises(Incompatible):
        encode(context(predictor), [np.zeros((3, 5, 8), np.uint16)] * 2, "bfloat16")
    with pytest.raises(Incompatible):
        encode(context(predictor, 0, 3), document(0, 5), "bfloat16")
    with pytest.raises(UsageError):
        train.Trainer([0], np.empty((0, rope.BITS, 2), np.int32), 1, "bfloat16").finish()


def test_turning_there_and_back(predictor: Predictor) -> None:
    """The integer turn is the rotary embedding to seven digits, and its own inverse up to rounding."""
    frequency = 1.0 / 10_000.0 ** (np.arange(4) / 4)
    positions = np.array([0, 1, 7, 4_095, 131_071, (1 << 23) - 1], np.int64)
    cos, sin = rope.tables(rope.powers(frequency), positions)
    angle = positions[:, None] * frequency
    assert np.abs(cos / 2**14 - np.cos(angle)).max() < 1e-4
    assert np.abs(sin / 2**14 - np.sin(angle)).max() < 1e-4
    values = np.random.default_rng(0).integers(-(1 << 24), 1 << 24, (6, 2, 8))
    there = rope.rotate(values, cos, sin, back=False)
    assert np.abs(rope.rotate(there, cos, sin, back=True) - values).max() < 1 << 12
