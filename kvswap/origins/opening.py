"""The backend of an origin, by its URL."""

from __future__ import annotations

from kvswap.core.origin_settings import OriginSettings
from kvswap.origins.files import FileBackend
from kvswap.origins.port import Backend
from kvswap.origins.web import WebBackend


def backend_of(settings: OriginSettings) -> Backend:
    """Make the backend of an origin; nothing is dialled yet.

    Raises `Incompatible` where the package for it is not installed.
    """
    if settings.url.startswith("file:"):
        return FileBackend(settings.url)
    if settings.url.startswith("s3:"):
        from kvswap.origins.s3 import S3Backend  # an extra of the package

        return S3Backend(settings)
    return WebBackend(settings.url)
