"""The two ends of the bulk plane over real TLS sockets, and peers that do not keep to it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvswap.core.errors import IntegrityError, KvswapError, NetworkTimeout, NotFound, PeerBusy, PeerError, TokenRefused
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.net.bulk import BulkClient, BulkIdentity, BulkServer, BulkTarget, Tokens, check_record
from kvswap.net.bulk import client as bulk_client
from kvswap.net.bulk import server as bulk_server
from kvswap.net.bulk.client import BulkUnreachable
from kvswap.net.bulk.server import byte_range
from kvswap.net.bulk.tls import TlsSocket
from tests.support import HeldChunk, key, run

DATA = random.Random(0).randbytes(3_000_017)
CID = Cid.of(DATA)


class Chunks:
    """Serves one chunk, or what a test wants."""

    def __init__(self) -> None:
        self.body = HeldChunk(DATA)
        self.error: KvswapError | None = None
        self.refused: KvswapError | None = None
        self.permitted: list[Any] = []
        self.sent: list[tuple[str, int]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    def permit(self, peer: str, cid: Cid, artifacts: Any) -> None:
        self.permitted.append(artifacts)
        if self.refused is not None:
            raise self.refused

    @contextmanager
    def open(self, peer: str, cid: Cid) -> Iterator[HeldChunk]:
        if self.error is not None:
            raise self.error
        if cid != CID:
            raise NotFound(f"chunk {cid} is not here")
        yield self.body

    @property
    def paced(self) -> bool:
        return not self.gate.is_set()

    async def turn(self, peer: str, size: int) -> None:
        await self.gate.wait()

    def count(self, peer: str, size: int) -> None:
        self.sent.append((peer, size))


class Plane:
    """A server, a client, and a target for it."""

    def __init__(self) -> None:
        self.chunks, self.tokens, self.client = Chunks(), Tokens(), BulkClient()
        self.server = BulkServer(BulkIdentity.create(key(3)), self.tokens, self.chunks)

    @property
    def target(self) -> BulkTarget:
        record = self.server.record
        assert record is not None
        return BulkTarget(record.peer, "127.0.0.1", record.port, record.certificate, self.tokens.issue("reader"))

    async def get(self, target: BulkTarget, cid: Cid = CID, length: int = len(DATA)) -> bytes:
        into = bytearray(length)
        await self.client.get(target, cid, memoryview(into))
        return bytes(into)


@asynccontextmanager
async def plane() -> AsyncIterator[Plane]:
    made = Plane()
    await made.server.start(["127.0.0.1"], 0)
    try:
        yield made
    finally:
        await made.client.close()
        await made.server.stop()


def test_a_chunk_arrives_whole_on_a_connection_that_is_kept() -> None:
    async def body() -> None:
        async with plane() as p:
            target = p.target
            for _ in range(5):
                assert await p.get(target) == DATA
            assert p.server.connections == 1
            assert {peer for peer, _ in p.chunks.sent} == {"reader"}
            assert sum(n for _, n in p.chunks.sent) == 5 * len(DATA)
            assert await asyncio.gather(*(p.get(target) for _ in range(6))) == [DATA] * 6

    run(body())


def test_the_record_is_of_its_signer_alone() -> None:
    async def body() -> None:
        async with plane() as p:
            record = p.server.record
            assert record is not None
            check_record(record, str(key(3).peer_id))
            for forged in (
                (record, str(key(4).peer_id)),
                (_changed(record, peer=str(key(4).peer_id)), str(key(4).peer_id)),
                (_changed(record, port=1), record.peer),
                (_changed(record, certificate=b"\0" * 32), record.peer),
            ):
                with pytest.raises(IntegrityError):
                    check_record(*forged)

    run(body())


def _changed(record: Any, **fields: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(record, **fields)


def test_another_certificate_is_not_spoken_to() -> None:
    async def body() -> None:
        async with plane() as p:
            with pytest.raises(BulkUnreachable, match="certificate"):
                await p.get(replace(p.target, certificate=b"\0" * 32))
            assert p.chunks.sent == []

    run(body())


def test_nobody_listens() -> None:
    async def body() -> None:
        async with plane() as p:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                with pytest.raises(BulkUnreachable):
                    await p.get(replace(p.target, port=free.getsockname()[1]))

    run(body())


def test_tokens_are_needed_and_a_replayed_one_opens_nothing() -> None:
    async def body() -> None:
        async with plane() as p:
            target = p.target
            assert await p.get(target) == DATA
            p.tokens.revoke(target.token)  # what the end of the stream does
            with pytest.raises(TokenRefused):
                await p.get(target)
            with pytest.raises(TokenRefused):
                await p.get(replace(p.target, token=""))
            with pytest.raises(TokenRefused):
                await p.get(replace(p.target, token=p.tokens.issue("reader", 0.0)))

    run(body())


def test_refusals_keep_their_meaning() -> None:
    async def body() -> None:
        async with plane() as p:
            with pytest.raises(NotFound):
                await p.get(p.target, Cid.of(b"other"))
            p.chunks.error = PeerBusy("later")
            with pytest.raises(PeerBusy):
                await p.get(p.target)
            p.chunks.error = IntegrityError("the disk changed it")
            with pytest.raises(NotFound):
                await p.get(p.target)
            p.chunks.error = None
            with pytest.raises(IntegrityError, match="offers"):
                await p.get(p.target, length=len(DATA) - 1)
            assert await p.get(p.target) == DATA

    run(body())


@pytest.mark.parametrize(
    "wanted,status,expected",
    [
        ("bytes=0-9", 206, DATA[:10]),
        ("bytes=1000000-", 206, DATA[1_000_000:]),
        ("bytes=-5", 206, DATA[-5:]),
        ("bytes=10-99999999", 206, DATA[10:]),
        (f"bytes={len(DATA)}-", 416, None),
        ("bytes=9-1", 416, None),
        ("bytes=0-1,5-6", 416, None),
        ("lines=1-2", 416, None),
    ],
)
def test_ranges(wanted: str, status: int, expected: bytes | None) -> None:
    async def body() -> None:
        async with plane() as p, aiohttp.ClientSession() as session:
            target = p.target
            url = f"https://127.0.0.1:{target.port}/v1/chunks/{CID}"
            headers = {"Authorization": f"Bearer {target.token}", "Range": wanted}
            async with session.get(url, headers=headers, ssl=aiohttp.Fingerprint(target.certificate)) as response:
                assert response.status == status
                if expected is not None:
                    assert await response.read() == expected
                    start = DATA.index(expected[:50])
                    assert response.headers["Content-Range"] == f"bytes {start}-{start + len(expected) - 1}/{len(DATA)}"

    run(body())


@pytest.mark.parametrize(
    "method,path,status", [("POST", f"/v1/chunks/{CID}", 405), ("GET", "/", 400), ("GET", "/v1/chunks/../x", 400)]
)
def test_other_requests(method: str, path: str, status: int) -> None:
    async def body() -> None:
        async with plane() as p, aiohttp.ClientSession() as session:
            target = p.target
            async with session.request(
                method,
                f"https://127.0.0.1:{target.port}{path}",
                headers={"Authorization": f"Bearer {target.token}"},
                ssl=aiohttp.Fingerprint(target.certificate),
            ) as response:
                assert response.status == status

    run(body())


def test_giving_up_a_chunk_ends_the_reading_at_once() -> None:
    async def body() -> None:
        async with plane() as p:
            p.chunks.gate.clear()
            into = bytearray(len(DATA))
            task = asyncio.create_task(p.client.get(p.target, CID, memoryview(into)))
            while not p.server.connections:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, 600)
            assert not p.client._threads._work_queue.qsize()
            p.chunks.gate.set()  # now the server would send
            await asyncio.sleep(0.5)
            assert into == bytearray(len(DATA))  # and nothing writes to it any more
            assert await p.get(p.target) == DATA

    run(body())


async def _answering(script: Any) -> tuple[asyncio.Server, BulkTarget, BulkIdentity]:
    """A TLS server whose every connection runs `script(reader, writer)`."""
    identity = BulkIdentity.create(key(5))
    server = await asyncio.start_server(script, "127.0.0.1", 0, ssl=identity.context)
    port = server.sockets[0].getsockname()[1]
    return server, BulkTarget(str(key(5).peer_id), "127.0.0.1", port, identity.certificate, "token"), identity


HEAD = f"HTTP/1.1 200 OK\r\nContent-Length: {len(DATA)}\r\n\r\n".encode()
SCRIPTS = {
    "ends early": (HEAD + DATA[:1000], PeerError),
    "says another length": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde", IntegrityError),
    "says no length": (b"HTTP/1.1 200 OK\r\n\r\n" + DATA, IntegrityError),
    "is chunked": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n", IntegrityError),
    "is not HTTP": (b"\x16\x03\x01" * 50 + b"\r\n", PeerError),
    "sends endless headers": (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 200_000, PeerError),
    "redirects": (b"HTTP/1.1 302 Found\r\nLocation: https://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", PeerError),
    "says nothing": (b"", PeerError),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_server_that_does_not_keep_to_it(name: str) -> None:
    answer, error = SCRIPTS[name]

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def body() -> None:
        server, target, _ = await _answering(script)
        client = BulkClient()
        try:
            with pytest.raises(error) as caught:
                await client.get(target, CID, memoryview(bytearray(len(DATA))))
            assert caught.type is error or issubclass(caught.type, error)
        finally:
            await client.close()
            server.close()

    run(body())


def test_silence_in_the_middle_is_a_time_out() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + DATA[:5000])
        await reader.read()
        writer.close()

    async def body() -> None:
        object.__setattr__(LIMITS, "stall_seconds", 0.3)
        server, target, _ = await _answering(script)
        client = BulkClient()
        try:
            with pytest.raises(NetworkTimeout):
                await client.get(target, CID, memoryview(bytearray(len(DATA))))
        finally:
            await client.close()
            server.close()

    before = LIMITS.stall_seconds
    try:
        run(body())
    finally:
        object.__setattr__(LIMITS, "stall_seconds", before)


def test_silent_and_too_many_connections_are_closed() -> None:
    """Connections that ask for nothing: a host has so many, and they end when their time is over."""

    async def body() -> None:
        async with plane() as p:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            most = LIMITS.bulk_connections_per_host
            held = []
            for _ in range(most + 10):
                try:
                    held.append(await asyncio.open_connection("127.0.0.1", p.server.port, ssl=context))
                except (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError):
                    continue
            await asyncio.sleep(0.1)
            assert p.server.connections <= most
            ended = [asyncio.wait_for(reader.read(), 600) for reader, _ in held]
            await asyncio.gather(*ended, return_exceptions=True)
            while p.server.connections:
                await asyncio.sleep(0.05)
            for _, writer in held:
                writer.close()
            assert await p.get(p.target) == DATA  # and there is room again

    before = LIMITS.bulk_idle_seconds
    try:
        object.__setattr__(LIMITS, "bulk_idle_seconds", 3.0)  # long enough to open them all
        run(body())
    finally:
        object.__setattr__(LIMITS, "bulk_idle_seconds", before)


@pytest.mark.parametrize("how", ["a handshake", "a request"])
def test_a_peer_that_drips_is_ended_when_its_time_is_over(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte of a record that never becomes whole restarts no clock."""
    monkeypatch.setattr(bulk_server, "_HANDSHAKE_SECONDS", 0.5 if how == "a handshake" else 3600.0)

    async def body() -> None:
        async with plane() as p:
            reader, writer = await asyncio.open_connection("127.0.0.1", p.server.port)
            if how == "a request":
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
                tls = context.wrap_bio(into, out)
                while True:
                    try:
                        tls.do_handshake()
                        break
                    except ssl.SSLWantReadError:
                        writer.write(out.read())
                        into.write(await reader.read(65_536))
                writer.write(out.read())
                tls.write(b"GET /v1/chunks/" + b"x" * 4000)
                drip = out.read()
            else:
                drip = b"\x16\x03\x01\x10\x00" + bytes(4096)  # the beginning of a ClientHello
            ended = asyncio.create_task(reader.read())
            for byte in drip[:-8]:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.005)
                if ended.done():
                    break
            assert ended.done()
            await asyncio.wait([ended])
            while p.server.connections:
                await asyncio.sleep(0.01)
            writer.close()

    before = LIMITS.bulk_idle_seconds
    try:
        object.__setattr__(LIMITS, "bulk_idle_seconds", 0.5)
        run(body())
    finally:
        object.__setattr__(LIMITS, "bulk_idle_seconds", before)


