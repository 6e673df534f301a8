"""Make the golden files: states and slot files of two llama.cpp releases, of tiny models with random weights.

    python tests/integrations/llamacpp/make_golden.py b11549          with xllamacpp 2026.10.11549 installed
    python tests/integrations/llamacpp/make_golden.py v0.4.0 LIBRARIES

LIBRARIES is the folder `bins/linux-x64` of the npm package @node-llama-cpp/linux-x64 3.21.1.  Both need numpy and gguf.
A file that was released is never changed: what a newer llama.cpp writes goes under another name.  Names say what was
set: model, format of the cache, and what differs from the defaults.
"""

from __future__ import annotations

import ctypes
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "golden"
sys.path.insert(0, str(HERE.parents[3]))

from tests.llama import tiny  # noqa: E402

DENSE, SLIDING = 48, 80  # tokens
WAYS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "dense-f16": ("llama", 0, {}),
    "dense-bf16": ("llama", 0, {"cache_type_k": "bf16", "cache_type_v": "bf16"}),
    "dense-q8_0": ("llama", 0, {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}),
    "dense-f16-noflash": ("llama", 0, {"flash_attn_type": 0}),
    "dense-f16-slot2of3": ("llama", 2, {"n_parallel": 3}),
    "dense-f16-slot1of3-unified": ("llama", 1, {"n_parallel": 3, "kv_unified": True}),
    "sliding-f16": ("gemma3", 0, {}),
    "sliding-q8_0": ("gemma3", 0, {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}),
    "sliding-f16-noflash": ("gemma3", 0, {"flash_attn_type": 0}),
    "sliding-f16-full": ("gemma3", 0, {"swa_full": True}),
    "sliding-f16-slot1of2": ("gemma3", 1, {"n_parallel": 2}),
}


def ids(count: int) -> list[int]:
    """Return the token ids that every golden file is of."""
    return [256] + [(37 * i + 11) % 256 for i in range(count - 1)]


def by_server(release: str, folder: Path) -> None:
    """Save slots of the server that xllamacpp has."""
    from tests.llama.running import Server

    for name, (architecture, slot, settings) in WAYS.items():
        count = SLIDING if architecture == "gemma3" else DENSE
        with Server(folder / architecture, folder, **settings) as server:
            server.complete(ids(count), slot=slot)
            (HERE / f"{release}-{name}.bin").write_bytes(server.save("saved", slot))


class _Parameters(ctypes.Structure):
    """Parameters of a model or a context: passed by value, longer than any release's."""

    _fields_ = [("words", ctypes.c_int32 * 128)]


# Places in llama_context_params of v0.4.0, in words of four bytes, and the defaults by which it is known.
_PLACES = {"n_ctx": 0, "n_seq_max": 3, "flash_attn_type": 13, "cache_type_k": 26, "cache_type_v": 27}
_DEFAULTS = {0: 512, 1: 2048, 2: 512, 3: 1, 13: -1, 26: 1, 27: 1, 32: 0x01010100, 33: 1}
_TYPES = {"f16": 1, "q8_0": 8, "bf16": 30}


def by_library(release: str, folder: Path, libraries: Path) -> None:
    """Save sequences of a library by its C interface."""
    for name in ("libggml-base.so", f"libggml.{release}.so"):
        ggml = ctypes.CDLL(str(libraries / name), mode=ctypes.RTLD_GLOBAL)
    ggml.ggml_backend_load.restype = ctypes.c_void_p
    assert ggml.ggml_backend_load(str(libraries / "libggml-cpu-haswell.so").encode())
    llama = ctypes.CDLL(str(libraries / f"libllama.{release}.so"))
    for function in ("llama_model_default_params", "llama_context_default_params"):
        getattr(llama, function).restype = _Parameters
    for function in ("llama_model_load_from_file", "llama_init_from_model"):
        getattr(llama, function).restype = ctypes.c_void_p
    llama.llama_state_seq_get_size.restype = llama.llama_state_seq_get_data.restype = ctypes.c_size_t
    llama.llama_state_seq_save_file.restype = ctypes.c_size_t
    for name, (architecture, slot, settings) in WAYS.items():
        model = llama.llama_model_load_from_file(
            str(folder / architecture).encode(), llama.llama_model_default_params()
        )
        parameters = llama.llama_context_default_params()
        assert all(parameters.words[place] == value for place, value in _DEFAULTS.items())
        words = {"n_ctx": 1024, "n_seq_max": settings.get("n_parallel", 1)} | {
            key: _TYPES.get(value, value) for key, value in settings.items() if key in _PLACES
        }
        for key, value in words.items():
            parameters.words[_PLACES[key]] = value
        parameters.words[33] = int(settings.get("swa_full", False)) | int(settings.get("kv_unified", False)) << 8
        context = ctypes.c_void_p(llama.llama_init_from_model(ctypes.c_void_p(model), parameters))
        count = SLIDING if architecture == "gemma3" else DENSE
        tokens = (ctypes.c_int32 * count)(*ids(count))
        _decode(llama, context, tokens, slot)
        target = HERE / f"{release}-{name}.bin"
        assert llama.llama_state_seq_save_file(context, str(target).encode(), slot, tokens, ctypes.c_size_t(count))
        if name in ("dense-f16", "sliding-f16"):
            data = ctypes.create_string_buffer(llama.llama_state_seq_get_size(context, slot))
            size = llama.llama_state_seq_get_data(context, data, ctypes.c_size_t(len(data)), slot)
            (HERE / f"{release}-{name}.state").write_bytes(data.raw[:size])


class _Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.c_void_p),
    ]


def _decode(llama: ctypes.CDLL, context: ctypes.c_void_p, tokens: Any, slot: int) -> None:
    count = len(tokens)
    one = (ctypes.c_int32 * 1)(slot)
    sequences = (ctypes.POINTER(ctypes.c_int32) * count)(*[ctypes.cast(one, ctypes.POINTER(ctypes.c_int32))] * count)
    positions = (ctypes.c_int32 * count)(*range(count))
    batch = _Batch(count, tokens, None, positions, (ctypes.c_int32 * count)(*[1] * count), sequences, None)
    assert llama.llama_decode(context, batch) == 0


def main() -> None:
    release = sys.argv[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for architecture in ("llama", "gemma3"):
            tiny.write(folder / architecture, architecture)
        if len(sys.argv) > 2:
            by_library(release, folder, Path(sys.argv[2]))
        else:
            by_server(release, folder)
    for file in sorted(HERE.glob(f"{release}-*")):
        magic, version = struct.unpack("<II", file.read_bytes()[:8])
        print(f"{file.name}: {file.stat().st_size} bytes, {magic:#x}, {version}")


if __name__ == "__main__":
    main()
