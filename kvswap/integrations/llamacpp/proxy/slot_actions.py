"""What clients do to slots themselves: `/slots/N?action=...` is parsed and booked, or refused.

A slot file says neither of which model it is nor by whom it was computed, and one that is cut off ends the server.  So
only files that were saved through this proxy are restored, and only if they are as they were.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web
from blake3 import blake3

from kvswap.core.atomic import write_atomic
from kvswap.core.errors import KvswapError, MalformedState
from kvswap.core.files import read_regular
from kvswap.integrations.llamacpp import parse_slot_file
from kvswap.integrations.llamacpp.proxy.forward import Forwarder, first_part, server_error
from kvswap.integrations.llamacpp.proxy.keeper import Keeper

logger = logging.getLogger("kvswap.llama")

_BODY_BYTES = 64 << 10
_FILE_BYTES = 1 << 36
_BOOKED = 10_000
_NOT_SUPPORTED = "This server does not support slots action. Start it with `--slot-save-path`"


@dataclass(frozen=True, slots=True)
class SlotActions:
    """The actions on slots, with the directory that the user gave for slot files, or None.

    `books` has a file for each slot file that was saved here, named by its digest.
    """

    keeper: Keeper
    forwarder: Forwarder
    directory: Path | None
    books: Path

    async def answer(self, request: web.Request, slot: str) -> web.StreamResponse:
        """Answer a request for an action on a slot."""
        action = request.query.get("action", "")
        if not slot.isascii() or not slot.isdecimal() or action not in ("save", "restore", "erase"):
            return await self.forwarder.forward(request, (await first_part(request, _BODY_BYTES))[0])
        if self.directory is None and action != "erase":
            return self._refuse(501, _NOT_SUPPORTED, "not_supported_error")
        body, longer = await first_part(request, _BODY_BYTES)
        if longer is not None:
            return self._refuse(400, "the request is larger than an action is", "invalid_request_error")
        # A client that leaves with its answer would cancel what is to be booked after it.
        return await asyncio.shield(asyncio.create_task(self._locked(request, body, int(slot), action)))

    async def _locked(self, request: web.Request, body: bytes, slot: int, action: str) -> web.StreamResponse:
        async with self.keeper.lock:
            return await self._act(request, body, slot, action)

    async def _act(self, request: web.Request, body: bytes, slot: int, action: str) -> web.StreamResponse:
        path = self._path(body)
        ids: tuple[int, ...] | None = None
        if action == "restore":
            if path is None:
                return self._refuse(400, "no name of a slot file", "invalid_request_error")
            try:
                ids = await asyncio.to_thread(self._check, path)
            except (KvswapError, OSError) as error:
                return self._refuse(400, f"the slot file is not restored: {error}", "invalid_request_error")
        response = await self.forwarder.forward(request, body)
        if response.status == 200:
            if action == "save" and path is not None:
                await asyncio.to_thread(self._book, path)
            elif action == "restore":
                self.keeper.booked(slot, ids)
            elif action == "erase":
                self.keeper.booked(slot, ())
        return response

    def _path(self, body: bytes) -> Path | None:
        try:
            found: Any = json.loads(body)
        except (ValueError, RecursionError):
            return None
        name = found.get("filename") if isinstance(found, dict) else None
        if (
            self.directory is None
            or not isinstance(name, str)
            or not name
            or "/" in name
            or "\0" in name
            or name[0] == "."
        ):
            return None
        return self.directory / name

    def _check(self, path: Path) -> tuple[int, ...]:
        """Return the ids of a slot file that was saved here and is as it was.

        Raises `MalformedState` or `Incompatible` for any other, or `OSError`.
        """
        data = read_regular(path, _FILE_BYTES)
        file = parse_slot_file(data)
        if not (self.books / blake3(data).hexdigest()).exists():
            raise MalformedState(
                f"{path.name} was not saved through this proxy",
                cause="nothing says which model made it, and what follows would be kept as this model's",
                hint="restore it in a llama-server without kvswap",
            )
        return file.ids

    def _book(self, path: Path) -> None:
        try:
            digest = blake3(read_regular(path, _FILE_BYTES)).hexdigest()
            self.books.mkdir(parents=True, exist_ok=True, mode=0o700)
            booked = sorted(self.books.iterdir(), key=lambda one: one.stat().st_mtime)
            for old in booked[: max(0, len(booked) + 1 - _BOOKED)]:
                old.unlink(missing_ok=True)
            write_atomic(self.books / digest, b"")
        except (KvswapError, OSError) as error:
            logger.warning("llama: a slot file that a client saved will not be restored: %s", error)

    def _refuse(self, status: int, message: str, kind: str) -> web.Response:
        self.keeper.counts.refused_actions += 1
        return server_error(status, message, kind)
