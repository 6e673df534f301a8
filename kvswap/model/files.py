"""The files of a model's directory, and which of them are loaded.

transformers loads one set of weight files: the one that the configuration names, `model.safetensors`, or the shards of
its index.  Identity is over those and no others, and over an adapter beside them (`adapters`).  Neither torch nor
transformers is imported here.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from kvswap.core.errors import Incompatible
from kvswap.core.limits import LIMITS

ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_POINTER = b"version https://git-lfs"
_NUMBER = re.compile(r"\.\d+")
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(.+)")

Header = dict[str, dict[str, Any]]


def unfit(what: str, field: str, *, cause: str | None = None, hint: str | None = None) -> Incompatible:
    """Return the error for a directory that does not hold a proper model; `field` names the part that is at fault."""
    return Incompatible(
        what,
        cause=cause or "a file of the model is damaged, cut off, missing, or of another model",
        hint=hint or "kvswap model ls; kvswap model pull NAME, or get the directory anew",
        field=field,
    )


def not_a_pointer(path: Path, start: bytes) -> None:
    """Check that a file that begins with `start` is no Git LFS pointer.  Raises `Incompatible` if it is one."""
    if start.startswith(_POINTER):
        raise Incompatible(
            f"{path} is a Git LFS pointer, not the file itself",
            cause="the repository was cloned without Git LFS",
            hint=f"cd {path.parent} && git lfs pull",
            field="model",
        )


def read_json(path: Path) -> Any:
    """Parse a JSON file.  Raises `Incompatible` if it is too large, no JSON, or a Git LFS pointer."""
    if path.stat().st_size > LIMITS.json_bytes:
        raise unfit(f"{path} is over {LIMITS.json_bytes} bytes", "config")
    data = path.read_bytes()
    not_a_pointer(path, data)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise unfit(f"{path} is not JSON", "config") from error


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


def weight_files(directory: Path) -> list[Path]:
    """Return the files that transformers loads weights from, in its order.

    If there is neither `model.safetensors` nor an index, from which transformers loads nothing, all safetensors files
    are returned.  Raises `Incompatible` for an index or configuration that names no weight file beside it.
    """
    config = read_json(directory / "config.json") if (directory / "config.json").is_file() else {}
    named = config.get("transformers_weights") if isinstance(config, dict) else None
    if named is not None:
        path = _inside(directory, named, directory / "config.json")
        return _of_index(path) if path.name.endswith(".index.json") else [path]
    if (directory / _WHOLE).is_file():
        return [directory / _WHOLE]
    if (directory / _INDEX).is_file():
        return _of_index(directory / _INDEX)
    paths = (path for path in sorted(directory.glob("*.safetensors")) if path.name != ADAPTER_WEIGHTS)
    return [path for path in paths if path.is_file()]  # opening a pipe would wait


def _of_index(index: Path) -> list[Path]:
    held = read_json(index)
    where = held.get("weight_map") if isinstance(held, dict) else None
    if not isinstance(where, dict) or not where:
        raise unfit(f"{index} has no weight_map", "weights")
    if not all(isinstance(shard, str) for shard in where.values()):
        raise unfit(f"{index} names a shard that is no file name", "weights")
    return [_inside(index.parent, shard, index) for shard in sorted(set(where.values()))]


def _inside(directory: Path, name: Any, by: Path) -> Path:
    """Return the file of this name in the directory; `by` is the file that names it, for the error."""
    if not isinstance(name, str) or not name.endswith((".safetensors", ".index.json")) or Path(name).name != name:
        raise unfit(f"{by} names {str(name)[:80]!r}, which is no weight file beside it", "weights")
    path = directory / name
    if not path.is_file():
        raise unfit(f"{by} names {name}, which is not there", "weights")
    return path


def state(directory: Path) -> tuple[tuple[str, int, int], ...]:
    """Return name, size and modification time of every file: equal when nothing was changed."""
    files = sorted(path for path in directory.iterdir() if path.is_file())
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)


def check_experts(header: Header) -> None:
    """Check that every expert of a mixture has all its tensors, in equal shapes.

    transformers stacks the experts that it finds, by order: a gap would shift all later ones.  Raises `Incompatible`
    naming the tensor that is missing or has another shape.
    """
    shapes: dict[tuple[str, str], dict[int, Any]] = defaultdict(dict)
    counts: dict[str, int] = defaultdict(int)
    kinds: dict[str, set[str]] = defaultdict(set)  # parts of an expert, alike in all layers
    for name, entry in header.items():
        if found := _EXPERT.fullmatch(name):
            group, number, part = found[1], int(found[2]), found[3]
            shapes[group, part][number] = entry["shape"]
            counts[group] = max(counts[group], number + 1)
            kinds[_NUMBER.sub(".N", group)].add(part)
    for group, count in counts.items():
        for part in sorted(kinds[_NUMBER.sub(".N", group)]):
            held = shapes[group, part]
            if len(held) < count:
                gone = next(number for number in range(count) if number not in held)
                raise unfit(f"the weights lack {group}.{gone}.{part}", "weights")
            for number, shape in held.items():
                if shape != held[0]:
                    raise Incompatible(
                        f"{group}.{number}.{part} has the shape {shape}, that of expert 0 is {held[0]}", field="weights"
                    )
