"""The sender of the blocking client, on the standard library's HTTP, so that importing it costs little."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

from kvswap.client import calls
from kvswap.client.answers import (
    HEADER,
    HEARTBEAT,
    NDJSON,
    REQUEST_HEADER,
    error_of,
    joined_rows,
    message_of,
    not_ours,
    not_there,
    note_answer,
    silence_seconds,
    silent,
    went_away,
    whole_answer,
)
from kvswap.client.calls import Call
from kvswap.client.target import Address, Target
from kvswap.core.errors import KvswapError
from kvswap.core.failures import as_kvswap_error

P = ParamSpec("P")
T = TypeVar("T")


def call_here(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function: what the asyncio client does in a thread."""
    return function(*args, **kwargs)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _connection(address: Address, timeout: float) -> http.client.HTTPConnection:
    if address.socket is not None:
        return _UnixConnection(address.socket, timeout)
    url = urlsplit(address.url)
    return http.client.HTTPConnection(str(url.hostname), url.port, timeout=timeout)


class Sender:
    """The sender of calls to one daemon, a connection for each."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def lines(self, call: Call[Any]) -> Generator[dict[str, Any], None, None]:
        """Yield the messages of an answer; of one that is no answer of lines, the whole as a result."""
        where, address = self._target.where, self._target.address()
        connection = _connection(address, call.head_seconds)
        body, headers = _body(call, address)
        waits, began = call.head_seconds, time.monotonic()
        try:
            try:
                connection.connect()
            except (ConnectionError, FileNotFoundError) as error:  # the latter: of a Unix socket
                raise not_there(where) from error
            sock = connection.sock  # which the answer may take from the connection
            try:
                connection.request(call.method, call.path, body, headers)
            except ConnectionError:  # it may have said why before it closed
                if isinstance(body, calls.FrameSource) and body.error is not None:
                    raise  # it was not the daemon that ended it
                sock.settimeout(calls.SHORT_SECONDS)
                with contextlib.suppress(http.client.HTTPException):
                    refused = connection.getresponse()
                    raise error_of(message_of(refused.read(), where), refused.status) from None
                raise
            response = connection.getresponse()
            note_answer(call, response.status, response.headers.get(REQUEST_HEADER), began)
            if call.rows and response.headers.get("Content-Type") == NDJSON:
                yield joined_rows(_split(response), call, where)
                return
            if response.status != 200 or not call.lines:
                answer = response.read()
                if response.status != 200:
                    raise error_of(message_of(answer, where), response.status)
                yield whole_answer(answer, call, where)
                return
            waits = silence_seconds(call, response.headers.get(HEADER))
            sock.settimeout(waits)
            while line := response.readline():
                message = message_of(line, where)
                if message.get("event") != HEARTBEAT:
                    yield message
        except KvswapError:
            raise
        except (OSError, http.client.HTTPException) as error:  # what a callback of the caller's raises is not seen here
            if isinstance(body, calls.FrameSource) and body.error is not None:
                raise body.error from None
            raise self._error_of(error, waits) from error
        finally:
            connection.close()

    def pieces(self, call: Call[Any], on_headers: Callable[[Mapping[str, str]], None]) -> Generator[bytes, None, None]:
        """Yield an answer that is bytes, piece by piece, after `on_headers` was called with its headers."""
        where, address = self._target.where, self._target.address()
        connection = _connection(address, call.seconds)
        waits, began = call.seconds, time.monotonic()
        try:
            try:
                connection.connect()
            except (ConnectionError, FileNotFoundError) as error:
                raise not_there(where) from error
            sock = connection.sock
            connection.request(call.method, call.path, headers=address.headers)
            response = connection.getresponse()
            note_answer(call, response.status, response.headers.get(REQUEST_HEADER), began)
            waits = calls.SHORT_SECONDS
            sock.settimeout(waits)
            if response.status != 200:
                raise error_of(message_of(response.read(), where), response.status)
            on_headers(dict(response.headers.items()))
            left = response.length or 0
            while piece := response.read(calls.PIECE):
                left -= len(piece)
                yield piece
            if left:  # which http.client does not say of an answer that is read in pieces
                raise went_away()
        except KvswapError:
            raise
        except (OSError, http.client.HTTPException) as error:
            raise self._error_of(error, waits) from error
        finally:
            connection.close()

    def _error_of(self, error: Exception, waited: float) -> KvswapError:
        if isinstance(error, TimeoutError):
            return silent(self._target.where, waited)
        if isinstance(error, ConnectionError | http.client.IncompleteRead):
            return went_away(error)
        if isinstance(error, http.client.HTTPException):
            return not_ours(self._target.where)
        return as_kvswap_error(error, "calling the daemon")


def _body(call: Call[Any], address: Address) -> tuple[bytes | calls.FrameSource | None, dict[str, str]]:
    if call.body is not None:
        return json.dumps(call.body).encode(), {**address.headers, "Content-Type": "application/json"}
    headers = {**address.headers, "Accept": NDJSON} if call.rows else address.headers
    return calls.FrameSource(call.frames) if call.frames is not None else None, headers


def _split(response: http.client.HTTPResponse) -> Generator[bytes, None, None]:
    """Yield the lines of an answer, of which each is longer than what `readline` takes at once."""
    parts: list[bytes] = []
    while piece := response.read1(calls.PIECE):
        first, *others = piece.split(b"\n")
        parts.append(first)
        for other in others:
            yield b"".join(parts)
            parts = [other]
    if any(parts):  # a line that has no end
        raise http.client.IncompleteRead(b"".join(parts))
