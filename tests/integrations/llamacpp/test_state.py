"""States and slot files of two llama.cpp releases: parsed, written back byte for byte, cut, refitted and built."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvswap.core.errors import Incompatible, KvswapError, MalformedState, UsageError
from kvswap.integrations import llamacpp
from kvswap.integrations.llamacpp import LayerRows, SlotFile, parse_slot_file, parse_state
from kvswap.integrations.llamacpp.building import Bytes
from kvswap.integrations.llamacpp.ggml import BF16, F16, Q8_0
from tests.integrations.llamacpp.goldens import FILES, RELEASES, STATES, slot_file

WINDOW = 32


def file_of(name: str, release: str = "b11549") -> SlotFile:
    return parse_slot_file(slot_file(name, release))


def rows(file: SlotFile, cache: int, start: int, stop: int) -> list[bytes]:
    """Keys and values of some positions, as bytes to compare."""
    layers = llamacpp.layer_rows(file.state.caches[cache], start, stop)
    return [part.tobytes() for layer in layers for part in (layer.keys, layer.values)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_slot_file_is_read_as_its_name_says_and_written_back_byte_for_byte(path: Path) -> None:
    data = path.read_bytes()
    file = parse_slot_file(data)
    assert llamacpp.write_slot_file(file) == data
    release, _, way = path.stem.partition("-")
    shape = llamacpp.shape_of(file)
    assert shape.version == RELEASES[release]
    assert shape.slides is way.startswith("sliding") and file.packed is (release == "b11549")
    assert shape.transposed is ("noflash" in way)
    kind = {"bf16": BF16, "q8_0": Q8_0}.get(way.split("-")[1], F16)
    assert {cache.key_type for cache in shape.caches} == {cache.value_type for cache in shape.caches} == {kind}
    assert file.ids[0] == 256 and len(file.ids) == file.state.tokens == (80 if shape.slides else 48)
    slot = int(way.partition("slot")[2][:1] or 0)
    separate = "slot" in way and "unified" not in way
    assert (shape.sequence, shape.stream) == (slot, slot if separate else 0)
    assert (shape.streams > 1) is separate
    assert (file.checkpoints is not None) is (shape.slides and release == "b11549" and "full" not in way)


@pytest.mark.parametrize("path", STATES, ids=lambda path: path.stem)
def test_a_state_says_its_version_by_what_fits(path: Path) -> None:
    data = path.read_bytes()
    state = parse_state(data)
    assert state.version == 3 and llamacpp.write_state(state) == data
    newer = replace(state, version=4)
    assert parse_state(llamacpp.write_state(newer)).version == 4
    with pytest.raises(Incompatible):
        parse_state(data, version=4)
    with pytest.raises(MalformedState, match="left over"):  # and not what the other version would see there
        parse_state(data + b"1")
    with pytest.raises(MalformedState, match="begin as a state"):
        parse_state(b"no" * 30)


def test_two_releases_computed_the_same_keys_and_values() -> None:
    old, new = file_of("dense-f16", "v0.4.0"), file_of("dense-f16")
    assert old.ids == new.ids and rows(old, 0, 0, 48) == rows(new, 0, 0, 48)


@pytest.mark.parametrize("name", ["dense-f16", "dense-q8_0", "dense-f16-noflash", "dense-f16-slot2of3"])
@pytest.mark.parametrize("tokens", [1, 32, 47, 48])
def test_cut_keeps_the_first_tokens_and_nothing_else(name: str, tokens: int) -> None:
    whole = file_of(name)
    short = parse_slot_file(llamacpp.write_slot_file(llamacpp.cut(whole, tokens)))
    assert short.ids == whole.ids[:tokens] and short.state.tokens == tokens
    assert rows(short, 0, 0, tokens) == rows(whole, 0, 0, tokens)
    assert llamacpp.shape_of(short) == llamacpp.shape_of(whole)


def test_sliding_layers_are_cut_only_where_their_window_is_held() -> None:
    whole = file_of("sliding-f16")
    point = (whole.checkpoints or ())[-1]
    assert llamacpp.cut(whole, 80, WINDOW).state.tokens == 80
    at_point = parse_slot_file(llamacpp.write_slot_file(llamacpp.cut(whole, point.tokens, WINDOW)))
    assert at_point.state.caches[1].stop == point.tokens == at_point.state.tokens
    with pytest.raises(Incompatible, match="after 70 tokens") as refused:
        llamacpp.cut(whole, 70, WINDOW)
    assert "--swa-full" in refused.value.hint
    with pytest.raises(UsageError, match="window"):
        llamacpp.cut(whole, 70)
    full = file_of("sliding-f16-full")
    if full.state.caches[1].first == 0:
        assert llamacpp.cut(full, 70, WINDOW).state.caches[1].stop == 70


@pytest.mark.parametrize("tokens", [0, 49, -1])
def test_a_state_cannot_be_cut_to_what_it_does_not_have(tokens: int) -> None:
    with pytest.raises(UsageError, match=f"cannot keep {tokens} of 48"):
        llamacpp.cut(file_of("dense-f16"), tokens)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_state_is_built_of_keys_and_values_as_the_server_saved_it(path: Path) -> None:
    """All but the order of a ring's cells, which is free."""
    file = parse_slot_file(path.read_bytes())
    caches = [llamacpp.layer_rows(cache, cache.first, cache.stop) for cache in file.state.caches]
    built = llamacpp.build(llamacpp.shape_of(file), file.ids, caches)
    again = parse_slot_file(llamacpp.write_slot_file(replace(built, checkpoints=file.checkpoints)))
    for index, cache in enumerate(file.state.caches):
        assert rows(again, index, cache.first, cache.stop) == rows(file, index, cache.first, cache.stop)
    if not file.state.slides:
        assert llamacpp.write_slot_file(built) == path.read_bytes()


