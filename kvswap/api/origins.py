"""The answers about origins: which there are, how they do, and what was put there."""

from __future__ import annotations

from kvswap.api.result import Result


class PushResult(Result, frozen=True, kw_only=True):
    """The result of `kvswap push`."""

    artifact: str
    url: str
    """The origin; of several, with commas between them."""
    files: int
    bytes: int
    """Bytes of all files of the artifact that are here."""
    uploaded: int
    """Files that were not there before."""
    uploaded_bytes: int
    left_out: int
    """Files of the artifact that this node does not have, and that no reader of the whole document needs."""
    seconds: float
    plain: bool
    """True if it went over http: what was written could be seen and changed on the way."""


class OriginRow(Result, frozen=True, kw_only=True):
    """An origin of this node, and what was experienced with it."""

    url: str
    endpoint: str
    region: str
    profile: str
    price_per_gb: float
    """US dollars for a gigabyte read there."""
    price_per_request: float
    """US dollars."""
    write: bool
    """True if `kvswap push` without a URL goes there."""
    configured: bool
    """True if it stands in `config.toml`, where it is changed."""
    plain: bool
    """True if the way there can be read and changed by others."""
    bytes_in: int
    """Bytes of chunks that came from there."""
    rate: float | None
    """Bytes a second of earlier transfers; None: there was none."""
    failures: int
    invalid_chunks: int
    """Chunks that were not what the manifest says."""
    rests: float
    """Seconds for which it is not asked, after it failed or gave something wrong."""


class OriginsResult(Result, frozen=True, kw_only=True):
    """The origins of this node."""

    origins: list[OriginRow]


class OriginTest(Result, frozen=True, kw_only=True):
    """The result of `kvswap origin test`: each step that was tried, and how it went."""

    url: str
    ok: bool
    reads: bool
    writes: bool | None
    """None: it is only read, or writing was not tried."""
    conditional: bool | None
    """True if two writers at once lose nothing there."""
    seconds: float
    """Until the first answer."""
    plain: bool
    problem: str | None


class OriginRemoved(Result, frozen=True, kw_only=True):
    """The result of `kvswap origin rm`."""

    url: str
    removed: bool
