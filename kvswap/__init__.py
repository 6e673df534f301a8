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
    from kvswap import errors
    from kvswap.client import AsyncClient, Client
    from kvswap.core.errors import KvswapError
    from kvswap.cost import Objective

__all__ = ["AsyncClient", "Client", "KvswapError", "Objective", "__version__", "errors"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `import kvswap` costs nothing and no package below imports the client.
    if name in ("Client", "AsyncClient"):
        from kvswap import client

        return getattr(client, name)
    if name == "Objective":
        from kvswap.cost import Objective

        return Objective
    if name == "errors":
        import importlib

        return importlib.import_module("kvswap.errors")
    if name == "KvswapError":
        from kvswap.core.errors import KvswapError

        return KvswapError
    raise AttributeError(f"module 'kvswap' has no attribute {name!r}")