def test_building_refuses_rows_that_do_not_fit() -> None:
    file = file_of("dense-f16")
    shape, layers = llamacpp.shape_of(file), llamacpp.layer_rows(file.state.caches[0], 0, 48)
    short = [LayerRows(layer.keys[:40], layer.values) for layer in layers]
    narrow = [LayerRows(layer.keys[:, :64], layer.values) for layer in layers]
    for wrong in (short, layers[:1], narrow, [LayerRows(x.keys[:0], x.values[:0]) for x in layers]):
        with pytest.raises(Incompatible):
            llamacpp.build(shape, file.ids, [wrong])
    with pytest.raises(UsageError):
        llamacpp.build(shape, (), [layers])


@pytest.mark.parametrize("name", ["dense-f16", "dense-bf16", "dense-f16-noflash", "sliding-f16"])
def test_a_file_is_refitted_to_another_release_and_back(name: str) -> None:
    new, old = file_of(name), file_of(name, "v0.4.0")
    older = llamacpp.refit(new, llamacpp.shape_of(old))
    assert older.state.version == 3 and not older.packed and older.checkpoints is None
    back = llamacpp.refit(parse_slot_file(llamacpp.write_slot_file(older)), llamacpp.shape_of(new))
    assert back.packed and back.state.version == 4
    for index, cache in enumerate(new.state.caches):
        assert rows(back, index, cache.first, cache.stop) == rows(new, index, cache.first, cache.stop)


def test_a_file_is_refitted_to_another_slot_and_order_of_values() -> None:
    plain, other = file_of("dense-f16"), file_of("dense-f16-slot2of3")
    moved = llamacpp.refit(plain, llamacpp.shape_of(other))
    assert llamacpp.write_slot_file(moved) == slot_file("dense-f16-slot2of3")
    assert llamacpp.shape_of(other).of_slot(1).stream == llamacpp.shape_of(other).of_slot(1).sequence == 1
    turned = llamacpp.refit(plain, llamacpp.shape_of(file_of("dense-f16-noflash")))
    assert turned.state.caches[0].transposed and rows(turned, 0, 0, 48) == rows(plain, 0, 0, 48)


def test_another_format_cannot_be_refitted() -> None:
    plain = file_of("dense-f16")
    for name, release, field in (
        ("dense-q8_0", "b11549", "layout"),
        ("dense-bf16", "b11549", "layout"),
        ("sliding-f16", "b11549", "layout"),
    ):
        with pytest.raises(Incompatible) as refused:
            llamacpp.refit(plain, llamacpp.shape_of(file_of(name, release)))
        assert refused.value.details.get("field") in (field, None)
    rotated = file_of("dense-q8_0")
    assert rotated.state.caches[0].rotations == (64, 64)
    with pytest.raises(Incompatible, match="rotated"):
        llamacpp.refit(rotated, llamacpp.shape_of(file_of("dense-q8_0", "v0.4.0")))


