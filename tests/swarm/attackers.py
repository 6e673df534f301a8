"""`python -m tests.swarm.attackers AIM.json KIND …`: strangers that wear a node down, each kind until it is ended.

All of them are in one process, so that they can be held to one core.  It prints `ready` once every kind has done what
it does at least once, and at its end how often each did.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import trio

from kvswap.core.errors import KvswapError, NotFound, PeerBusy
from kvswap.core.ids import Cid
from kvswap.net import messages
from kvswap.net.libp2p.frames import Frames
from tests.swarm import raw

done: Counter[str] = Counter()
BOMB = messages.wire.pack({"ok": 0})[:-1]  # an answer, up to its value
_MAPS = b"\xdd" + (1_000_000).to_bytes(4, "big") + b"\x80" * 1_000_000  # 1,000,000 empty maps
_DEEP = b"\x91" * 1_000_000
_LARGE = (16 << 20).to_bytes(4, "big")


@dataclass(frozen=True)
class Aim:
    """Whom it is about, and what is looked up there while it lasts."""

    address: str
    bulk_port: int
    document: str
    found: messages.Found
    envelope: bytes
    lengths: dict[str, int]  # of the files, by id

    @classmethod
    def read(cls, path: str) -> Aim:
        return msgspec.json.decode(Path(path).read_bytes(), type=cls)


JobPipe = Callable[[Any, Any], Awaitable[None]]
Answer = Callable[[Frames, messages.Request], Awaitable[None]]


# -- peers -----------------------------------------------------------------------------------------------


async def at_once(count: int, work: Callable[[], Awaitable[None]]) -> None:
    """Run the same `count` times side by side, until all have ended."""
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(work)


async def identities(aim: Aim, count: int, pipe: JobPipe, answer: Answer | None = None) -> None:
    """So many PeerIds at a time; each talks until it is cut off, and comes back as somebody else."""

    async def one() -> None:
        while True:
            host = raw.bare_host()
            if answer is not None:
                host.set_stream_handler(raw.KVSWAP, lambda stream: _answering(stream, answer))
            async with raw.running(host):
                try:
                    with trio.fail_after(30):
                        peer = await raw.connect(host, aim.address)
                    await pipe(host, peer)
                except Exception:
                    done["cut off"] += 1
                finally:
                    with trio.move_on_after(1, shield=True):
                        await host.close()
            await trio.sleep(0.05)

    await at_once(count, one)


async def _answering(stream: Any, answer: Answer) -> None:
    frames = Frames(stream)
    try:
        while True:
            await answer(frames, messages.decode_request(await frames.receive(1 << 20)))
    except KvswapError:
        pass
    except Exception:
        await stream.reset()


async def connected(host: Any, peer: Any) -> None:
    """Stay for as long as the connection does."""
    while peer in host.get_connected_peers():
        await trio.sleep(0.2)


async def ok(frames: Frames, body: Any) -> None:
    await frames.send(messages.encode_ok(body))


async def opened(host: Any, peer: Any) -> Any:
    with trio.fail_after(20):
        return await host.new_stream(peer, [raw.KVSWAP])


# -- what is said ----------------------------------------------------------------------------------------


async def gossip(aim: Aim) -> None:
    """Announcements of what is wanted, by made-up signers, and control messages, as fast as they are taken."""

    async def pipe(host: Any, peer: Any) -> None:
        stream = await host.new_stream(peer, [raw.GOSSIP])
        while True:
            for frame in raw.gossip(4, os.urandom(8)):
                await stream.write(raw.varint.encode(len(frame)) + frame)
            rpc = raw.rpc_pb2.RPC()
            for _ in range(16):
                rpc.publish.append(raw.announcement(aim.found.artifact, aim.document))
            frame = rpc.SerializeToString()
            await stream.write(raw.varint.encode(len(frame)) + frame)
            done["gossip"] += 1

    await identities(aim, 4, pipe)


async def announces(aim: Aim) -> None:
    """Messages of 60 KiB, full of announcements that are as large as they may be."""
    keys = raw.create_new_key_pair(os.urandom(32))

    async def pipe(host: Any, peer: Any) -> None:
        stream = await host.new_stream(peer, [raw.GOSSIP])
        while True:
            rpc = raw.rpc_pb2.RPC()
            for _ in range(7):
                message = raw.rpc_pb2.Message(
                    data=b"\x80" * 8_000,
                    topicIDs=(messages.TOPIC,),
                    from_id=raw.ID.from_pubkey(keys.public_key).to_bytes(),
                    seqno=os.urandom(8),
                )
                message.signature = keys.private_key.sign(
                    raw.PUBSUB_SIGNING_PREFIX.encode() + message.SerializeToString()
                )
                message.key = keys.public_key.serialize()
                rpc.publish.append(message)
            frame = rpc.SerializeToString()
            await stream.write(raw.varint.encode(len(frame)) + frame)
            done["announces"] += 1

    await identities(aim, 4, pipe)


async def dht(aim: Aim) -> None:
    """Values and provider records of 4 MB, and of what is just taken, under ever new keys."""
    large = os.urandom(4 << 20)

    async def pipe(host: Any, peer: Any) -> None:
        while True:
            key = b"\x12\x20" + os.urandom(32)
            for frame in (
                raw.put_value(key, large),
                raw.put_value(key, large[:60_000]),
                raw.add_provider(host, key, 200, 200),
                raw.find_node(key),
                raw.get_providers(key),
            ):
                await raw.tell(host, peer, raw.DHT, frame)
            done["dht"] += 1
            if peer not in host.get_connected_peers():
                raise ConnectionError

    await identities(aim, 4, pipe)


async def identify(aim: Aim) -> None:
    """Identify again and again, each time with other protocols and addresses."""

    async def pipe(host: Any, peer: Any) -> None:
        while peer in host.get_connected_peers():
            await raw.tell(host, peer, raw.PUSH, raw.identify(host, 300, os.urandom(8)))
            done["identify"] += 1

    await identities(aim, 4, pipe)


# -- what is asked ---------------------------------------------------------------------------------------


async def finds(aim: Aim) -> None:
    """Requests of every kind, each about something else, on eight streams of each of four peers."""

    async def pipe(host: Any, peer: Any) -> None:
        me = messages.Provider(str(host.get_id()), [])

        async def one() -> None:
            frames = Frames(await opened(host, peer))
            while True:
                name = os.urandom(32)
                artifact = str(Cid.of(name))
                for request in (
                    messages.Find("flood", artifact=artifact, bulk=True),
                    messages.Find("flood", document="sha256:" + name.hex()),
                    messages.Find("flood", chain=[name] * 4_096),
                    messages.GetManifest(artifact),
                    messages.GetPrefixIndex(0),
                    messages.Join(artifact, me, True),
                    messages.GetManifest(aim.found.artifact),
                ):
                    await frames.exchange(messages.encode_request(request), 17 << 20)
                    done["finds"] += 1

        await at_once(8, one)

    await identities(aim, 4, pipe)


async def bombs(aim: Aim) -> None:
    """What is small on the wire and large in memory, as requests and as answers."""
    turn = 0

    async def answer(frames: Frames, request: messages.Request) -> None:
        nonlocal turn
        turn += 1
        done["bombs"] += 1
        await frames.send((BOMB + _MAPS, BOMB + _DEEP, BOMB + b"\xdd\x01\x00\x00\x00" + b"\x80" * (16 << 20))[turn % 3])

    async def pipe(host: Any, peer: Any) -> None:
        while peer in host.get_connected_peers():
            for frame in (_MAPS[:150_000], _DEEP[:150_000], _LARGE, b"\xc9\xff\xff\xff\xff\x01" + b"x" * 1_000):
                stream = await opened(host, peer)
                with trio.move_on_after(5):
                    try:
                        await Frames(stream).send(frame)
                        await stream.read(1)
                    except Exception:
                        await stream.reset()
                done["bombs"] += 1

    await identities(aim, 4, pipe, answer)


# -- places ----------------------------------------------------------------------------------------------


async def connections(aim: Aim) -> None:
    """Three hundred identities that connect and say nothing, and come again when they are hung up on."""

    async def pipe(host: Any, peer: Any) -> None:
        done["connections"] += 1
        await connected(host, peer)

    await identities(aim, 300, pipe)


async def streams(aim: Aim) -> None:
    """Sixteen identities, each with as many streams as it gets, on which nothing is said."""

    async def pipe(host: Any, peer: Any) -> None:
        while peer in host.get_connected_peers():
            try:
                await opened(host, peer)
                done["streams"] += 1
            except Exception:
                await trio.sleep(0.1)

    await identities(aim, 16, pipe)


async def windows(aim: Aim) -> None:
    """Streams full of requests whose answers nobody reads."""
    frame = messages.encode_request(messages.Find("flood", chain=[b"\1" * 32] * 4_096))

    async def pipe(host: Any, peer: Any) -> None:
        async def one() -> None:
            stream = await opened(host, peer)
            while True:
                await Frames(stream).send(frame)
                done["windows"] += 1

        await at_once(24, one)

    await identities(aim, 8, pipe)


async def drips(aim: Aim) -> None:
    """Requests that come byte by byte, and chunks that are asked for and not read."""
    find = messages.encode_request(messages.Find("flood", document=aim.document))
    chunks = [messages.encode_request(messages.GetChunk(cid)) for cid in aim.lengths]

    async def pipe(host: Any, peer: Any) -> None:
        async def slowly() -> None:
            stream = await opened(host, peer)
            for byte in len(find).to_bytes(4, "big") + find:
                await stream.write(bytes([byte]))
                done["drips"] += 1
                await trio.sleep(0.2)
            await stream.read(1)

        async def unread() -> None:
            stream = await opened(host, peer)
            for frame in chunks:
                await Frames(stream).send(frame)
            await trio.sleep(30)

        async with trio.open_nursery() as nursery:
            for _ in range(12):
                nursery.start_soon(slowly)
                nursery.start_soon(unread)

    await identities(aim, 8, pipe)


async def bulk(aim: Aim) -> None:
    """The HTTPS port: connections that say nothing, heads that drip, and answers that are hardly read."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    async def silent() -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", aim.bulk_port)
        done["bulk"] += 1
        await stream.receive_some(1)

    async def secured(head: bytes) -> None:
        stream = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", aim.bulk_port), context)
        await stream.do_handshake()
        done["bulk"] += 1
        for byte in head:
            await stream.send_all(bytes([byte]))
            await trio.sleep(0.5)

    async def again(work: Callable[..., Awaitable[None]], *args: Any) -> None:
        while True:
            with trio.move_on_after(20):
                try:
                    await work(*args)
                except Exception:
                    done["cut off"] += 1
            await trio.sleep(0.1)

    async def pipe(host: Any, peer: Any) -> None:
        frames = Frames(await opened(host, peer))
        join = messages.Join(aim.found.artifact, messages.Provider(str(host.get_id()), []), True)
        reply = await frames.exchange(messages.encode_request(join), 1 << 20)
        grant = messages.decode_response(reply, messages.JoinReply).grant
        if grant is None:
            return

        async def unread() -> None:
            stream = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", aim.bulk_port), context)
            for cid in aim.lengths:
                await stream.send_all(
                    f"GET /v1/chunks/{cid} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {grant.token}\r\n\r\n".encode()
                )
                for _ in range(100):
                    await stream.receive_some(1_000)
                    await trio.sleep(0.1)

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(again, unread)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(identities, aim, 2, pipe)
        for _ in range(60):
            nursery.start_soon(again, silent)
            nursery.start_soon(again, secured, b"GET /v1/chunks/x HTTP/1.1\r\n" * 2)


