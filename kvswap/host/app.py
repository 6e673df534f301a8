"""The HTTP API of a host: OpenAI's completions for invited clients, its documents and offer, and a client's usage."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from aiohttp import web

from kvswap.core.errors import UsageError
from kvswap.core.limits import LIMITS
from kvswap.host.admission import Admission
from kvswap.host.answers import Answer, error_event
from kvswap.host.engine import EngineClient
from kvswap.host.hosted_request import HostedRequest
from kvswap.host.prompts import ParsedPrompt, Prompts
from kvswap.host.usage_log import HostClient, UsageLog
from kvswap.net.failing import answering, errors_for_guests, for_guests
from kvswap.trust.hosting import VERSION, Offer, Receipt, SignedOffer, SignedReceipt, Tariff, sign_offer
from kvswap.trust.keys import Key

logger = logging.getLogger("kvswap.host")

_CLIENT = web.RequestKey("client", HostClient)
_OFFER_SECONDS = 3_600
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Served:
    """The model that a host serves, and its prices."""

    label: str
    identity: bytes
    dtype: str
    tariff: Tariff


@dataclass(slots=True)
class Warmth:
    """A host's own last measurement of a document: seconds to the first token, tokens from the cache, and when."""

    seconds: float
    cached: int
    at: float = field(default_factory=time.time)


