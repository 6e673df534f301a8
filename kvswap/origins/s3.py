"""Origins that are buckets of an S3 store, through obstore (`pip install "kvswap[origins]"`).

Only the endpoint that the user typed, or Amazon's, is spoken to.  Credentials come from the environment of the daemon
or from `~/.aws/credentials`, and go nowhere else; without any the bucket is read as the public may.
"""

from __future__ import annotations

import asyncio
import configparser
import hashlib
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from kvswap.core.errors import IntegrityError, NetworkTimeout, NotFound, OriginError, OriginRefused, UsageError
from kvswap.core.limits import LIMITS
from kvswap.core.origin_settings import OriginSettings
from kvswap.origins.port import NEW, Blob, Changed, Listed, OnBytes, checked_name, is_name

try:
    import obstore
    from obstore import exceptions
    from obstore.store import S3Store
except ImportError:  # an extra of the package
    obstore = None

_PIECE = 1 << 20
_CODE = re.compile(r"<Code>([A-Za-z]{1,60})</Code>")
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
_REGION = "us-east-1"  # what most stores other than Amazon's take
_OWN_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


class S3Backend:
    """A bucket, as a place of files."""

    writes = True

    def __init__(self, settings: OriginSettings) -> None:
        """Raise `OriginError` without obstore, `OriginRefused` and `UsageError` for wrong credentials."""
        if obstore is None:
            raise OriginError(
                f"{settings.url} needs a package that is not installed",
                cause="S3 stores are an extra",
                hint='pip install "kvswap[origins]"',
            )
        self.url = settings.url
        bucket, _, prefix = settings.url.removeprefix("s3://").partition("/")
        options: dict[str, Any] = _credentials(settings.profile)
        self._anonymous = options.get("skip_signature", False)
        if settings.endpoint:
            options["endpoint"] = settings.endpoint
        options["region"] = settings.region or os.environ.get("AWS_REGION", "") or _REGION
        client: Any = {"connect_timeout": "10s", "timeout": f"{LIMITS.origin_upload_seconds:.0f}s"}
        try:
            self._store = S3Store(
                bucket,
                prefix=prefix or None,
                client_options=client | {"allow_http": settings.plain},
                retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=LIMITS.origin_seconds)},
                **options,
            )
        except exceptions.BaseError:
            raise OriginRefused(
                f"{self.url} cannot be used with these settings and credentials",
                cause="a part of them is missing, such as AWS_ACCESS_KEY_ID beside the secret",
                hint="docs/origins.md",
            ) from None

    async def check(self) -> None:
        """Look for any file, as `Backend.check`."""
        async for _ in self.files(""):
            break

    async def get(self, name: str, most: int) -> Blob:
        """Read a file, as `Backend.get`."""
        async with asyncio.timeout(LIMITS.origin_seconds):
            with self._failing(name):
                found = await obstore.get_async(self._store, checked_name(name))
                data = bytearray()
                async for piece in found.stream(min_chunk_size=_PIECE):
                    data += memoryview(piece)
                    if len(data) > most:
                        raise OriginError(f"{self.url}: {name} has over {most} bytes", cause="it is something else")
        return Blob(bytes(data), found.meta.get("e_tag") or "")

    async def read_into(self, name: str, into: memoryview, on_bytes: OnBytes, start: int | None = None) -> None:
        """Read a file or a part of it, as `Backend.read_into`."""
        size, have = len(into), 0
        options: Any = {"range": (start, start + size)} if start is not None else {}
        with self._failing(name):
            async with asyncio.timeout(LIMITS.first_byte_seconds):
                found = await obstore.get_async(self._store, checked_name(name), options=options)
            if start is None and found.meta["size"] != size:
                raise IntegrityError(f"{self.url} offers {found.meta['size']} bytes for {name} of {size}")
            pieces = aiter(found.stream(min_chunk_size=_PIECE))
            while True:
                async with asyncio.timeout(LIMITS.stall_seconds):
                    piece = await anext(pieces, None)
                if piece is None:
                    break
                view = memoryview(piece)
                if have + len(view) > size:
                    raise IntegrityError(f"{self.url} sends more than the {size} bytes of {name}")
                into[have : have + len(view)] = view
                have += len(view)
                on_bytes(len(view))
        if have < size:
            raise OriginError(f"{self.url}: {name} ended after {have} of {size} bytes")

    async def put(self, name: str, data: bytes, tag: str | None = None) -> None:
        """Write a file, as `Backend.put`."""
        mode: Any = "overwrite" if tag is None else "create" if tag == NEW else {"e_tag": tag}
        with self._failing(name, writing=True):
            async with asyncio.timeout(LIMITS.origin_upload_seconds):
                # In one piece: a file of several has a tag that is no digest, and conditions do not hold for it.
                await obstore.put_async(self._store, checked_name(name), data, mode=mode, use_multipart=False)

    async def same(self, name: str, data: bytes) -> bool:
        """Compare a file by size and MD5, as `Backend.same`; without an MD5 in the store it counts as another."""
        try:
            with self._failing(name):
                async with asyncio.timeout(LIMITS.origin_seconds):
                    meta = await obstore.head_async(self._store, checked_name(name))
        except NotFound:
            return False
        digest = _MD5.fullmatch(meta.get("e_tag") or "")
        if meta["size"] != len(data) or digest is None:
            return False
        md5 = await asyncio.to_thread(lambda: hashlib.md5(data, usedforsecurity=False).hexdigest())
        return digest[1] == md5

    async def delete(self, name: str) -> None:
        """Remove a file, as `Backend.delete`."""
        try:
            with self._failing(name, writing=True):
                async with asyncio.timeout(LIMITS.origin_seconds):
                    await obstore.delete_async(self._store, checked_name(name))
        except NotFound:
            pass

    async def files(self, prefix: str) -> AsyncIterator[Listed]:
        """List files, as `Backend.files`."""
        pages = aiter(obstore.list(self._store, prefix.rstrip("/") or None, chunk_size=512))
        while True:
            with self._failing(prefix or "a list"):
                async with asyncio.timeout(LIMITS.origin_seconds):
                    page = await anext(pages, None)
            if page is None:
                return
            for row in page:
                if is_name(row["path"]):
                    yield Listed(row["path"], row["size"])

    async def close(self) -> None:
        """Do nothing: the connections end with the store."""

    @contextmanager
    def _failing(self, name: str, *, writing: bool = False) -> Iterator[None]:
        """Convert what obstore raises; of its text only the store's code goes on, as the rest may show too much."""
        try:
            yield
        except TimeoutError as error:
            raise NetworkTimeout(f"{self.url} does not answer for {name}") from error
        except (exceptions.BaseError, OSError) as error:
            raise self._failure(name, error, writing=writing) from None

    def _failure(self, name: str, error: Exception, *, writing: bool) -> NotFound | OriginError:
        found = _CODE.search(str(error))
        code = found[1] if found else type(error).__name__.removesuffix("Error")
        if code == "NoSuchBucket":
            return OriginError(f"{self.url} is not there", cause="there is no such bucket at this store")
        if isinstance(error, FileNotFoundError | exceptions.NotFoundError):
            return NotFound(f"{self.url} does not have {name}")
        conflict = isinstance(error, exceptions.PreconditionError | exceptions.AlreadyExistsError)
        if conflict or code in ("ConditionalRequestConflict", "PreconditionFailed"):
            return Changed(f"{self.url}: somebody else wrote {name} meanwhile")
        if isinstance(error, PermissionError | exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
            if self._anonymous and not writing:
                return NotFound(f"{self.url} shows no {name} to the public")
            cause = "no credentials were found" if self._anonymous else "the credentials are wrong, or do not allow it"
            return OriginRefused(f"{self.url} refuses it ({code})", cause=cause, hint="docs/origins.md")
        if code in ("RequestTimeTooSkewed", "RequestExpired"):
            return OriginRefused(f"{self.url} refuses it ({code})", cause="this machine's clock is wrong", hint="date")
        return OriginError(f"{self.url} failed for {name} ({code})", cause="the store fails, or is not reached")


def _credentials(profile: str) -> dict[str, Any]:
    """Return what obstore needs beside the environment.  Raises `UsageError` for a profile that is not there."""
    if not profile and any(os.environ.get(name) for name in _OWN_CREDENTIALS):
        return {}
    path = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or Path.home() / ".aws" / "credentials")
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read(path)
        section = parser[profile or os.environ.get("AWS_PROFILE") or "default"]
        found = {"access_key_id": section["aws_access_key_id"], "secret_access_key": section["aws_secret_access_key"]}
    except (configparser.Error, KeyError, OSError, UnicodeError) as error:
        if profile:
            raise UsageError(
                f"{path} has no profile {profile!r} with a key", cause="a typing error", hint="aws configure"
            ) from error
        return {"skip_signature": True}
    if "aws_session_token" in section:
        found["session_token"] = section["aws_session_token"]
    return found