# -- what is offered -------------------------------------------------------------------------------------


async def offers(aim: Aim) -> None:
    """The wanted artifact, offered whole: its chunks are wrong, silent, slow, or not there after all."""

    def lying(kind: int) -> Answer:
        async def answer(frames: Frames, request: messages.Request) -> None:
            done["offers"] += 1
            if isinstance(request, messages.Find):
                await ok(frames, messages.FindReply("liar", aim.found.publisher, [aim.found], []))
            elif isinstance(request, messages.GetManifest):
                await ok(frames, aim.envelope)
            elif isinstance(request, messages.Join):
                await ok(frames, messages.JoinReply(b"\xff" * (1 + len(aim.lengths) // 8), [], None))
            elif isinstance(request, messages.Have):
                await ok(frames, messages.HaveReply(b"\xff" * (1 + len(aim.lengths) // 8), []))
            elif isinstance(request, messages.GetChunk):
                await _lie(frames, kind, aim.lengths.get(request.cid, 1))
            else:
                await frames.send(messages.encode_error(NotFound("nothing")))

        return answer

    async with trio.open_nursery() as nursery:
        for kind in range(5):
            nursery.start_soon(identities, aim, 2, connected, lying(kind))


async def _lie(frames: Frames, kind: int, length: int) -> None:
    if kind == 0:
        await ok(frames, os.urandom(length))
    elif kind == 1:
        await trio.sleep_forever()
    elif kind == 2:
        body = messages.encode_ok(bytes(length))
        await frames._stream.write(len(body).to_bytes(4, "big"))
        for at in range(0, len(body), 1_000):
            await frames._stream.write(body[at : at + 1_000])
            await trio.sleep(0.2)
    else:
        await frames.send(messages.encode_error(NotFound("gone") if kind == 3 else PeerBusy("later")))


async def holds(aim: Aim) -> None:
    """Sixty-four artifacts that fit, none of which has a manifest; answers that take as long as they may."""

    async def answer(frames: Frames, request: messages.Request) -> None:
        done["holds"] += 1
        if isinstance(request, messages.Find):
            if os.urandom(1)[0] % 2:
                await trio.sleep(4.5)
            made = [msgspec.structs.replace(aim.found, artifact=str(Cid.of(os.urandom(8)))) for _ in range(64)]
            addresses = [f"/ip4/127.0.0.1/tcp/{1_024 + os.urandom(2)[0]}"]
            named = [messages.Provider(str(raw.bare_host().get_id()), addresses) for _ in range(4)]
            await ok(frames, messages.FindReply("liar", aim.found.publisher, made, named))
        else:
            await trio.sleep_forever()

    await identities(aim, 8, connected, answer)


KINDS: dict[str, Callable[[Aim], Awaitable[None]]] = {
    kind.__name__: kind
    for kind in (
        *(gossip, announces, dht, identify, finds, bombs),
        *(connections, streams, windows, drips, bulk, offers, holds),
    )
}
ANSWERING = ("offers", "holds")  # these do something only when they are asked
LEAST = {"connections": 30, "streams": 30, "bulk": 60}  # before it counts as begun


async def main(path: str, kinds: list[str]) -> None:
    aim = Aim.read(path)

    async def report() -> None:
        while not all(done[kind] >= LEAST.get(kind, 1) for kind in kinds if kind not in ANSWERING):
            await trio.sleep(0.05)
        print("ready", flush=True)

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as ended:
        async with trio.open_nursery() as nursery:
            for kind in kinds:
                nursery.start_soon(KINDS[kind], aim)
            nursery.start_soon(report)
            async for _ in ended:
                print(json.dumps(done), flush=True)
                os._exit(0)  # hundreds of peers are not asked to say goodbye


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2:])
