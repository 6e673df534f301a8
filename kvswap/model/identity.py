"""Model identity: digests over weights, configuration and tokenizer.  A name is only a label.

* weights: BLAKE3 over the sorted list of (name, dtype, shape, BLAKE3 of the data) of every tensor in
  the directory's safetensors files - so sharding and file names do not matter, and one changed
  weight changes everything.
* config: BLAKE3 of config.json as canonical JSON, without the keys that only label or tell how to load.
* tokenizer: the same over the tokenizer's files, chat template included.

Neither torch nor transformers is imported: the headers are parsed here, under a size cap.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from blake3 import blake3

from kvswap.artifact.manifest import ModelIdentity
from kvswap.core.errors import Incompatible, NotFound
from kvswap.core.ids import blake3_digest
from kvswap.core.limits import LIMITS

_LABELS = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures"}
_TOKENIZER_LABELS = {
    "name_or_path",
    "tokenizer_class",
    "transformers_version",
    "is_local",
    "local_files_only",
    "backend",
}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_TOKENIZER_RAW = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja")

_READ = 4 << 20

TensorEntry = tuple[str, str, list[int], bytes]


def weights_digest(entries: Iterable[TensorEntry]) -> bytes:
    """Digest of (name, safetensors dtype, shape, digest of the little-endian data) in name order."""
    lines = [
        json.dumps([name, dtype, shape, digest.hex()], separators=(",", ":")) for name, dtype, shape, digest in entries
    ]
    return blake3_digest("\n".join(sorted(lines)).encode())


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """The header of a safetensors file: name -> dtype, shape, data_offsets.  Checked and capped."""
    with path.open("rb") as file:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(LIMITS.safetensors_header_bytes, size - 8):
            raise Incompatible(f"{path} is not a safetensors file", field="weights")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise Incompatible(f"{path} has no readable header", field="weights") from error
    header.pop("__metadata__", None)
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        if not 0 <= first <= last <= size - 8 - length:
            raise Incompatible(f"{path}: tensor {name!r} lies outside the file", field="weights")
        entry["at"] = 8 + length + first
        entry["bytes"] = last - first
    return header  # type: ignore[no-any-return]


def tensor_entries(directory: Path) -> Iterator[TensorEntry]:
    """Every tensor of the directory with its digest; a few MiB of memory, whatever the model's size."""
    buffer = memoryview(bytearray(_READ))
    for path in sorted(directory.glob("*.safetensors")):
        header = read_header(path)
        with path.open("rb", buffering=0) as file:
            for name, entry in header.items():
                file.seek(entry["at"])
                hasher = blake3(max_threads=blake3.AUTO)
                left = entry["bytes"]
                while left:
                    got = file.readinto(buffer[: min(left, _READ)])
                    if not got:
                        raise Incompatible(f"{path} is truncated", field="weights")
                    hasher.update(buffer[:got])
                    left -= got
                yield name, entry["dtype"], entry["shape"], hasher.digest()


def _json(path: Path) -> Any:
    if path.stat().st_size > LIMITS.json_bytes:
        raise Incompatible(f"{path} is over {LIMITS.json_bytes} bytes", field="config")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise Incompatible(f"{path} is not JSON", field="config") from error


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def config_digest(config: dict[str, Any]) -> bytes:
    """Digest of a configuration without its labels."""
    return blake3_digest(_canonical({k: v for k, v in config.items() if k not in _LABELS}))


def tokenizer_digest(directory: Path) -> bytes:
    """Digest over the tokenizer's files.  Raises `NotFound` when there is none."""
    parts: list[bytes] = []
    for name in _TOKENIZER_FILES:
        path = directory / name
        if path.is_file():
            value = _json(path)
            if isinstance(value, dict):
                value = {k: v for k, v in value.items() if k not in _TOKENIZER_LABELS}
            parts.append(name.encode() + b"\0" + blake3_digest(_canonical(value)))
    for name in _TOKENIZER_RAW:
        path = directory / name
        if path.is_file():
            parts.append(name.encode() + b"\0" + blake3_digest(path.read_bytes()))
    if not parts:
        raise NotFound(f"{directory} has no tokenizer", cause="kvswap needs one to know a prefix by its ids")
    return blake3_digest(b"".join(parts))


def _parameters(directory: Path) -> int:
    total = 0
    for path in directory.glob("*.safetensors"):
        for entry in read_header(path).values():
            count = 1
            for size in entry["shape"]:
                count *= size
            total += count
    return total


def directory_identity(directory: Path, label: str) -> ModelIdentity:
    """Identity of the model in this directory.  Reads every weight once (about 4 GB/s a core)."""
    if not (directory / "config.json").is_file():
        raise NotFound(f"{directory} has no config.json", hint="kvswap model ls")
    return ModelIdentity(
        label=label,
        weights=weights_digest(tensor_entries(directory)),
        config=config_digest(_json(directory / "config.json")),
        tokenizer=tokenizer_digest(directory),
        adapters=[],
        parameters=_parameters(directory),
    )
