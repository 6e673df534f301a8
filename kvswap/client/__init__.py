"""Talking to the local daemon.  Importing this costs neither torch nor aiohttp.

>>> node = Client()                                    # doctest: +SKIP
>>> artifact = node.fetch("sha256:…")                  # doctest: +SKIP
>>> cache = artifact.load(model)                       # doctest: +SKIP
"""

from kvswap.client.aio import AsyncClient
from kvswap.client.sync import Client
from kvswap.client.values import Artifact, AsyncArtifact

__all__ = ["Artifact", "AsyncArtifact", "AsyncClient", "Client"]
