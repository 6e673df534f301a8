"""One provider on loopback: `kvswap fetch`, store to verified store, beside aria2 + nginx and libtorrent.

    python benchmarks/bench_bulk.py [MIB] [ROUNDS]        512 MiB of wire bytes, 5 rounds

The three alternate, so that the machine's noise hits all alike; medians are printed.  aria2 (HTTPS, 4
connections) and nginx move one file of the same size, encrypted and not verified; libtorrent moves it
verified and not encrypted; kvswap moves it encrypted, verified, and made durable.  Needs Debian's
nginx and aria2; libtorrent comes from the package index.  What is missing is left out.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import machine, nginx, table
from kvswap.artifact.specs import LayerSpec
from tests.support import Daemon, Ingested, key, make_artifact, stock, until

SPECS = (LayerSpec.key_value("full", 3, 64, 64),) * 30
Sample = tuple[float, float, float]  # MB/s, CPU-seconds of the reader, of the server


def artifact(mib: int) -> Ingested:
    """Of the default model's shape; 1.5 raw bytes for each wire byte, as real KV has."""
    blocks = max(1, round(mib * 1.048576 / 3.93))
    return make_artifact(key(), tokens=256 * blocks, block_tokens=256, specs=SPECS)


def cpu_of(pid: int) -> float:
    """CPU-seconds of a process and its living children."""
    import psutil

    process = psutil.Process(pid)
    times = [p.cpu_times() for p in [process, *process.children(recursive=True)]]
    return sum(t.user + t.system for t in times)


class Kvswap:
    name = "kvswap fetch, store to store"

    def __init__(self, root: Path, made: Ingested, **env: str) -> None:
        self._root, self._made = root, made
        small = make_artifact(key(), tokens=1024, block_tokens=256, specs=SPECS, text=b"small", seed=9)
        self._small = small.id
        self._env = {"KVSWAP_MODELS": str(root / "none"), "KVSWAP_QUOTA_BYTES": str(10**11)} | env
        stock(root / "server", made, small)
        self._server = Daemon(root / "server", env=self._env).start()

    def round(self) -> Sample:
        home = self._root / "reader"
        shutil.rmtree(home, ignore_errors=True)
        reader = Daemon(home, ["--bootstrap", self._server.address], env=self._env).start()
        try:
            reader.client.trust_add(str(key().peer_id))
            until(lambda: reader.client.status().peers, what="the reader to meet the server")
            reader.client.fetch(self._small, force=True)  # a node that has run for a while, not one just started
            time.sleep(1)
            assert reader.process is not None and self._server.process is not None
            before = cpu_of(reader.process.pid), cpu_of(self._server.process.pid)
            report = reader.client.fetch(self._made.id, force=True).report
            used = cpu_of(reader.process.pid) - before[0], cpu_of(self._server.process.pid) - before[1]
            return report.wire_bytes / 1e6 / report.seconds, used[0], used[1]
        finally:
            reader.stop()

    def close(self) -> None:
        self._server.stop()


class Aria2:
    name = "aria2 + nginx, HTTPS, 4 connections"

    def __init__(self, root: Path, size: int) -> None:
        self._root = root
        for folder in ("data", "out"):
            (root / folder).mkdir(parents=True)
        (root / "data" / "file").write_bytes(os.urandom(size))
        self._size = size
        self._port = 30_000 + os.getpid() % 20_000
        self._nginx = nginx(root, f"127.0.0.1:{self._port}")

    def round(self) -> Sample:
        shutil.rmtree(self._root / "out")
        server, began = cpu_of(self._nginx.pid), time.perf_counter()
        reader = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = ["aria2c", "-q", "--check-certificate=false", "-x4", "-s4", "-k1M", "--file-allocation=none"]
        command += ["-d", str(self._root / "out"), f"https://127.0.0.1:{self._port}/file"]
        subprocess.run(command, check=True)
        took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - reader.ru_utime - reader.ru_stime
        return self._size / 1e6 / took, cpu, cpu_of(self._nginx.pid) - server

    def close(self) -> None:
        self._nginx.terminate()
        self._nginx.wait()


