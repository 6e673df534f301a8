"""Model identity: digests over weights, configuration and tokenizer.  A name is only a label.

* weights: BLAKE3 over the sorted list of (name, dtype, shape, BLAKE3 of the data) of every tensor in
  the safetensors files that are loaded (`files.weight_files`), so that sharding and file names do not
  matter, and one changed weight changes the identity.
* config: BLAKE3 of config.json as canonical JSON, without the keys that only label or tell how to load.
* tokenizer: the same over the tokenizer's files, chat template included.

Neither torch nor transformers is imported: safetensors headers are parsed here, under a size cap.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from blake3 import blake3

from kvswap.artifact.manifest import ModelIdentity
from kvswap.core.errors import KvswapError, NotFound
from kvswap.core.ids import blake3_digest
from kvswap.core.limits import LIMITS
from kvswap.model.files import Header, check_directory, not_a_pointer, read_json, unfit, weight_files

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
    """Return the BLAKE3 digest over all (name, safetensors dtype, shape, digest of the little-endian data), sorted."""
    lines = [
        json.dumps([name, dtype, shape, digest.hex()], separators=(",", ":")) for name, dtype, shape, digest in entries
    ]
    return blake3_digest("\n".join(sorted(lines)).encode())


def read_header(path: Path) -> Header:
    """Return the header of a safetensors file: name -> dtype, shape, data_offsets, at (file offset), bytes.

    Raises `Incompatible` if the file is none, or its header is malformed.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        start = file.read(32)
        not_a_pointer(path, start)
        length = int.from_bytes(start[:8], "little")
        file.seek(8)
        if not 2 <= length <= min(LIMITS.safetensors_header_bytes, size - 8):
            raise unfit(f"{path} is not a safetensors file", "weights")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise unfit(f"{path} has no readable header", "weights") from error
    if not isinstance(header, dict):
        raise unfit(f"{path} has no readable header", "weights")
    header.pop("__metadata__", None)
    for name, entry in header.items():
        try:
            first, last = entry["data_offsets"]
            shape, dtype = entry["shape"], entry["dtype"]
            right = all(isinstance(size, int) and size >= 0 for size in [first, last, *shape])
        except (TypeError, KeyError, ValueError):
            right = False
        if not right or not isinstance(dtype, str):
            raise unfit(f"{path}: the entry of tensor {str(name)[:80]!r} is malformed", "weights")
        if not 0 <= first <= last <= size - 8 - length:
            raise unfit(f"{path}: tensor {name!r} lies outside the file", "weights")
        entry["at"] = 8 + length + first
        entry["bytes"] = last - first
    return header


def _headers(directory: Path) -> Iterator[tuple[Path, Header]]:
    """Yield each weight file with the tensors loaded from it; of a name in several files the last is loaded."""
    files = [(path, read_header(path)) for path in weight_files(directory)]
    last = {name: path for path, header in files for name in header}
    for path, header in files:
        yield path, {name: entry for name, entry in header.items() if last[name] == path}


def headers(directory: Path) -> Header:
    """Return name -> dtype, shape, data_offsets of every tensor that is loaded."""
    return {name: entry for _, header in _headers(directory) for name, entry in header.items()}


def tensor_entries(directory: Path) -> Iterator[TensorEntry]:
    """Yield name, dtype, shape and digest of every tensor that is loaded, using a few MiB of memory.

    Raises `Incompatible` if a file is truncated.
    """
    buffer = memoryview(bytearray(_READ))
    for path, header in _headers(directory):
        with path.open("rb", buffering=0) as file:
            for name, entry in header.items():
                file.seek(entry["at"])
                hasher = blake3(max_threads=blake3.AUTO)
                left = entry["bytes"]
                while left:
                    got = file.readinto(buffer[: min(left, _READ)])
                    if not got:
                        raise unfit(f"{path} is truncated", "weights")
                    hasher.update(buffer[:got])
                    left -= got
                yield name, entry["dtype"], entry["shape"], hasher.digest()


def _canonical(value: Any) -> bytes:
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise unfit("its configuration or tokenizer has half of a character", "config") from error


def config_digest(config: dict[str, Any]) -> bytes:
    """Return the digest of a configuration without the keys that are only labels."""
    return blake3_digest(_canonical({k: v for k, v in config.items() if k not in _LABELS}))


def tokenizer_digest(directory: Path) -> bytes:
    """Return the digest over the tokenizer's files.  Raises `NotFound` if there are none."""
    parts: list[bytes] = []
    for name in _TOKENIZER_FILES:
        path = directory / name
        if path.is_file():
            value = read_json(path)
            if isinstance(value, dict):
                value = {k: v for k, v in value.items() if k not in _TOKENIZER_LABELS}
            parts.append(name.encode() + b"\0" + blake3_digest(_canonical(value)))
    for name in _TOKENIZER_RAW:
        path = directory / name
        if path.is_file():
            data = path.read_bytes()
            not_a_pointer(path, data)
            parts.append(name.encode() + b"\0" + blake3_digest(data))
    if not parts:
        raise NotFound(f"{directory} has no tokenizer", cause="kvswap needs one to know a prefix by its ids")
    return blake3_digest(b"".join(parts))


def _parameters(directory: Path) -> int:
    return sum(math.prod(entry["shape"]) for entry in headers(directory).values())


def directory_identity(directory: Path, label: str) -> ModelIdentity:
    """Return the identity of the model in this directory, reading every weight once (about 4 GB/s a core).

    Raises `NotFound` if there is no model, `Incompatible` if it is not certain what would be loaded.
    """
    if not (directory / "config.json").is_file():
        raise NotFound(f"{directory} has no config.json", hint="kvswap model ls")
    check_directory(directory)
    try:
        return _identity(directory, label)
    except KvswapError as error:
        error.about(str(directory))
        raise


def _identity(directory: Path, label: str) -> ModelIdentity:
    config = read_json(directory / "config.json")
    if not isinstance(config, dict):
        raise unfit(f"{directory / 'config.json'} is not a configuration", "config")
    return ModelIdentity(
        label=label,
        weights=weights_digest(tensor_entries(directory)),
        config=config_digest(config),
        tokenizer=tokenizer_digest(directory),
        adapters=[],
        parameters=_parameters(directory),
    )