class HostApi:
    """The HTTP handlers of one host."""

    def __init__(
        self,
        served: Served,
        key: Key,
        usage_log: UsageLog,
        admission: Admission,
        prompts: Prompts,
        engine: EngineClient,
    ) -> None:
        self._served, self._key, self._usage_log = served, key, usage_log
        self._admission, self._prompts, self._engine = admission, prompts, engine
        self._offer: SignedOffer | None = None
        self._unwritten: list[tuple[Receipt, int | None]] = []  # usage records that could not be written yet
        self._paying = asyncio.Lock()
        self.warmth: dict[str, Warmth] = {}

    def application(self) -> web.Application:
        """Return the aiohttp application with all routes."""
        app = web.Application(middlewares=[errors_for_guests, self._guard], client_max_size=LIMITS.host_request_bytes)
        routes = [
            web.get("/healthz", self.healthz),
            web.get("/v1/models", self.models),
            web.get("/v1/offer", self.offer),
            web.get("/v1/documents", self.documents),
            web.get("/v1/documents/{document}", self.document),
            web.get("/v1/usage", self.usage),
            web.post("/v1/chat/completions", self.chat),
            web.post("/v1/completions", self.completion),
        ]
        app.add_routes(answering(routes))
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Authenticate the client, before any other handler."""
        if request.path != "/healthz":
            if "Origin" in request.headers:
                raise UsageError("this host does not answer web pages")
            request[_CLIENT] = await asyncio.to_thread(self._admission.client, request.headers.get("Authorization", ""))
        return await handler(request)

    # -- what is here ----------------------------------------------------------------------------

    async def healthz(self, request: web.Request) -> web.Response:
        """Answer `GET /healthz`, the only route that needs no token."""
        return web.json_response({"ok": True})

    async def models(self, request: web.Request) -> web.Response:
        """Answer `GET /v1/models` with the one model that is served."""
        row = {"id": self._served.label, "object": "model", "created": 0, "owned_by": "kvswap"}
        return web.json_response({"object": "list", "data": [row]})

    def current_offer(self) -> SignedOffer:
        """Return the signed offer, which is renewed when half of its lifetime is over."""
        now = int(time.time())
        if self._offer is None or self._offer.offer.expires - now < _OFFER_SECONDS // 2:
            served = self._served
            offer = Offer(
                version=VERSION,
                host=str(self._key.peer_id),
                model=served.identity,
                label=served.label,
                dtype=served.dtype,
                tariff=served.tariff,
                issued=now,
                expires=now + _OFFER_SECONDS,
            )
            self._offer = sign_offer(offer, self._key)
            self._usage_log.add_offer(self._offer)
        return self._offer

    async def offer(self, request: web.Request) -> web.Response:
        """Answer `GET /v1/offer` with the envelope of the signed offer, in base64."""
        signed = await asyncio.to_thread(self.current_offer)
        return web.json_response({"offer": base64.b64encode(signed.envelope).decode()})

    async def documents(self, request: web.Request) -> web.Response:
        """Answer `GET /v1/documents` with all hosted documents."""
        references = await asyncio.to_thread(self._usage_log.references)
        return web.json_response({"documents": [await asyncio.to_thread(self._shown, ref) for ref in references]})

    async def document(self, request: web.Request) -> web.Response:
        """Answer `GET /v1/documents/{document}` with one hosted document."""
        return web.json_response(await asyncio.to_thread(self._shown, request.match_info["document"]))

    def _shown(self, reference: str) -> dict[str, Any]:
        (name, artifact), tokens = self._usage_log.named(reference), self._prompts.tokens(reference)
        warm = self.warmth.get(reference)
        return {
            "document": reference,
            "name": name,
            "artifact": artifact,
            "tokens": tokens,
            "cached_tokens": warm.cached if warm else None,
            "first_seconds": round(warm.seconds, 4) if warm else None,
        }

    async def usage(self, request: web.Request) -> web.Response:
        """Answer `GET /v1/usage` with the client's own usage records after the number `?after=`, 100 at most."""
        try:
            after = int(request.query.get("after", "0"))
            if not 0 <= after < 1 << 63:
                raise ValueError
        except ValueError:
            raise UsageError("after is the number of a read") from None
        receipts = await asyncio.to_thread(self._usage_log.receipts, request[_CLIENT].id, after, 100)
        return web.json_response({"reads": [_receipt(receipt) | receipt.read.to_json() for receipt in receipts]})

    # -- asking ----------------------------------------------------------------------------------

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Answer `POST /v1/chat/completions`."""
        return await self._answer(request, self._prompts.chat, chat=True)

    async def completion(self, request: web.Request) -> web.StreamResponse:
        """Answer `POST /v1/completions`."""
        return await self._answer(request, self._prompts.completion, chat=False)

    async def _answer(
        self, request: web.Request, parse: Callable[[dict[str, Any]], ParsedPrompt], *, chat: bool
    ) -> web.StreamResponse:
        client = request[_CLIENT]
        with self._admission.reading(client):
            body = await _body(request)  # whole, before the request takes a place that others wait for
        await self._write_unwritten()
        offer = await asyncio.to_thread(self.current_offer)  # its prices apply, whenever the answer ends
        with self._admission.admit(client) as admitted:
            asked = await asyncio.to_thread(parse, body)
            admitted.reserve(len(asked.ids) + asked.most)
            hosted = HostedRequest(
                asked,
                admitted.tokens,
                partial(self._engine.complete, asked.ids, asked.options, self._admission.salt(client)),
                partial(self.record, client, asked, offer),
            )
            answer = Answer(self._served.label, chat=chat)
            if asked.stream:
                return await self._stream(request, hosted, answer)
            async with aclosing(hosted.pieces()) as pieces:  # type: ignore[type-var]
                async for _ in pieces:
                    pass
            usage = _usage(await hosted.record())
            return web.json_response(answer.whole("".join(hosted.texts), hosted.ids, hosted.finish, usage))

    async def _stream(self, request: web.Request, hosted: HostedRequest, answer: Answer) -> web.StreamResponse:
        async with aclosing(hosted.pieces()) as pieces:  # type: ignore[type-var]
            first = await anext(pieces, None)  # before the head is sent, so that a refusal has a status of its own
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
            await response.prepare(request)
            try:
                if first is not None:
                    await _write(response, answer.piece(first.text, first.ids, first.finish))
                async for piece in pieces:
                    await _write(response, answer.piece(piece.text, piece.ids, piece.finish))
                usage = _usage(await hosted.record())
                await _write(response, answer.end(usage if hosted.asked.usage else None))
            except ConnectionError:
                raise  # the client went away
            except Exception as error:  # noqa: BLE001 - the boundary of an answer that has begun
                await _write(response, error_event(for_guests(error, "answering").to_dict()))
        await response.write_eof()
        return response

    async def record(
        self,
        client: HostClient,
        asked: ParsedPrompt,
        offer: SignedOffer,
        cached: int,
        generated: int,
        quota: int | None = None,
    ) -> SignedReceipt:
        """Sign and store the usage record of a request.

        `cached` and `generated` are the tokens from the cache and of the answer; `quota` is the number of tokens to
        count against the client's day, if it differs from the record's.
        """
        served = self._served
        prefilled = len(asked.ids) - cached
        receipt = Receipt(
            version=VERSION,
            host=str(self._key.peer_id),
            number=0,
            previous=bytes(32),
            client=client.id,
            document=bytes.fromhex(asked.document.removeprefix("sha256:")) if asked.document else None,
            model=served.identity,
            offer=offer.digest,
            read=cached,
            prefilled=prefilled,
            made=generated,
            picodollars=offer.offer.tariff.picodollars(cached, prefilled, generated),
            ended=int(time.time()),
        )
        try:
            return await asyncio.to_thread(self._usage_log.add_receipt, receipt, self._key, quota)
        except Exception:  # a full disk, most likely: the client has its answer by now
            self._unwritten.append((receipt, quota))
            raise

    async def _write_unwritten(self) -> None:
        """Write usage records that failed when their requests ended, so that nobody is served while none can be stored.

        Raises the error that still prevents it.
        """
        async with self._paying:
            while self._unwritten:
                receipt, quota = self._unwritten[0]
                await asyncio.to_thread(self._usage_log.add_receipt, receipt, self._key, quota)
                self._unwritten.pop(0)


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        async with asyncio.timeout(LIMITS.request_seconds):
            body = json.loads(await request.read())
    except TimeoutError:
        raise UsageError("the request's body did not arrive in time") from None
    except (ValueError, RecursionError) as error:
        raise UsageError("the request's body is not JSON") from error
    if not isinstance(body, dict):
        raise UsageError("the request's body is not a JSON object")
    return body


def _usage(signed: SignedReceipt) -> dict[str, Any]:
    """Return OpenAI's usage object, with the signed usage record under `kvswap`."""
    receipt = signed.read
    return {
        "prompt_tokens": receipt.read + receipt.prefilled,
        "completion_tokens": receipt.made,
        "total_tokens": receipt.read + receipt.prefilled + receipt.made,
        "prompt_tokens_details": {"cached_tokens": receipt.read},
        "kvswap": _receipt(signed) | {"number": receipt.number, "dollars": receipt.to_json()["dollars"]},
    }


async def _write(response: web.StreamResponse, data: bytes) -> None:
    """Send data, treating a client that accepts none for too long as gone."""
    try:
        async with asyncio.timeout(LIMITS.upload_piece_seconds):
            await response.write(data)
    except TimeoutError:
        raise ConnectionResetError("the client reads nothing") from None


def _receipt(signed: SignedReceipt) -> dict[str, Any]:
    return {"receipt": base64.b64encode(signed.envelope).decode()}