def test_a_slot_file_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, file = tmp_path / "slot.bin", file_of("dense-f16")
    assert llamacpp.save_slot_file(target, file) == len(slot_file("dense-f16"))
    assert target.read_bytes() == slot_file("dense-f16")
    before = target.read_bytes()

    def breaks(tensor: object) -> list[bytes]:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr("kvswap.integrations.llamacpp.writing._tensor", breaks)
    with pytest.raises(OSError):
        llamacpp.save_slot_file(target, file_of("dense-bf16"))
    assert target.read_bytes() == before and list(tmp_path.iterdir()) == [target]


# -- what is hostile, or not understood ------------------------------------------------------------


def changed(data: bytes, at: int, form: str, *values: int) -> bytes:
    piece = struct.pack("<" + form, *values)
    return data[:at] + piece + data[at + len(piece) :]


PLAIN = slot_file("dense-f16", "v0.4.0")
MEMORY = 12 + 4 * 48  # of a file with 48 tokens
CELLS, HEADER = MEMORY + 8, MEMORY + 8 + 12 * 48
PACKED = slot_file("dense-f16")

HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "magic"),
    "another magic": (changed(PLAIN, 0, "I", 1), "begin as a slot file"),
    "a token count beyond the file": (changed(PLAIN, 8, "I", 1 << 20), "should take"),
    "a huge token count": (changed(PLAIN, 8, "I", 0xFFFFFFFF), "over the cap"),
    "no streams": (changed(PLAIN, MEMORY, "I", 0), "0 streams"),
    "a thousand streams": (changed(PLAIN, MEMORY, "I", 1000), "1000 streams"),
    "four billion cells": (changed(PLAIN, MEMORY + 4, "I", 4_000_000_000), "over the cap"),
    "more cells than there are bytes": (changed(PLAIN, MEMORY + 4, "I", 1 << 23), "should take"),
    "a negative position": (changed(PLAIN, CELLS, "i", -1), "one after the other"),
    "a position far away": (changed(PLAIN, CELLS + 12 * 47, "i", 2_000_000_000), "one after the other"),
    "one position twice": (changed(PLAIN, CELLS + 12, "i", 0), "one after the other"),
    "positions that begin later": (
        PLAIN[:CELLS] + b"".join(struct.pack("<iIi", i + 5, 1, 0) for i in range(48)) + PLAIN[HEADER:],
        "from 0 on",
    ),
    "a cell of two sequences": (changed(PLAIN, CELLS + 4, "I", 2), "of no sequence, or of several"),
    "two sequences": (changed(PLAIN, CELLS + 8, "i", 1), "several sequences"),
    "a negative sequence": (
        PLAIN[:CELLS] + b"".join(struct.pack("<iIi", i, 1, -1) for i in range(48)) + PLAIN[HEADER:],
        "several sequences",
    ),
    "transposed twice": (changed(PLAIN, HEADER, "I", 2), "header of the tensors"),
    "no layers": (changed(PLAIN, HEADER + 4, "I", 0), "header of the tensors"),
    "a million layers": (changed(PLAIN, HEADER + 4, "I", 1_000_000), "header of the tensors"),
    "rows of no bytes": (changed(PLAIN, HEADER + 12, "Q", 0), "rows of 0 bytes"),
    "rows of half a number": (changed(PLAIN, HEADER + 12, "Q", 127), "rows of 127 bytes"),
    "rows beyond all memory": (changed(PLAIN, HEADER + 12, "Q", (1 << 64) - 2), "should take"),
    "a type without a name": (changed(PLAIN, HEADER + 8, "i", -7), "ggml type -7"),
    "another type in the second layer": (
        changed(PLAIN, HEADER + 20 + 48 * 128, "i", 30),
        "layers of f16 and of bf16",
    ),
    "a byte less": (PLAIN[:-1], "should take"),
    "a byte more": (PLAIN + b"\0", "should take"),
    "another cache behind": (PLAIN + struct.pack("<II", 1, 0), "the sliding ones at 0"),
    "one token id less than cells": (changed(PLAIN, 8, "I", 47)[:12] + PLAIN[16:], "47 token ids"),
    "a rotation by 3": (changed(PACKED, 12 + 4 * 52 + 8 + 12 * 48 + 8, "I", 3), "matrix of 3"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_damaged_is_refused_and_says_where(name: str) -> None:
    data, message = HOSTILE[name]
    with pytest.raises(MalformedState, match=message) as refused:
        parse_slot_file(data)
    assert refused.value.exit_code == 7


def recurrent(cells: int = 1) -> bytes:
    meta = struct.pack("<I", cells) + struct.pack("<iI", 47, 0) * cells
    return meta + struct.pack("<II", 0, 2) + struct.pack("<iQ", 0, 256) + bytes(256)


EXTENDED = struct.pack("<II", 1, 48) + b"".join(struct.pack("<iIiii", i, 1, i, i, 0) for i in range(48))
NAMED: dict[str, tuple[bytes, str]] = {
    "version 2": (changed(PLAIN, 4, "I", 2), "version"),
    "version 5": (changed(PLAIN, 4, "I", 5), "version"),
    "recurrent": (PLAIN[:MEMORY] + recurrent(), "recurrent"),
    "recurrent, several cells": (PLAIN[:MEMORY] + recurrent(3), "recurrent"),
    "hybrid": (PLAIN + recurrent(), "hybrid"),
    "M-RoPE": (PLAIN[:MEMORY] + EXTENDED + PLAIN[HEADER:], "M-RoPE"),
    "keys alone": (PLAIN[: HEADER + 8 + 2 * (12 + 48 * 128)], "latent"),
    "q4_0": (changed(PLAIN, HEADER + 8, "i", 2), "dtype"),
    "f32": (changed(PLAIN, HEADER + 8, "i", 0), "dtype"),
    "media": (changed(PACKED, 12 + 4 * 51, "i", 1), "media"),
    "an id that is none": (changed(PLAIN, 16, "i", -1), "media"),
    "packed in another way": (changed(PACKED, 16, "i", 2), "packing"),
}


@pytest.mark.parametrize("name", NAMED)
def test_what_is_not_understood_is_refused_by_name(name: str) -> None:
    data, field = NAMED[name]
    with pytest.raises(Incompatible) as refused:
        parse_slot_file(data)
    assert not isinstance(refused.value, MalformedState)
    assert refused.value.details["field"] == field and refused.value.exit_code == 7


def test_checkpoints_that_are_not_understood_are_refused() -> None:
    data = slot_file("sliding-f16")
    file = parse_slot_file(data)
    start = data.index(struct.pack("<I", 0x504B4353))
    size = struct.unpack_from("<Q", data, start + 28)[0]
    for at, form, value, kind in (
        (start, "I", 7, MalformedState),  # no appendix, and no cache either
        (start + 4, "I", 2, Incompatible),  # its version
        (start + 8, "I", 1 << 20, MalformedState),  # how many
        (start + 12, "q", -1, MalformedState),  # tokens
        (start + 12, "q", 81, MalformedState),
        (start + 20, "i", -1, MalformedState),  # the first position
        (start + 24, "i", 3, MalformedState),  # the last one
        (start + 28, "Q", 1 << 60, MalformedState),  # of how many bytes
        (start + 28, "Q", size - 1, MalformedState),
        (start + 36 + size, "Q", 1 << 63, MalformedState),
    ):
        with pytest.raises(kind):
            parse_slot_file(changed(data, at, form, value))
    first = (file.checkpoints or ())[0]
    end = start + 36 + size
    draft = data[:end] + struct.pack("<Q", 3) + b"abc" + data[end + 8 :]
    with pytest.raises(Incompatible, match="draft"):
        parse_slot_file(draft)
    assert first.tokens <= 80


@pytest.mark.parametrize("name", ["dense-f16", "dense-f16-noflash", "sliding-f16"])
def test_every_beginning_of_a_file_is_refused(name: str) -> None:
    data = slot_file(name)
    places = {*range(0, 900), *range(900, len(data), 97), *range(len(data) - 40, len(data))}
    for length in sorted(places):
        with pytest.raises(KvswapError):
            parse_slot_file(data[:length])


def test_a_slot_without_tokens_is_read_and_says_nothing_of_its_shape() -> None:
    data = struct.pack("<IIIII", 0x67677371, 4, 0, 1, 0)
    file = parse_slot_file(data)
    assert file.ids == () and file.state.tokens == 0 and llamacpp.write_slot_file(file) == data
    with pytest.raises(UsageError, match="without tokens"):
        llamacpp.shape_of(file)


def test_rows_are_the_same_however_values_lie() -> None:
    made = np.random.default_rng(1).integers(0, 256, (7, 12), np.uint8)
    plain: Bytes = made
    for transposed in (False, True):
        tensor = llamacpp.CellTensor.of_rows(F16, plain, transposed)
        assert tensor.cells == 7 and tensor.row_bytes == 12
        assert (tensor.rows() == plain).all() and (tensor.rows(slice(2, 5)) == plain[2:5]).all()
        picked = tensor.select(np.array([3, 1]))
        assert (picked.rows() == plain[[3, 1]]).all() and picked.cells == 2
