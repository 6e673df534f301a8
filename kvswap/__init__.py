"""kvswap: publish a document's KV cache once; any agent on the same model continues from it.

>>> import kvswap
>>> node = kvswap.Client()                       # the running daemon        # doctest: +SKIP
>>> artifact = node.fetch("sha256:…")            # verified and local        # doctest: +SKIP
>>> cache = artifact.load(model)                 # transformers DynamicCache # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvswap.core.version import __version__

if TYPE_CHECKING:
    from kvswap import api, errors
    from kvswap.api import (
        ArtifactDetails,
        AskResult,
        FetchResult,
        FindResult,
        PlanResult,
        PrefixResult,
        ProgressEvent,
        PublishResult,
        StatusResult,
        StoredArtifact,
        VerifyResult,
    )
    from kvswap.client import Artifact, AsyncArtifact, AsyncClient, Client
    from kvswap.core.errors import KvswapError
    from kvswap.cost import Objective

__all__ = [
    "Artifact",
    "ArtifactDetails",
    "AskResult",
    "AsyncArtifact",
    "AsyncClient",
    "Client",
    "FetchResult",
    "FindResult",
    "KvswapError",
    "Objective",
    "PlanResult",
    "PrefixResult",
    "ProgressEvent",
    "PublishResult",
    "StatusResult",
    "StoredArtifact",
    "VerifyResult",
    "__version__",
    "api",
    "errors",
]
_ELSEWHERE = {
    "Artifact": "kvswap.client",
    "AsyncArtifact": "kvswap.client",
    "AsyncClient": "kvswap.client",
    "Client": "kvswap.client",
    "KvswapError": "kvswap.core.errors",
    "Objective": "kvswap.cost",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that `import kvswap` costs nothing and no package below imports the client.
    if name not in __all__:
        raise AttributeError(f"module 'kvswap' has no attribute {name!r}")
    import importlib

    if name in ("api", "errors"):
        return importlib.import_module(f"kvswap.{name}")
    return getattr(importlib.import_module(_ELSEWHERE.get(name, "kvswap.api")), name)
