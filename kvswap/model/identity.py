"""Model identity: digests over weights, configuration and tokenizer.  A name is only a label.

* weights: BLAKE3 over the sorted list of (name, dtype, shape, BLAKE3 of the data) of every tensor in
  the safetensors files that are loaded (`files.weight_files`), so that sharding and file names do not
  matter, and one changed weight changes the identity.
* config: BLAKE3 of config.json as canonical JSON, without the keys that only label or tell how to load.
* tokenizer: the same over the tokenizer's files, chat template included.
* adapters: for each BLAKE3 over its settings and tensors (`adapters`); a model with one is another than its base.

Neither torch nor transformers is imported: safetensors headers are parsed here, under a size cap.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from blake3 import blake3

from kvswap.artifact.manifest import ModelIdentity
from kvswap.core.errors import KvswapError, NotFound
from kvswap.core.ids import blake3_digest
from kvswap.model import adapters
from kvswap.model.files import Header, not_a_pointer, read_header, read_json, unfit, weight_files

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


def directory_identity(directory: Path, label: str) -> ModelIdentity:
    """Return the identity of the model in this directory, reading every weight once (about 4 GB/s a core).

    An adapter in it counts: it is named by its digest, beside the base that it changes.  Raises `NotFound` if there is
    no model, `Incompatible` if it is not certain what would be loaded.
    """
    try:
        adapter = adapters.adapter_in(directory)
        if adapter is None:
            return _identity(directory, directory, label)
        base = _identity(adapter.base, tokenizer_home(directory, adapter.base), label)
        numbers = sum(math.prod(entry["shape"]) for entry in read_header(adapter.weights).values())
        named, parameters = [adapters.adapter_digest(adapter)], base.parameters + numbers
        return msgspec.structs.replace(base, adapters=named, parameters=parameters)
    except KvswapError as error:
        error.about(str(directory))
        raise


def base_identity(directory: Path, label: str) -> ModelIdentity:
    """Return the identity of the base model in this directory, whether an adapter lies beside it or not.

    Raises what `directory_identity` raises.
    """
    try:
        return _identity(directory, directory, label)
    except KvswapError as error:
        error.about(str(directory))
        raise


def tokenizer_home(directory: Path, base: Path) -> Path:
    """Return where the tokenizer is that an adapter's directory is used with: there, or with its base."""
    own = any((directory / name).is_file() for name in (*_TOKENIZER_FILES, *_TOKENIZER_RAW))
    return directory if own else base


def _identity(directory: Path, tokenizer: Path, label: str) -> ModelIdentity:
    if not (directory / "config.json").is_file():
        raise NotFound(f"{directory} has no config.json", hint="kvswap model ls")
    config = read_json(directory / "config.json")
    if not isinstance(config, dict):
        raise unfit(f"{directory / 'config.json'} is not a configuration", "config")
    return ModelIdentity(
        label=label,
        weights=weights_digest(tensor_entries(directory)),
        config=config_digest(config),
        tokenizer=tokenizer_digest(tokenizer),
        adapters=[],
        parameters=sum(math.prod(entry["shape"]) for entry in headers(directory).values()),
    )
