"""What the proxy itself asks a llama-server for: slots saved and restored, prompts rendered and tokenised."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from kvswap.core.errors import KvswapError
from kvswap.integrations.llamacpp.proxy.forward import Forwarder

_ANSWER_BYTES = 64 << 20  # of one answer: the ids of a million tokens take ten
_SLOTS = 1_024
_IDS = 4 << 20


class ServerRefused(KvswapError):
    """The error for a llama-server that does not answer the proxy in time, or refuses what it asks for."""

    code = "llama_refused"
    usual = ("it is busy, or of a release that does this otherwise", "curl http://127.0.0.1:8080/kvswap/status")


@dataclass(frozen=True, slots=True)
class SlotView:
    """A slot as the server shows it; `task` is the number of its last request, or -1."""

    id: int
    busy: bool
    task: int
    context: int


class SlotServer:
    """The llama-server behind a forwarder, asked with the key of its own command line."""

    def __init__(self, forwarder: Forwarder, api_key: str = "", prefix: str = "") -> None:
        self._forwarder, self._base = forwarder, forwarder.url + prefix
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    async def ask(self, method: str, path: str, body: object = None, *, seconds: float) -> Any:
        """Ask for JSON, and return it.  Raises `ServerRefused` after so many seconds, or for another answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = self._headers | ({} if data is None else {"Content-Type": "application/json"})
        try:
            async with asyncio.timeout(seconds):
                async with self._forwarder.session.request(
                    method, self._base + path, data=data, headers=headers
                ) as answer:
                    text = await answer.content.read(_ANSWER_BYTES)
                    while len(text) < _ANSWER_BYTES and (more := await answer.content.read(_ANSWER_BYTES - len(text))):
                        text += more
                    status = answer.status
        except TimeoutError:
            raise ServerRefused(f"llama-server did not answer {path} within {seconds:g} s") from None
        except aiohttp.ClientError as error:
            raise ServerRefused(f"llama-server did not answer {path}: {error}", cause="it has ended") from error
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ServerRefused(f"llama-server answered {path} with something other than JSON") from error
        if status != 200:
            raise ServerRefused(f"llama-server answered {path} with status {status}: {_reason(found)}")
        return found

    async def healthy(self) -> bool:
        """Return True once the model is loaded."""
        try:
            await self.ask("GET", "/health", seconds=2.0)
        except ServerRefused:
            return False
        return True

    async def slots(self, seconds: float) -> list[SlotView]:
        """Return all slots.  Raises `ServerRefused`."""
        found = await self.ask("GET", "/slots", seconds=seconds)
        try:
            return [
                SlotView(int(one["id"]), bool(one["is_processing"]), int(one.get("id_task", -1)), int(one["n_ctx"]))
                for one in found[:_SLOTS]
            ]
        except (LookupError, TypeError, ValueError) as error:
            raise ServerRefused("llama-server shows its slots in a form that is not known") from error

    async def save(self, slot: int, name: str, seconds: float) -> int:
        """Let the server save a slot, and return the tokens saved.  Raises `ServerRefused`."""
        return await self._act(slot, "save", name, "n_saved", seconds)

    async def restore(self, slot: int, name: str, seconds: float) -> int:
        """Let the server restore a slot from a file, and return the tokens restored.  Raises `ServerRefused`."""
        return await self._act(slot, "restore", name, "n_restored", seconds)

    async def erase(self, slot: int, seconds: float) -> None:
        """Let the server forget what a slot holds.  Raises `ServerRefused`."""
        await self.ask("POST", f"/slots/{slot}?action=erase", {}, seconds=seconds)

    async def _act(self, slot: int, action: str, name: str, counted: str, seconds: float) -> int:
        found = await self.ask("POST", f"/slots/{slot}?action={action}", {"filename": name}, seconds=seconds)
        count = found.get(counted) if isinstance(found, dict) else None
        if type(count) is not int or not 0 <= count <= _IDS:
            raise ServerRefused(f"llama-server does not say how many tokens it did {action}")
        return count

    async def render(self, body: dict[str, Any], seconds: float) -> str:
        """Return the text that the server's template makes of a chat.  Raises `ServerRefused`."""
        found = await self.ask("POST", "/apply-template", body, seconds=seconds)
        text = found.get("prompt") if isinstance(found, dict) else None
        if not isinstance(text, str):
            raise ServerRefused("llama-server rendered no prompt")
        return text

    async def tokenize(self, text: str, seconds: float) -> list[int]:
        """Return the ids of a prompt as the server itself makes them.  Raises `ServerRefused`."""
        body = {"content": text, "add_special": True, "parse_special": True}
        found = await self.ask("POST", "/tokenize", body, seconds=seconds)
        ids = found.get("tokens") if isinstance(found, dict) else None
        if not isinstance(ids, list) or not all(type(one) is int for one in ids):
            raise ServerRefused("llama-server made no ids of a prompt")
        return ids

    async def count_messages(self, body: dict[str, Any], seconds: float) -> int:
        """Return how many ids the server makes of an Anthropic request.  Raises `ServerRefused`."""
        found = await self.ask("POST", "/v1/messages/count_tokens", body, seconds=seconds)
        count = found.get("input_tokens") if isinstance(found, dict) else None
        if type(count) is not int:
            raise ServerRefused("llama-server does not count the tokens of messages")
        return count

    async def prefill(self, slot: int, ids: Sequence[int], seconds: float) -> int:
        """Let the server prefill ids in a slot, and return how many it had cached.  Raises `ServerRefused`."""
        body = {"prompt": list(ids), "n_predict": 0, "id_slot": slot, "cache_prompt": True, "temperature": 0}
        found = await self.ask("POST", "/completion", body, seconds=seconds)
        try:
            return int(found["timings"]["cache_n"])
        except (LookupError, TypeError, ValueError) as error:
            raise ServerRefused("llama-server does not say how many tokens were cached") from error

    async def vocabulary(self, seconds: float) -> int:
        """Return the number of ids that the model has.  Raises `ServerRefused`."""
        found = await self.ask("GET", "/v1/models", seconds=seconds)
        try:
            return int(found["data"][0]["meta"]["n_vocab"])
        except (LookupError, TypeError, ValueError) as error:
            raise ServerRefused("llama-server does not say how many ids its model has") from error


def _reason(found: Any) -> str:
    error = found.get("error") if isinstance(found, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return str(message)[:200] if message else "no reason given"
