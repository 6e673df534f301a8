"""The host's client of its vLLM server: token ids in, pieces of text out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

from kvswap.core.errors import IntegrityError, KvswapError, PeerError, UsageError
from kvswap.core.limits import LIMITS

_READY_SECONDS = 300.0
_SHORT = aiohttp.ClientTimeout(total=10)


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of an answer: text, token ids, and with the last ones the reason why it finished and the usage.

    `usage` is (prompt tokens, those of them that were in the cache, tokens generated).
    """

    text: str = ""
    ids: tuple[int, ...] = ()
    finish: str | None = None
    usage: tuple[int, int, int] | None = None


class EngineFailed(PeerError):
    """The error for a vLLM server that is not reached, or failed at a request."""

    code = "engine"


class EngineClient:
    """A client of the vLLM server at `url`, whose `--api-key` is `key` (empty for none)."""

    def __init__(self, url: str, key: str = "") -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._session: aiohttp.ClientSession | None = None
        self.model = ""  # the server's name for its model

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0)  # `admission` limits how many requests run
            tracing = aiohttp.TraceConfig()
            tracing.on_request_chunk_sent.append(_notify_sent)
            self._session = aiohttp.ClientSession(
                headers=self._headers, read_bufsize=1 << 20, connector=connector, trace_configs=[tracing]
            )
        return self._session

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def ready(self, alive: Callable[[], bool]) -> None:
        """Wait until the server answers, and learn its model's name.

        It gives up after five minutes, or once `alive` returns False.  Raises `EngineFailed`, or `UsageError` for a
        wrong key.
        """
        deadline = asyncio.get_running_loop().time() + _READY_SECONDS
        while True:
            try:
                async with self._open().get(f"{self._url}/v1/models", timeout=_SHORT) as response:
                    if response.status == 401:
                        raise UsageError(f"the engine at {self._url} wants a key", hint="KVSWAP_ENGINE_KEY=...")
                    if response.status == 200:
                        self.model = str((await response.json())["data"][0]["id"])
                        return
            except (aiohttp.ClientError, TimeoutError, LookupError, ValueError):
                pass
            if asyncio.get_running_loop().time() > deadline or not alive():
                raise EngineFailed(
                    f"no vLLM server answers at {self._url}", cause="it did not start, or is somewhere else"
                )
            await asyncio.sleep(0.2)

    async def check(self) -> None:
        """Check that the server reports how many prompt tokens were cached, on which metering depends.

        Raises `UsageError` if it does not.
        """
        async for piece in self.complete([1, 2, 3], {"max_tokens": 1}, "kvswap-check"):
            if piece.usage is not None:
                return
        raise UsageError(
            f"the engine at {self._url} does not say how many tokens were cached",
            hint="vllm serve --enable-prompt-tokens-details",
        )

    async def complete(
        self, ids: list[int], options: dict[str, Any], salt: str, sent: Callable[[], None] = lambda: None
    ) -> AsyncIterator[Piece]:
        """Yield the continuation of these token ids; `sent` is called once the server has the request.

        `options` are vLLM's sampling parameters, `salt` is its `cache_salt`.  Raises `UsageError` for what the server
        refuses, `EngineFailed` for all else.  The caller has to limit the total time.
        """
        body = {
            **options,
            "model": self.model,
            "prompt": ids,
            "cache_salt": salt,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=LIMITS.host_first_seconds)
        url = f"{self._url}/v1/completions"
        try:
            async with self._open().post(url, json=body, timeout=timeout, trace_request_ctx=sent) as response:
                if response.status != 200:
                    raise await _refused(response)
                async for line in response.content:
                    data = line.removeprefix(b"data:").strip()
                    if not line.startswith(b"data:") or data == b"[DONE]":
                        continue
                    yield _piece(json.loads(data))
        except (aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError) as error:
            raise EngineFailed(f"the engine failed: {type(error).__name__}: {str(error)[:200]}") from error


async def _notify_sent(session: aiohttp.ClientSession, context: Any, sent: Any) -> None:
    if callable(notify := context.trace_request_ctx):
        notify()


async def _refused(response: aiohttp.ClientResponse) -> KvswapError:
    try:
        body = json.loads(await response.content.read(64 * 1024))
        message = str(body["error"]["message"])[:300]
    except (ValueError, LookupError, TypeError):
        message = f"status {response.status}"
    if response.status == 400:
        return UsageError(f"the engine refuses this: {message}")
    return EngineFailed(f"the engine failed: {message}")


def _piece(chunk: dict[str, Any]) -> Piece:
    if "error" in chunk:
        raise EngineFailed(f"the engine failed: {str(chunk['error'])[:300]}")
    usage = None
    if reported := chunk.get("usage"):
        details = reported.get("prompt_tokens_details")
        if details is not None:
            usage = (
                int(reported["prompt_tokens"]),
                int(details.get("cached_tokens") or 0),
                int(reported["completion_tokens"]),
            )
            if not 0 <= usage[1] <= usage[0]:
                raise IntegrityError(f"the engine says that {usage[1]} of {usage[0]} tokens were cached")
    choices = chunk.get("choices") or []
    if not choices:
        return Piece(usage=usage)
    (choice,) = choices
    return Piece(choice.get("text") or "", tuple(choice.get("token_ids") or ()), choice.get("finish_reason"), usage)
