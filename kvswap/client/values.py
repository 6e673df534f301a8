"""Values that clients return and take: artifacts that can be loaded, reports, documents by path."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvswap.api.result import Result
from kvswap.client.old import old_keywords
from kvswap.core.defaults import HEADROOM_TOKENS

if TYPE_CHECKING:
    from kvswap.api import FetchResult, PublishResult
    from kvswap.core.folders import FolderText


def model_argument(name: str | None) -> str | None:
    """Resolve a model as the caller typed it, so that it means the same to a daemon in another directory."""
    if name is None:
        return None
    from kvswap.core.directories import models_directory
    from kvswap.model.catalogue import typed

    return typed(name, models_directory())


@dataclass(frozen=True, slots=True)
class Artifact:
    """A verified artifact in the local store.  `report` is what `kvswap fetch --json` prints."""

    id: str
    report: FetchResult
    _details: Any = field(repr=False)  # callable: the daemon's view of the artifact

    @old_keywords
    def load(self, model: Any, *, tokens: int | None = None, headroom: int = HEADROOM_TOKENS) -> Any:
        """Load a transformers `DynamicCache`, bit for bit the publisher's, on the model's device.

        `tokens`: stop at this block's end instead of the whole document.  `headroom`: tokens that may
        follow before the cache must be copied.  Raises `Incompatible` when `model` is not the one the
        artifact was made by, `IntegrityError` when a chunk is not what was signed.
        """
        from kvswap.client.loading import load_artifact

        return load_artifact(self._details(), model, tokens=tokens, headroom=headroom)

    @property
    def tokens(self) -> int:
        """Length of the cached prefix in tokens: the position at which a question starts."""
        return self.report.tokens


@dataclass(frozen=True, slots=True)
class AsyncArtifact:
    """An `Artifact` for asyncio: loading runs in a thread."""

    id: str
    report: FetchResult
    _details: Any = field(repr=False)  # coroutine function

    @old_keywords
    async def load(self, model: Any, *, tokens: int | None = None, headroom: int = HEADROOM_TOKENS) -> Any:
        """See `Artifact.load`."""
        import asyncio

        from kvswap.client.loading import load_artifact

        details = await self._details()
        return await asyncio.to_thread(load_artifact, details, model, tokens=tokens, headroom=headroom)

    @property
    def tokens(self) -> int:
        """Length of the cached prefix in tokens, as in `Artifact.tokens`."""
        return self.report.tokens


class CacheReport(Result, frozen=True, kw_only=True):
    """The report of `get_cache`.  `action` is `fetch` or `prefill`; `tokens` is the length of the cached prefix."""

    action: str
    reason: str
    seconds: float
    tokens: int
    fetched_tokens: int
    artifact: str | None

    @classmethod
    def of(
        cls, action: str, reason: str, began: float, tokens: int, fetched_tokens: int, artifact: str | None
    ) -> CacheReport:
        """Make a report of what ends now; `began` is a `time.perf_counter` value."""
        return cls(
            action=action,
            reason=reason,
            seconds=time.perf_counter() - began,
            tokens=tokens,
            fetched_tokens=fetched_tokens,
            artifact=artifact,
        )


def read_source(document: str | Path) -> tuple[str, FolderText | None]:
    """Return the text of a document, a file or a folder, and for a folder what it is made of.

    Raises `InvalidDocument` for a file that is no UTF-8 text, or a folder without any.
    """
    if isinstance(document, str) or not document.is_dir():
        return read_document(document), None
    from kvswap.core.folders import read_folder

    folder = read_folder(document)
    return folder.text, folder


def with_files(done: PublishResult, folder: FolderText) -> PublishResult:
    """Return the result of publishing a folder with its files."""
    from msgspec import structs

    from kvswap.api import PublishedFile

    files = [PublishedFile(path=file.path, sha256=file.sha256, bytes=file.bytes) for file in folder.files]
    return structs.replace(done, files=files, left_out=list(folder.left_out))


def read_document(document: str | Path) -> str:
    """Return a document's text, read from its file where a path was given.

    Raises `InvalidDocument` for a file that is not UTF-8 text, and kvswap's error for one that cannot be read.
    """
    if isinstance(document, str):
        return document
    from kvswap.core.documents import check_document
    from kvswap.core.files import read_file
    from kvswap.core.limits import LIMITS

    return check_document(read_file(document, LIMITS.document_bytes), str(document))
