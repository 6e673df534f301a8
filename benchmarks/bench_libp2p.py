"""One libp2p stream: what py-libp2p itself reaches, what our framed transport reaches, and a whole fetch.

Two processes each time, loopback, Noise and Yamux, side by side in one run.  The bare server writes
1 MiB pieces; ours serves 2 MB frames four ahead; the fetch takes chunks from A's store into B's,
verified and indexed, by `kvswap fetch` without the bulk channel (that one is in `bench_bulk.py`).

    python benchmarks/bench_libp2p.py [MB]
"""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.common import table  # noqa: E402

MB = int(next((a for a in sys.argv[1:] if a.isdigit()), "192"))
FRAME = 2_000_000


def _bare_host():  # type: ignore[no-untyped-def]
    from libp2p import new_host
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.crypto.x25519 import create_new_key_pair as noise_keys
    from libp2p.security.noise.transport import PROTOCOL_ID, Transport

    keys = create_new_key_pair(os.urandom(32))
    return new_host(key_pair=keys, sec_opt={PROTOCOL_ID: Transport(keys, noise_keys().private_key)})


def serve_bare() -> None:
    import multiaddr
    import trio

    async def main() -> None:
        host = _bare_host()

        async def handler(stream):  # type: ignore[no-untyped-def]
            size = int.from_bytes(await stream.read(8), "big")
            piece = os.urandom(1 << 20)
            while size > 0:
                await stream.write(piece[: min(size, len(piece))])
                size -= len(piece)
            await stream.close()

        host.set_stream_handler("/bench/1", handler)
        async with host.run(listen_addrs=[multiaddr.Multiaddr("/ip4/127.0.0.1/tcp/0")]):
            print(host.get_addrs()[0], flush=True)
            await trio.sleep_forever()

    trio.run(main)


def fetch_bare(address: str) -> float:
    import multiaddr
    import trio
    from libp2p.peer.peerinfo import info_from_p2p_addr

    async def main() -> float:
        host = _bare_host()
        async with host.run(listen_addrs=[multiaddr.Multiaddr("/ip4/127.0.0.1/tcp/0")]):
            info = info_from_p2p_addr(multiaddr.Multiaddr(address))
            await host.connect(info)
            stream = await host.new_stream(info.peer_id, ["/bench/1"])
            size, have = MB * 1_000_000, 0
            began = time.perf_counter()
            await stream.write(size.to_bytes(8, "big"))
            while have < size:
                have += len(await stream.read(1 << 20))
            return time.perf_counter() - began

    return trio.run(main)


def _transport():  # type: ignore[no-untyped-def]
    from kvswap.core.settings import Settings
    from kvswap.net.libp2p.transport import Libp2pTransport

    return Libp2pTransport(os.urandom(32), Settings(home=Path("/"), models=Path("/"), mdns=False))


def serve_ours() -> None:
    async def main() -> None:
        node = _transport()
        frame = os.urandom(FRAME)

        async def handler(stream):  # type: ignore[no-untyped-def]
            while True:
                await stream.receive(100, 600)
                await stream.send(frame, 60)

        await node.start(handler, lambda a: None)
        print(node.addresses()[0], flush=True)
        await asyncio.sleep(3600)

    asyncio.run(main())


def fetch_ours(address: str) -> float:
    async def main() -> float:
        from kvswap.core.ids import peer_of
        from kvswap.net import PeerAddress

        node = _transport()

        async def ignore(stream):  # type: ignore[no-untyped-def]
            await stream.reset()

        await node.start(ignore, lambda a: None)
        peer = peer_of(address)
        await node.connect(PeerAddress(peer, (address,)))
        stream = await node.open(peer)
        count = MB * 1_000_000 // FRAME
        began = time.perf_counter()
        for _ in range(4):
            await stream.send(b"next", 10)
        for number in range(count):
            assert len(await stream.receive(FRAME, 60)) == FRAME
            if number + 4 < count:
                await stream.send(b"next", 10)
        took = time.perf_counter() - began
        await node.stop()
        return took

    return asyncio.run(main())


def pair(kind: str) -> tuple[float, float]:
    """(MB/s, CPU-seconds of the reader) of one kind."""
    server = subprocess.Popen([sys.executable, __file__, f"--serve-{kind}"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    address = server.stdout.readline().strip()
    try:
        done = subprocess.run(
            [sys.executable, __file__, f"--fetch-{kind}", address, str(MB)], capture_output=True, text=True, check=True
        )
    finally:
        server.kill()
        server.wait()
    took, cpu = map(float, done.stdout.split())
    return MB / took, cpu


def whole_fetch() -> tuple[float, float]:
    """(MB/s of wire bytes, seconds) of `kvswap fetch --force` over libp2p streams alone, look-up included."""
    from kvswap.artifact.specs import LayerSpec
    from tests.support import Daemon, key, kvswap, last_json, make_artifact, stock, until

    with tempfile.TemporaryDirectory() as scratch:
        home_a, home_b = Path(scratch) / "a", Path(scratch) / "b"
        specs = (LayerSpec.key_value("full", 3, 64, 64),) * 30
        made = make_artifact(key(), tokens=256 * max(1, MB // 4), block_tokens=256, specs=specs)
        stock(home_a, made)
        env = {"KVSWAP_MODELS": str(Path(scratch) / "none"), "KVSWAP_BULK": "false"}
        a = Daemon(home_a, env=env).start()
        b = Daemon(home_b, ["--bootstrap", a.address], env=env).start()
        try:
            b.client.trust_add(str(key().peer_id))
            until(lambda: b.client.status().peers, what="B to meet A")
            done = kvswap(home_b, "fetch", made.id, "--force", "--json", env=env)
            assert done.returncode == 0, done.stderr
            report = last_json(done)
        finally:
            b.stop()
            a.stop()
    return report["wire_bytes"] / 1e6 / report["seconds"], report["seconds"]


def main() -> None:
    for argument in sys.argv[1:]:
        if argument == "--serve-bare":
            return serve_bare()
        if argument == "--serve-ours":
            return serve_ours()
        if argument in ("--fetch-bare", "--fetch-ours"):
            address = next(a for a in sys.argv[2:] if a.startswith("/ip4"))
            took = (fetch_bare if argument == "--fetch-bare" else fetch_ours)(address)
            usage = resource.getrusage(resource.RUSAGE_SELF)
            print(took, usage.ru_utime + usage.ru_stime)
            return None
    print(f"{MB} MB over loopback, two processes, {os.cpu_count()} cores\n")
    best: dict[str, tuple[float, float]] = {}
    for _ in range(3):  # alternating, best of three: the machine's noise hits both alike
        for kind in ("bare", "ours"):
            best[kind] = max(best.get(kind, (0.0, 0.0)), pair(kind))
    fetched, took = whole_fetch()
    table(
        ["path", "MB/s", "against py-libp2p", "reader CPU-s"],
        [
            ["py-libp2p, one stream", f"{best['bare'][0]:.0f}", "1.00", f"{best['bare'][1]:.1f}"],
            [
                "our framed stream, four ahead",
                f"{best['ours'][0]:.0f}",
                f"{best['ours'][0] / best['bare'][0]:.2f}",
                f"{best['ours'][1]:.1f}",
            ],
            [
                "`kvswap fetch` over libp2p alone, store to store",
                f"{fetched:.0f}",
                f"{fetched / best['bare'][0]:.2f}",
                f"({took:.1f} s)",
            ],
        ],
    )
    return None


if __name__ == "__main__":
    main()