def test_a_reader_that_takes_too_little_is_dropped() -> None:
    """Half a minute for a piece, whatever becomes of its parts."""
    here, there = socket.socketpair()
    with here, there:
        here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        tls = TlsSocket(here, BulkIdentity.create(key()).context, server=True)
        client = TlsSocket(there, bulk_client._context())
        with ThreadPoolExecutor(1) as other:
            done = other.submit(client.handshake, 10)
            tls.handshake(10)
            done.result()
        with pytest.raises(TimeoutError):
            tls.sendall(bytes(1 << 20), 0.2)


@given(
    st.binary(min_size=1, max_size=40),
    st.one_of(st.none(), st.integers(0, 60)),
    st.one_of(st.none(), st.integers(0, 60)),
)
def test_a_range_is_what_slicing_says(data: bytes, first: int | None, last: int | None) -> None:
    text = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    end = (data[-last:] if last else b"") if first is None else b""
    expected = end if first is None else data[first : None if last is None else last + 1]
    found = byte_range(text, len(data))
    assert (data[found[0] : found[1]] if found else b"") == expected


def test_a_body_a_flood_of_headers_and_noise_end_the_connection() -> None:
    """What is not a small GET is answered with an error or nothing, and costs nobody else anything."""

    async def body() -> None:
        async with plane() as p:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            for raw in (
                b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabcde",
                b"GET / HTTP/1.1\r\nHost: a\r\n" + b"x: y\r\n" * 5000,
                b"\x00\xff" * 3000,
                b"GET /" + b"a" * 100_000,
            ):
                reader, writer = await asyncio.open_connection("127.0.0.1", p.server.port, ssl=context)
                with contextlib.suppress(ConnectionError):
                    writer.write(raw)
                    answer = await asyncio.wait_for(reader.read(), 600)
                    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
                writer.close()
            assert await p.get(p.target) == DATA

    run(body())


