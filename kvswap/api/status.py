"""The result of `kvswap status`, in a module of its own: each of its kind costs a short command time."""

from __future__ import annotations

from collections.abc import Mapping

from kvswap.api.result import Result


class CodecFigures(Result, frozen=True, kw_only=True):
    """The rates of a codec that were measured on this machine; None: not yet."""

    load: float | None = None
    """Raw bytes a second that are verified, decoded and loaded."""
    encode: float | None = None
    """Raw bytes a second that are encoded."""
    ratio: float | None = None
    """Raw bytes for each encoded one."""


class ProcessState(Result, frozen=True, kw_only=True):
    """A model process."""

    model: str
    pid: int | None
    state: str
    """The state: `loading`, `working` or `idle`."""


class ModelState(Result, frozen=True, kw_only=True):
    """The node's model, and its processes."""

    default: str
    dtype: str
    device: str
    loaded: str | None
    """The model that was used last; None: none is loaded."""
    pid: int | None
    processes: list[ProcessState]


class LoopState(Result, frozen=True, kw_only=True):
    """The pauses of the event loop."""

    longest_pause_seconds: float
    pauses: int
    """Pauses of over 100 ms."""
    excused: int
    """The pauses among them in which the machine did not let the node run."""
    watched_seconds: float
    measured: bool
    """False where the kernel does not say for how long a thread was not let run."""
    queries: int
    """Database accesses on the event loop, which there should be none of."""


class TableState(Result, frozen=True, kw_only=True):
    """The fill level of a bounded table."""

    name: str
    entries: int
    most_entries: int
    bytes: int
    most_bytes: int
    refused: int
    evicted: int


class StatusResult(Result, frozen=True, kw_only=True):
    """The state of a node."""

    version: str
    home: str
    peer: str | None
    publisher: str
    p2p: bool
    """True if it takes part in the network."""
    peers: int
    """The peers that are connected."""
    degraded: dict[str, str]
    """The parts that do not work, and why."""
    artifacts: int
    disputed: int
    """The artifacts that others contradict."""
    wrong: int
    """The artifacts that were found wrong."""
    codecs: dict[str, CodecFigures]
    store_bytes: int
    quota_bytes: int
    model: ModelState
    bytes_in: int
    bytes_out: int
    started: float
    """Unix seconds."""
    loop: LoopState
    tables: list[TableState]


def codec_figures(measured: Mapping[str, Mapping[str, float]]) -> dict[str, CodecFigures]:
    """Return what was measured of each codec (`Calibration.codecs`)."""
    return {name: CodecFigures(**row) for name, row in measured.items()}
