"""The identity of a GGUF model: what it computes with decides, a name is only a label.

* weights: BLAKE3 over the sorted JSON lines [name, type, shape, hex BLAKE3 of the data] of all tensors, as for other
  models, with ggml's types and the order of axes of the file.  Another quantisation is another model, and none of them
  is the model that it was made of.
* config: BLAKE3 over the sorted lines of key and digest of the metadata, but for those that label (`general.*`, the
  architecture aside) and those that say how a quantisation was made or a file is split.
* tokenizer: the same over `tokenizer.*`, the chat template included.

Flags of a server that change what a model computes (`--rope-freq-base`, `--lora`, `--override-kv`) are not in the file,
so they are not here: `probe` tells them apart.  Identities are cached by the file's size, times and inode.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
from blake3 import blake3

from kvswap.artifact.manifest import ModelIdentity
from kvswap.core import wire
from kvswap.core.atomic import write_atomic
from kvswap.core.errors import Incompatible, KvswapError, MalformedMessage, NotFound
from kvswap.core.ids import blake3_digest
from kvswap.integrations.llamacpp.gguf import GgufFile, GgufTensor, read_gguf

_LABELS = ("general.", "quantize.", "split.")
_TOKENIZER = "tokenizer."
_ARCHITECTURE = "general.architecture"
_READ = 4 << 20
_CACHE_BYTES = 64 << 10
_FORM = 1  # of the identity: another number makes cached ones void


def gguf_identity(path: Path, label: str | None = None, *, cache: Path | None = None) -> ModelIdentity:
    """Return the identity of the model in a GGUF file, reading every weight once (about 4 GB/s a core).

    `cache`: a folder in which it is remembered until the file changes.  `label`: what people call it, by default the
    file's name.  Raises `NotFound`, and `Incompatible` for a file that is no proper model.
    """
    if not path.is_file():
        raise NotFound(f"there is no model {path}", cause="a typing error, or it was removed", hint="ls *.gguf")
    remembered = _RememberedIdentity(path, cache) if cache is not None else None
    identity = remembered.read() if remembered is not None else None
    if identity is None:
        identity = _computed(read_gguf(path))
        if remembered is not None:
            remembered.write(identity)
    return msgspec.structs.replace(identity, label=(label or path.stem)[:256])


def _computed(file: GgufFile) -> ModelIdentity:
    lines = [
        json.dumps([tensor.name, tensor.kind, list(tensor.shape), digest.hex()], separators=(",", ":"))
        for tensor, digest in _digests(file)
    ]
    if not lines:
        raise Incompatible(f"{file.path.name} has no weights", field="model")
    config = {key: value for key, value in file.digests.items() if not key.startswith((*_LABELS, _TOKENIZER))}
    config[_ARCHITECTURE] = file.digests[_ARCHITECTURE]
    tokenizer = {key: value for key, value in file.digests.items() if key.startswith(_TOKENIZER)}
    if not tokenizer:
        raise NotFound(f"{file.path.name} has no tokenizer", cause="kvswap needs one to know a prefix by its ids")
    return ModelIdentity(
        label="",
        weights=blake3_digest("\n".join(sorted(lines)).encode()),
        config=_over(config),
        tokenizer=_over(tokenizer),
        adapters=[],
        parameters=sum(math.prod(tensor.shape) for tensor in file.tensors),
    )


def _over(entries: dict[str, bytes]) -> bytes:
    lines = sorted(json.dumps([key, digest.hex()], separators=(",", ":")) for key, digest in entries.items())
    return blake3_digest("\n".join(lines).encode())


def _digests(file: GgufFile) -> Iterator[tuple[GgufTensor, bytes]]:
    """Yield each tensor with the digest of its data, in the order of the file."""
    buffer = memoryview(bytearray(_READ))
    with file.path.open("rb", buffering=0) as raw:
        for tensor in sorted(file.tensors, key=lambda tensor: tensor.at):
            raw.seek(tensor.at)
            hasher, left = blake3(max_threads=blake3.AUTO), tensor.length
            while left:
                got = raw.readinto(buffer[: min(left, _READ)])
                if not got:
                    raise Incompatible(f"{file.path.name} is truncated", cause="it changed meanwhile", field="model")
                hasher.update(buffer[:got])
                left -= got
            yield tensor, hasher.digest()


class _RememberedIdentity:
    """The identity of one file as it was computed before, and whether the file is still the same."""

    def __init__(self, path: Path, folder: Path) -> None:
        real = path.resolve()
        state = real.stat()
        self._state = [_FORM, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, state.st_dev]
        self._place = folder / f"{blake3(os.fsencode(real)).hexdigest()[:32]}.identity"

    def read(self) -> ModelIdentity | None:
        """Return the identity, or None if it is not known, or of the file as it was before."""
        try:
            if self._place.stat().st_size > _CACHE_BYTES:
                return None
            held = wire.parse(self._place.read_bytes(), MalformedMessage, items=64)
            if not isinstance(held, dict) or held.get("state") != self._state:
                return None
            return wire.convert(held.get("identity"), ModelIdentity)
        except (OSError, KvswapError):
            return None

    def write(self, identity: ModelIdentity) -> None:
        """Remember the identity; without success it is only computed again."""
        with contextlib.suppress(OSError):
            self._place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomic(self._place, wire.pack({"state": self._state, "identity": wire.plain(identity)}))