def test_requests_on_one_connection_are_answered_in_order() -> None:
    async def body() -> None:
        async with plane() as p:
            target = p.target
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            reader, writer = await asyncio.open_connection("127.0.0.1", target.port, ssl=context)
            for wanted in ("0-4", "10-14"):  # both before the first answer is read
                writer.write(
                    f"GET /v1/chunks/{CID} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {target.token}\r\n"
                    f"Range: bytes={wanted}\r\n\r\n".encode()
                )
            for expected in (DATA[:5], DATA[10:15]):
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 206")
                assert await reader.readexactly(5) == expected
            writer.close()

    run(body())


def test_a_server_that_stops_ends_what_is_under_way() -> None:
    async def body() -> None:
        async with plane() as p:
            p.chunks.gate.clear()
            waiting = asyncio.create_task(p.get(p.target))
            while not p.server.connections:
                await asyncio.sleep(0.01)
            await p.server.stop()
            with pytest.raises(PeerError):
                await asyncio.wait_for(waiting, 600)
            while p.server.connections:
                await asyncio.sleep(0.01)

    run(body())


def test_connections_to_servers_that_are_gone_are_closed() -> None:
    """A peer that restarts has another port: nobody asks at the old one again, where a connection would stay open."""

    class Gone:
        def __init__(self, number: int) -> None:
            self.endpoint, self.peer = ("127.0.0.1", number, b""), str(number)
            self.connected, self.usable, self.closed = True, True, False

        def close(self) -> None:
            self.closed = True

    client = BulkClient()
    gone = [Gone(number) for number in range(100)]
    for connection in gone:
        client._give(connection)  # type: ignore[arg-type]
    assert sum(not c.closed for c in gone) == len(client._idle) == 64 and gone[0].closed
    for connection in gone:
        connection.usable = False
    client._look_at = 0.0  # a second later
    client._give(last := Gone(100))  # type: ignore[arg-type]
    assert client._idle == [last] and all(c.closed for c in gone)


def test_a_connection_that_the_server_ended_is_closed_at_the_next_chunk() -> None:
    """A peer that was killed and comes back has another port; its former connections are not kept until they age."""

    async def body() -> None:
        async with plane() as p:
            for _ in range(3):
                gone = Plane()
                await gone.server.start(["127.0.0.1"], 0)
                await asyncio.gather(*(p.client.get(gone.target, CID, memoryview(bytearray(len(DATA)))) for _ in "ab"))
                await gone.server.stop()
                await gone.client.close()
            target = p.target
            await p.get(target)
            while {c.endpoint for c in p.client._idle} != {target.endpoint}:  # until the end of each has come
                await asyncio.sleep(0.01)
                await p.get(target)
            assert p.server.connections == 1  # the one that is good goes on being used

    run(body())
