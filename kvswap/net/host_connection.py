"""The client of a host: HTTPS with a certificate of the host's own key, and a bearer token.

An invitation holds what is needed: `kvswap-host:` and base64url of msgpack [url, host's PeerId, token].
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import aiohttp
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kvswap.core import wire
from kvswap.core.errors import (
    IntegrityError,
    KvswapError,
    NotFound,
    PeerError,
    QuotaExceeded,
    TokenRefused,
    UsageError,
)
from kvswap.core.ids import PeerId
from kvswap.core.limits import LIMITS
from kvswap.net.dialling import host_and_port, origin_of
from kvswap.net.web import JudgedResolver

_PREFIX = "kvswap-host:"
_SHORT_SECONDS = 10.0
_SHORT_BYTES = 64 * 1024  # limit for an answer that is not streamed, and for a line of a stream
_PARTS: Any = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Invitation:
    """The URL of a host, the PeerId of its key, and the token that admits the holder."""

    url: str
    peer: str
    token: str = field(repr=False)

    def to_text(self) -> str:
        """Return the invitation as one line of text, which contains the secret token."""
        packed = wire.pack([self.url, self.peer, self.token])
        return _PREFIX + base64.urlsafe_b64encode(packed).decode().rstrip("=")

    @classmethod
    def from_text(cls, text: str, *, plain: bool = False) -> Invitation:
        """Parse an invitation; `plain` says that the user accepts http, as an invitation itself cannot.

        Raises `UsageError` if it is malformed, or its URL is http without `plain`.
        """
        text = text.strip()
        if not text.startswith(_PREFIX) or len(text) > 4_096:
            raise UsageError("not an invitation of a host", hint="kvswap host invite NAME, on the host")
        packed = text.removeprefix(_PREFIX)
        try:
            data = base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4))
        except (binascii.Error, ValueError) as error:
            raise UsageError("not an invitation of a host", cause="a part of it is missing") from error
        url, peer, token = wire.unpack(data, _PARTS, UsageError, items=4)
        if not re.fullmatch(r"[\x21-\x7e]{1,256}", token):
            raise UsageError("not an invitation of a host", cause="its token could not be sent")
        return cls(origin_of(url, plain=plain), str(PeerId.parse(peer)), token)


class HostConnection:
    """A client of one host, which bounds every answer in bytes and in time."""

    def __init__(self, invitation: Invitation) -> None:
        self._invitation = invitation
        self._fingerprint: aiohttp.Fingerprint | None = None

    @property
    def peer(self) -> str:
        """The PeerId of the host."""
        return self._invitation.peer

    async def get(self, path: str) -> dict[str, Any]:
        """Fetch a JSON object.

        Raises `IntegrityError` if another key answers there, `PeerError` if the host is not reached, and `NotFound`,
        `TokenRefused`, `QuotaExceeded` or `UsageError` if the host answers with that error.
        """
        async with self._request("GET", path, None, _SHORT_SECONDS) as response:
            return _object(await _body(response, _SHORT_BYTES))

    async def offer(self) -> bytes:
        """Fetch the signed envelope of the host's offer, unverified.  Raises `PeerError` and what `get` raises."""
        try:
            return base64.b64decode(str((await self.get("/v1/offer"))["offer"]), validate=True)
        except (LookupError, ValueError) as error:
            raise PeerError(f"{self.peer} made no offer") from error

    async def document(self, reference: str) -> dict[str, Any]:
        """Fetch what the host says of a document that it hosts.

        Raises `NotFound` if it does not, and what `get` raises.
        """
        return await self.get(f"/v1/documents/{quote(reference, safe=':')}")

    async def ask(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Yield the chunks of a streamed chat completion, decoded from JSON; the last one has `usage`.

        Raises `PeerError` if the answer exceeds `LIMITS.host_answer_bytes`, and what `get` raises.
        """
        body = body | {"stream": True, "stream_options": {"include_usage": True}}
        async with self._request(
            "POST", "/v1/chat/completions", body, LIMITS.host_seconds + LIMITS.host_first_seconds
        ) as response:
            size = 0
            async for line in response.content:
                size += len(line)
                if size > LIMITS.host_answer_bytes or len(line) > _SHORT_BYTES:
                    raise PeerError(f"{self.peer} answers with more than {LIMITS.host_answer_bytes} bytes")
                data = line.removeprefix(b"data:").strip()
                if not line.startswith(b"data:") or data == b"[DONE]":
                    continue
                chunk = _object(data)
                if "error" in chunk:
                    raise _remote_error(self.peer, chunk["error"])
                yield chunk

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, body: dict[str, Any] | None, seconds: float
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        timeout = aiohttp.ClientTimeout(
            total=seconds, sock_connect=_SHORT_SECONDS, sock_read=min(seconds, LIMITS.host_first_seconds)
        )
        headers = {"Authorization": f"Bearer {self._invitation.token}"}
        try:
            pinned = await self._pinned()
            async with (
                aiohttp.ClientSession(
                    timeout=timeout,
                    headers=headers,
                    read_bufsize=_SHORT_BYTES,
                    connector=aiohttp.TCPConnector(resolver=JudgedResolver()),
                ) as session,
                session.request(
                    method, self._invitation.url + path, json=body, ssl=pinned, allow_redirects=False
                ) as response,
            ):
                if response.status != 200:
                    raise await _refused(self.peer, response)
                yield response
        except aiohttp.ServerFingerprintMismatch as error:
            self._fingerprint = None
            raise PeerError(f"the host {self.peer} has another certificate now", cause="it was restarted") from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise PeerError(
                f"the host {self.peer} was not reached: {type(error).__name__}", cause="it is down, or elsewhere now"
            ) from error
        except ValueError as error:  # aiohttp raises it for an overlong line
            raise PeerError(f"the host {self.peer} answered in another format") from error

    async def _pinned(self) -> aiohttp.Fingerprint | bool:
        """Return the fingerprint of the host's certificate after checking that it is of the host's own key.

        No request is sent before that is known.  Returns True for http, which the user accepted when joining.
        """
        if self._invitation.url.startswith("http:"):
            return True  # the user said so when joining
        host, port = host_and_port(self._invitation.url)
        if self._fingerprint is None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            async with asyncio.timeout(_SHORT_SECONDS):
                found = await JudgedResolver().resolve(host, port)
                _, writer = await asyncio.open_connection(found[0]["host"], port, ssl=context, server_hostname=host)
            shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            writer.close()
            key = x509.load_der_x509_certificate(shown).public_key()
            own = PeerId.parse(self.peer).public_key
            if not isinstance(key, Ed25519PublicKey) or key.public_bytes(Encoding.Raw, PublicFormat.Raw) != own:
                raise IntegrityError(
                    f"whoever answers at {self._invitation.url} is not {self.peer}", cause="somebody is in between"
                )
            self._fingerprint = aiohttp.Fingerprint(hashlib.sha256(shown).digest())
        return self._fingerprint


async def _body(response: aiohttp.ClientResponse, most: int) -> bytes:
    data = bytearray()
    async for piece in response.content.iter_chunked(64 * 1024):
        data += piece
        if len(data) > most:
            raise PeerError(f"an answer of more than {most} bytes")
    return bytes(data)


async def _refused(peer: str, response: aiohttp.ClientResponse) -> KvswapError:
    try:
        return _remote_error(peer, _object(await _body(response, 64 * 1024)).get("error"))
    except PeerError:
        return PeerError(f"the host {peer} answered with status {response.status}")


def _remote_error(peer: str, error: Any) -> KvswapError:
    """Convert the error that a host sent into one of the error types that a host may raise here."""
    details = error if isinstance(error, dict) else {}
    message = f"the host {peer}: {str(details.get('message', 'failed'))[:300]}"
    kinds: tuple[type[KvswapError], ...] = (NotFound, TokenRefused, QuotaExceeded, UsageError)
    return next((kind for kind in kinds if kind.code == details.get("code")), PeerError)(message)


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PeerError("a host answered with something that is not JSON") from error
    if not isinstance(value, dict):
        raise PeerError("a host answered with something that is no object")
    return value
