"""The measurements of this machine, kept in `calibration.json`: prefill by model, links by peer, rates by codec.

Everything here is a cache of measurements: a lost or damaged file costs a new measurement, nothing else, so reading it
never raises.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kvswap.artifact.manifest import ChunkRef, FileRef
from kvswap.core.atomic import write_atomic
from kvswap.core.bounded import Table
from kvswap.core.failures import Misplaced
from kvswap.core.files import read_regular
from kvswap.core.limits import LIMITS
from kvswap.core.upkeep import Problems, Writer
from kvswap.cost.estimate import Link, PrefillCurve

if TYPE_CHECKING:
    from kvswap.trust.noise import NoiseRecord

_SAMPLES_KEPT = 256
_PEERS_KEPT = 1_024
_WAITING_BYTES = 4 << 20  # of versions of the file that wait to be written
_WEIGHT = 0.3  # weight of a new measurement in the running mean, when the last one is recent
_DAY = 86_400.0  # seconds after which the mean weighs little against a new measurement
_PACE_SECONDS = 900.0  # time constant for which the last blocks tell of this machine's load
_UNDER_WAY = 1.1  # factor by which prefill slows down while chunks arrive, until measured
# Raw bytes per second of verifying, decoding and loading, until they are measured on this machine.
LOAD_BYTES_PER_SECOND = {
    "raw": 0.8e9,
    "planes": 0.4e9,
    "predictive": 0.1e9,
    "predictive2": 0.2e9,
    "int8": 0.4e9,
    "int8-channel": 0.4e9,
}


def raw_by_codec(files: Iterable[ChunkRef | FileRef]) -> dict[str, int]:
    """Sum up the raw bytes that each codec has to decode."""
    raw: dict[str, int] = {}
    for file in files:
        if isinstance(file, ChunkRef):
            raw[file.codec] = raw.get(file.codec, 0) + file.raw_length
    return raw


class Calibration:
    """The measured rates of this machine.  Not thread-safe; lives on the node's event loop."""

    def __init__(self, path: Path, problems: Problems | None = None) -> None:
        """Read the file; a damaged one is set aside and noted in `problems`."""
        self._path = path
        self._data: dict[str, Any] = {"prefill": {}, "peers": {}, "codecs": {}, "noise": {}, "hosts": {}}
        self._versions = self._written = 0
        self._writing = threading.Lock()
        self._writer: Writer[tuple[int, bytes]] = Writer("calibration", self._write, budget=_WAITING_BYTES)
        try:
            read = json.loads(read_regular(path, LIMITS.config_bytes))
            for part in self._data:
                if isinstance(read.get(part), dict):
                    self._data[part] = read[part]
        except FileNotFoundError:
            pass
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            self._set_aside(problems, error)
        self.links: Table[str, dict[str, Any]] = Table(
            "links", entries=_PEERS_KEPT, size=lambda peer, row: 512, keep=lambda peer, row: "rate" in row
        )
        for peer, row in self._data.pop("peers").items():
            if isinstance(row, dict):
                self.links.put(peer, row, peer)

    def _set_aside(self, problems: Problems | None, why: Exception) -> None:
        if isinstance(why, Misplaced) or not isinstance(why, OSError):
            with contextlib.suppress(OSError):
                os.replace(self._path, self._path.with_suffix(".damaged"))
        if problems is not None:
            text = f"{self._path.name} cannot be read ({why}): rates are measured anew"
            problems.note("calibration", text)

    def save(self) -> None:
        """Write the file as a whole; a failure is ignored.  Blocks."""
        self._write([self._version()])

    def close(self) -> None:
        """Write the file and end the thread that writes it."""
        self._writer.close()
        self.save()

    def _save_soon(self) -> None:
        """Write the file in a thread; nothing waits for a disk that is too slow."""
        version = self._version()
        if self._writer.waiting_bytes + len(version[1]) < _WAITING_BYTES:
            self._writer.add(version, len(version[1]))

    def _version(self) -> tuple[int, bytes]:
        self._versions += 1
        return self._versions, json.dumps(self._data | {"peers": dict(self.links.items())}).encode()

    def _write(self, versions: Sequence[tuple[int, bytes]]) -> None:
        number, data = versions[-1]
        with self._writing, contextlib.suppress(OSError):
            if number > self._written:  # a newer version may have been written first
                write_atomic(self._path, data, durable=False)
                self._written = number

    # -- prefill ---------------------------------------------------------------------------------

    def add_prefill(self, key: str, samples: Sequence[tuple[int, int, float]]) -> None:
        """Record the blocks of a prefill as (tokens before, tokens in the block, seconds).

        `key` names model, dtype, device and threads.  A longer run replaces a shorter one: it says more about the
        slope.
        """
        rows = [[int(a), int(b), float(c)] for a, b, c in samples][:_SAMPLES_KEPT]
        if not rows:
            return
        known = self._data["prefill"][key] = self._prefill(key)
        if len(rows) >= min(len(known.get("samples", [])), 8):
            known |= {"samples": rows, "at": int(time.time())}
            known.pop("pace", None)
        elif (pace := self._pace(key, samples)) is not None:
            known |= {"pace": pace, "paced": int(time.time())}  # the machine is busier now, or less
        self._save_soon()

    def add_hybrid(self, key: str, samples: Sequence[tuple[int, int, float]]) -> None:
        """Record blocks that were computed while chunks were arriving, which slows computing down.

        The arguments are those of `add_prefill`.
        """
        pace = self._pace(key, samples)
        if pace is not None:
            _blend(self._data["prefill"][key], "under_way", max(1.0, pace / self.pace(key)))

    def _pace(self, key: str, samples: Sequence[tuple[int, int, float]]) -> float | None:
        """Return the seconds of these blocks as a multiple of what the curve predicts; None without a curve."""
        expected = 0.0
        for at, tokens, _ in samples:
            curve = self._fit(key, tokens)
            expected += curve.seconds(at + tokens, at) if curve else 0.0
        return sum(seconds for *_, seconds in samples) / expected if expected > 0 else None

    def _prefill(self, key: str) -> dict[str, Any]:
        """Return the row of a model; a damaged row counts as none."""
        row = self._data["prefill"].get(key)
        return row if isinstance(row, dict) else {}

    def _fit(self, key: str, block_tokens: int) -> PrefillCurve | None:
        try:
            rows = self._data["prefill"][key]["samples"]
            return PrefillCurve.fit([(int(a), int(b), float(c)) for a, b, c in rows], block_tokens)
        except (KeyError, ValueError, TypeError):
            return None

    def pace(self, key: str) -> float:
        """Return how many times the curve's seconds the last blocks took.

        The value decays to 1 with a time constant of 15 minutes, as load comes and goes.
        """
        known = self._prefill(key)
        age = time.time() - _number(known.get("paced"), 0.0)
        fresh = math.exp(-max(0.0, age) / _PACE_SECONDS)
        return 1 + fresh * (_number(known.get("pace"), 1.0) - 1)

    def under_way(self, key: str) -> float:
        """Return how many times longer a block takes while chunks arrive."""
        return _number(self._prefill(key).get("under_way"), _UNDER_WAY)

    def curve(self, key: str, block_tokens: int) -> PrefillCurve | None:
        """Return the prefill curve of a model at this machine's present pace; None where it was never measured."""
        curve = self._fit(key, block_tokens)
        if curve is None:
            return None
        pace = self.pace(key)
        return PrefillCurve(curve.a * pace, curve.b * pace, block_tokens)

    # -- hosts -----------------------------------------------------------------------------------

    def add_host(self, peer: str, seconds: float) -> None:
        """Record the seconds until a host's first token."""
        _blend(self._data["hosts"].setdefault(peer, {}), "first", seconds)
        while len(self._data["hosts"]) > _PEERS_KEPT:
            self._data["hosts"].pop(next(iter(self._data["hosts"])))
        self._save_soon()

    def host_seconds(self, peer: str) -> float | None:
        """Return the mean seconds until a host's first token; None where it was never measured."""
        row = self._data["hosts"].get(peer)
        seconds = _number(row.get("first") if isinstance(row, dict) else None, 0.0)
        return seconds or None

    # -- honest noise ----------------------------------------------------------------------------

    def add_noise(self, key: str, noise: NoiseRecord) -> None:
        """Record the honest noise of a model on this machine."""
        self._data["noise"][key] = msgspec.to_builtins(noise)
        self._save_soon()

    def noise(self, key: str) -> NoiseRecord | None:
        """Return the honest noise of a model; None where it was never measured, or by a version that measured less."""
        from kvswap.trust.noise import NoiseRecord  # numpy, for what few have a use for

        with contextlib.suppress(msgspec.ValidationError):
            return msgspec.convert(self._data["noise"].get(key), NoiseRecord)
        return None

    # -- links -----------------------------------------------------------------------------------

    def add_latency(self, peer: str, seconds: float) -> None:
        """Record a round trip to a peer, in seconds."""
        self._mean(peer, "latency", seconds)

    def add_rate(self, peer: str, bytes_per_second: float) -> None:
        """Record the goodput of a transfer from a peer, in bytes per second, as the reader saw it."""
        self._mean(peer, "rate", bytes_per_second)

    def add_start(self, peer: str, seconds: float) -> None:
        """Record the fixed overhead of a fetch from a peer, in seconds: look-up, joining, the last check and write."""
        self._mean(peer, "start", seconds)

    def _mean(self, peer: str, field: str, value: float) -> None:
        row = dict(self.links.peek(peer) or {})
        if field == "rate" and (old := _number(row.get("rate"), 0.0)) > 0:
            _blend(row, "spread", abs(value - old) / old)
        _blend(row, field, value, _age(row))
        row["at"] = int(time.time())
        self.links.put(peer, row, peer)

    def link(self, peer: str, assumed_rate: float) -> Link:
        """Return the measured link to a peer; `assumed_rate` (bytes per second) stands for a rate never measured."""
        row = self.links.peek(peer) or {}
        rate = row.get("rate")
        return Link(
            rate or assumed_rate,
            row.get("latency", 0.05),
            rate is not None,
            row.get("start"),
            row.get("spread", 0.0),
            _age(row),
        )

    def peer(self, peer: str) -> dict[str, Any]:
        """Return everything measured of a peer, for display."""
        return dict(self.links.peek(peer) or {})

    # -- codecs ----------------------------------------------------------------------------------

    def add_load(self, raw: Mapping[str, int], seconds: float) -> None:
        """Record the seconds of verifying, decoding and loading from the local store; `raw` has raw bytes by codec.

        Mixed and small loads are ignored: they say nothing of one codec.
        """
        codec, most = max(raw.items(), key=lambda item: item[1], default=("", 0))
        if seconds > 0 and most > 1_000_000 and most > 0.9 * sum(raw.values()):
            self._rate(codec, "load", most / seconds)

    def add_encode(self, codec: str, raw_bytes: int, wire_bytes: int | None, seconds: float) -> None:
        """Record the encoding of `raw_bytes` by one thread; `wire_bytes` is None where the data is not of a real text.

        Without real text the ratio says nothing and is not recorded.
        """
        if seconds > 0 and raw_bytes > 1_000_000:
            self._rate(codec, "encode", raw_bytes / seconds)
            if wire_bytes:
                self._rate(codec, "ratio", raw_bytes / wire_bytes)

    def _rate(self, codec: str, field: str, value: float) -> None:
        row = self._data["codecs"].setdefault(codec, {})
        _blend(row, field, value, _age(row))
        row["at"] = int(time.time())

    def load_seconds(self, raw: Mapping[str, int]) -> float:
        """Predict the seconds of verifying, decoding and loading; `raw` has raw bytes by codec."""
        return sum(size / self._load_rate(codec) for codec, size in raw.items())

    def _load_rate(self, codec: str) -> float:
        known = self._data["codecs"].get(codec, {})
        rate = known.get("load") if isinstance(known, dict) else None
        usual = LOAD_BYTES_PER_SECOND.get(codec, 0.1e9)
        return float(rate) if isinstance(rate, int | float) and rate > 0 else usual

    def codecs(self) -> dict[str, dict[str, float]]:
        """Return everything measured of each codec, for display: `load` and `encode` in bytes per second, `ratio`."""
        kept = ("load", "encode", "ratio")
        return {
            name: {field: row[field] for field in kept if field in row}
            for name, row in self._data["codecs"].items()
            if isinstance(row, dict)
        }


def _blend(row: dict[str, Any], field: str, value: float, age: float = 0.0) -> None:
    """Update a running mean, in which a new measurement weighs the more the older the last one is (seconds)."""
    old = row.get(field)
    weight = 1 - (1 - _WEIGHT) * math.exp(-max(0.0, age) / _DAY)
    row[field] = value if old is None else old + weight * (value - old)


def _age(row: Mapping[str, Any]) -> float:
    """Return the seconds since a row was last measured."""
    at = row.get("at")
    return max(0.0, time.time() - at) if isinstance(at, int | float) else 0.0


def _number(value: Any, otherwise: float) -> float:
    return float(value) if isinstance(value, int | float) else otherwise
