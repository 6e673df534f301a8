"""Talking to the local daemon.  Importing this costs neither torch nor aiohttp.

>>> node = Client()                                    # doctest: +SKIP
>>> artifact = node.fetch("sha256:…")                  # doctest: +SKIP
>>> cache = artifact.load(model)                       # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvswap.client.sync import Client
from kvswap.client.values import Artifact, AsyncArtifact

if TYPE_CHECKING:
    from kvswap.client.aio import AsyncClient

__all__ = ["Artifact", "AsyncArtifact", "AsyncClient", "Client"]


def __getattr__(name: str) -> Any:
    if name == "AsyncClient":  # asyncio is half of what a command line would wait for
        from kvswap.client.aio import AsyncClient

        return AsyncClient
    raise AttributeError(f"module 'kvswap.client' has no attribute {name!r}")
