"""What a request costs before it is known to be one, and what large answers that are no chunks take."""

from __future__ import annotations

import asyncio
import os
import ssl
import tempfile
from pathlib import Path
from typing import Any

import pytest

from kvswap.core.errors import PeerError
from kvswap.core.limits import LIMITS
from kvswap.exchange.serving import uploads
from kvswap.net import PeerAddress, messages
from kvswap.net.bulk import BulkIdentity
from kvswap.net.memory import MemoryNetwork, MemoryTransport
from kvswap.net.server import RemoteCaller, Server
from kvswap.trust import Key
from tests.exchange.test_fetch import SERVICES, world
from tests.support import key, make_artifact, run

NOT_REQUESTS = [
    b"\xdd" + (100_000).to_bytes(4, "big") + b"\x80" * 100_000,
    b"\x80",
    b"\xc1",
    messages.encode_ok(b""),
    messages.encode_request(messages.Have("x")) + b"\0",
]


@pytest.mark.parametrize("frame", NOT_REQUESTS, ids=range(len(NOT_REQUESTS)))
def test_who_goes_on_sending_what_is_no_request_is_a_flood(frame: bytes) -> None:
    async def body() -> None:
        told: list[tuple[str, str]] = []

        async def answer(caller: RemoteCaller, request: messages.Request) -> Any:
            return b""

        network = MemoryNetwork()
        a, b = (MemoryTransport(network, str(key(n).peer_id)) for n in (1, 2))
        await a.start(Server(answer, flooded=lambda peer, how: told.append((peer, how))), lambda announcement: None)
        await b.start(lambda stream: asyncio.sleep(0), lambda announcement: None)
        await b.connect(PeerAddress(a.peer))
        for number in range(int(LIMITS.offences_at_once) + 1):
            assert not told, f"after {number}"
            stream = await b.open(a.peer)
            await stream.send(frame, 5)
            with pytest.raises(PeerError):
                await stream.receive(1 << 20, 600)
        while not told:
            await asyncio.sleep(0.01)
        assert told[0] == (b.peer, "sends what is no request")
        await a.stop()
        await b.stop()

    run(body())


def test_manifests_and_catalogues_wait_for_room_as_chunks_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=100)
            a, b = await w.node(), await w.node()
            w.give(a, made)
            peer = PeerAddress(a.transport.peer)
            reader = b.transport.peer
            taken: list[int] = []
            real = uploads.UploadQuota.acquire

            async def acquire(headroom: Any, who: str, size: int) -> None:
                await real(headroom, who, size)
                assert who == reader
                taken.append(size)

            monkeypatch.setattr(uploads.UploadQuota, "acquire", acquire)
            envelope = await b.network.ask(peer, messages.GetManifest(made.id), bytes)
            catalogue = await b.network.ask(peer, messages.GetPrefixIndex(0), messages.PrefixIndexReply)
            assert envelope == made.statement.envelope and catalogue.keys
            assert taken == [len(envelope), len(catalogue.keys)]
            headroom = SERVICES[a].serving.uploads._quota
            while headroom.used:  # and it is given back when it is sent
                await asyncio.sleep(0.01)
            await real(headroom, reader, LIMITS.upload_bytes_per_peer)
            asked = asyncio.create_task(b.network.ask(peer, messages.GetManifest(made.id), bytes))
            await asyncio.sleep(0.2)
            assert not asked.done()
            headroom.release(reader, LIMITS.upload_bytes_per_peer)
            assert await asked == envelope

    run(body())


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no files of memory here")
def test_a_node_s_key_is_never_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made: list[str] = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *a, **k: made.append(str(path)) or real(path, *a, **k))
    paths: list[str] = []
    load = ssl.SSLContext.load_cert_chain

    def loaded(context: ssl.SSLContext, path: str, *more: Any) -> None:
        paths.append(path)
        load(context, path, *more)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", loaded)
    before = len(list(Path("/proc/self/fd").iterdir()))
    BulkIdentity.create(Key.from_seed(bytes(32)))
    assert [p.startswith("/proc/self/fd/") for p in paths] == [True]
    assert not [p for p in made if p.startswith(str(tmp_path))] and not list(tmp_path.iterdir())
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("head", ["Content-Length: 5", "Transfer-Encoding: chunked", "Content-Length: 00"])
def test_a_body_is_refused_by_its_head_at_the_bulk_plane(head: str) -> None:
    """Not waited for; nothing of the exchange is taken for it."""
    from tests.net.bulk.test_bulk import CID, plane

    async def body() -> None:
        async with plane() as p:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            target = p.target
            reader, writer = await asyncio.open_connection("127.0.0.1", target.port, ssl=context)
            asked = (
                f"GET /v1/chunks/{CID} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {target.token}\r\n{head}\r\n\r\n"
            )
            writer.write(asked.encode())
            async with asyncio.timeout(20):  # a slow body would be waited for for 30
                status = await reader.readline()
            assert int(status.split()[1]) in (400, 413)
            assert p.chunks.sent == []
            writer.close()

    run(body())