_SEED = """
import libtorrent as lt, sys, time
root, name = sys.argv[1], sys.argv[2]
files = lt.list_files(root + "/" + name)
made = lt.create_torrent(files, 0, lt.create_torrent.v2_only)
lt.set_piece_hashes(made, root)
data = made.generate()
info = lt.torrent_info(data)
open(root + "/torrent", "wb").write(lt.bencode(data))
session = lt.session({"listen_interfaces": "127.0.0.1:0", "enable_dht": False, "enable_lsd": False,
                      "enable_upnp": False, "enable_natpmp": False, "allow_multiple_connections_per_ip": True,
                      "enable_outgoing_utp": False, "enable_incoming_utp": False})
handle = session.add_torrent({"ti": info, "save_path": root, "flags": lt.torrent_flags.seed_mode})
while not session.listen_port(): time.sleep(0.05)
print(session.listen_port(), flush=True)
time.sleep(3600)
"""
_LEECH = """
import libtorrent as lt, sys, time, resource
torrent, out, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
session = lt.session({"listen_interfaces": "127.0.0.1:0", "enable_dht": False, "enable_lsd": False,
                      "enable_upnp": False, "enable_natpmp": False, "allow_multiple_connections_per_ip": True,
                      "enable_outgoing_utp": False, "enable_incoming_utp": False})
info = lt.torrent_info(torrent)
began = time.perf_counter()
handle = session.add_torrent({"ti": info, "save_path": out})
handle.connect_peer(("127.0.0.1", port))
while not handle.status().is_seeding: time.sleep(0.01)
took = time.perf_counter() - began
usage = resource.getrusage(resource.RUSAGE_SELF)
print(took, usage.ru_utime + usage.ru_stime)
"""


class Libtorrent:
    name = "libtorrent, BitTorrent v2, TCP"

    def __init__(self, root: Path, source: Path) -> None:
        self._root, self._size = root, source.stat().st_size
        root.mkdir(parents=True)
        os.link(source, root / "file")
        self._seed = subprocess.Popen(
            [sys.executable, "-c", _SEED, str(root), "file"], stdout=subprocess.PIPE, text=True
        )
        assert self._seed.stdout is not None
        self._port = self._seed.stdout.readline().strip()

    def round(self) -> Sample:
        out = self._root / "out"
        shutil.rmtree(out, ignore_errors=True)
        before = cpu_of(self._seed.pid)
        done = subprocess.run(
            [sys.executable, "-c", _LEECH, str(self._root / "torrent"), str(out), self._port],
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
        took, cpu = map(float, done.stdout.split())
        return self._size / 1e6 / took, cpu, cpu_of(self._seed.pid) - before

    def close(self) -> None:
        self._seed.kill()
        self._seed.wait()


def main() -> None:
    mib = int(sys.argv[1]) if len(sys.argv) > 1 else 512
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    print(f"{machine()}\n{mib} MiB of wire bytes over loopback, {rounds} rounds, medians\n")
    made = artifact(mib)
    manifest = made.manifest
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        ways: list[Any] = [Kvswap(root / "kvswap", made)]
        made.chunks.clear()
        made.layers.clear()
        if shutil.which("nginx") and shutil.which("aria2c"):
            ways.append(Aria2(root / "aria2", manifest.wire_bytes))
            try:
                import libtorrent  # noqa: F401

                ways.append(Libtorrent(root / "torrent", root / "aria2" / "data" / "file"))
            except ImportError:
                print("(libtorrent is not installed: pip install libtorrent)")
        else:
            print("(nginx and aria2 are not installed: apt-get install nginx aria2)")
        samples: dict[str, list[Sample]] = {way.name: [] for way in ways}
        try:
            for number in range(rounds + 1):  # the first warms the page cache of every server
                for way in ways:
                    sample = way.round()
                    if number:
                        samples[way.name].append(sample)
        finally:
            for way in ways:
                way.close()
    ours = statistics.median(s[0] for s in samples[ways[0].name])
    raw = manifest.raw_bytes / manifest.wire_bytes
    rows = []
    for way in ways:
        rate, reader, server = (statistics.median(column) for column in zip(*samples[way.name], strict=True))
        spread = sorted(round(s[0]) for s in samples[way.name])
        rows.append(
            [
                way.name,
                f"{rate:.0f}",
                f"{spread[0]}-{spread[-1]}",
                f"{ours / rate:.2f}",
                f"{reader:.2f}",
                f"{server:.2f}",
            ]
        )
    table(["way", "MB/s", "from-to", "kvswap / this", "reader CPU-s", "server CPU-s"], rows)
    print(f"\nin raw KV bytes kvswap moved {ours * raw:.0f} MB/s (the codec saves {raw:.2f}x)")


if __name__ == "__main__":
    main()
