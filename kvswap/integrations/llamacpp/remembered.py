"""What is known of the server that kvswap starts itself, kept from one command to the next.

The probe takes as long as prefilling 256 tokens, which a question on a short document should not cost each time.  Of a
server that is started here all is known that it depends on: the package and its file, the model, the format of the
cache, the processor, and the environment that llama.cpp reads.  Of any other server nothing is kept.
"""

from __future__ import annotations

import contextlib
import os
import platform
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import msgspec
from blake3 import blake3

from kvswap.artifact.manifest import EngineProbe, ModelIdentity
from kvswap.core.atomic import write_atomic
from kvswap.core.errors import KvswapError
from kvswap.integrations.llamacpp.building import StateShape
from kvswap.integrations.llamacpp.gguf import GgufFile
from kvswap.integrations.llamacpp.mapping import layout_for
from kvswap.integrations.llamacpp.server import Described

_FORM = 1  # of what is kept: another number makes it void
_MOST_BYTES = 1 << 20


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    shape: StateShape
    probe: EngineProbe
    token_seconds: float


def environment_key(identity: ModelIdentity, cache_type: str) -> str:
    """Return the name of all that the probe of a server that is started here depends on."""
    spec = find_spec("xllamacpp")
    files = sorted(Path(spec.origin).parent.glob("*.so")) if spec is not None and spec.origin else []
    facts = [
        _FORM,
        identity.digest.hex(),
        cache_type,
        version("xllamacpp"),
        [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files],
        platform.machine(),
        _processor(),
        sorted((name, value) for name, value in os.environ.items() if name.startswith(("GGML_", "LLAMA_"))),
    ]
    return blake3(repr(facts).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _processor() -> str:
    """Return what names the processor's instructions: its flags where the system lists them."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()


def recall(folder: Path, key: str, model: GgufFile, identity: ModelIdentity) -> Described | None:
    """Return what was kept of this server, or None."""
    path = folder / f"{key}.server"
    try:
        if path.stat().st_size > _MOST_BYTES:
            return None
        kept = msgspec.msgpack.decode(path.read_bytes(), type=_Kept)
        layout = layout_for(model, kept.shape)
    except (OSError, msgspec.DecodeError, KvswapError, IndexError, TypeError):
        return None
    return Described(identity, kept.shape, layout, kept.probe, kept.token_seconds)


def keep(folder: Path, key: str, described: Described) -> None:
    """Keep what is known of this server; without success it is only learnt again."""
    kept = _Kept(described.shape, described.probe, described.token_seconds)
    data = msgspec.msgpack.encode(kept)
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(folder / f"{key}.server", data)
