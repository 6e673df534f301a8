"""Shaped links: one provider, four providers, one slow, one killed, and a publisher with eight readers.

    sudo python benchmarks/bench_swarm.py [links|four|readers|memory …]        all of them

Every node is a process in a network namespace of its own; links are shaped with `tc tbf`.  Rates are
wire bytes of chunks over the seconds of `kvswap fetch`, look-up included.  A link carries 1,448 bytes
of TCP in 1,514 of Ethernet and 22 bytes of TLS in 16 KiB: 95.5% is the most that any transfer reaches.
Beside it, in turns, `curl` fetches as many bytes from nginx over HTTPS to a file, without look-up or digests.
"""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil

from benchmarks.common import machine, nginx, table
from benchmarks.shaped import Network, answer
from kvswap.artifact.specs import LayerSpec
from tests.support import Daemon, Ingested, key, make_artifact, stock

ROUNDS = 3
SPECS = (LayerSpec.key_value("full", 3, 64, 64),) * 30  # the default model's shape


def artifact(megabytes: float, seed: int = 0) -> Ingested:
    """About so many MB on the wire."""
    blocks = max(1, round(megabytes / 3.93))
    return make_artifact(
        key(), tokens=256 * blocks, block_tokens=256, specs=SPECS, text=b"%d %d" % (blocks, seed), seed=seed
    )


def reader(network: Network, name: str, home: Path, providers: list[Daemon], warm: Ingested | None = None) -> Daemon:
    """A node that has met its providers and, like one that has run for a while, fetched from them before."""
    flags = [flag for p in providers for flag in ("--bootstrap", p.address)]
    node = network.daemon(name, home, *flags)
    network.ask(name, home, "trust", "add", str(key().peer_id))
    network.meet(name, home, len(providers))
    if warm is not None:
        network.ask(name, home, "fetch", warm.id, "--force")
    return node


def links(root: Path) -> None:
    print(f"\nOne provider, shaped link, medians of {ROUNDS}\n")
    rows = []
    warm = artifact(4, seed=99)
    beside = shutil.which("nginx") and shutil.which("curl")
    for mbit, sizes in ((100, (20, 60, 200)), (1000, (20, 60, 200, 600))):
        mades = [artifact(size, seed=mbit) for size in sizes]
        stock(root / f"server{mbit}", warm, *mades)
        with Network({"server": mbit, "reader": mbit}) as network:
            server = network.daemon("server", root / f"server{mbit}")
            web = Web(network, root / f"web{mbit}", [made.manifest.wire_bytes for made in mades]) if beside else None
            for number, made in enumerate(mades):
                reports, curl = [], []
                for attempt in range(ROUNDS):
                    home = root / f"reader{mbit}-{number}-{attempt}"
                    node = reader(network, "reader", home, [server], warm)
                    reports.append(network.ask("reader", home, "fetch", made.id, "--force"))
                    network.stop(node)
                    curl += [web.seconds(made.manifest.wire_bytes)] if web else []
                best = sorted(reports, key=lambda r: r["seconds"])[len(reports) // 2]
                rate = best["wire_bytes"] * 8 / 1e6 / best["seconds"]
                rows.append(
                    [
                        f"{mbit} Mbit/s",
                        f"{best['wire_bytes'] / 1e6:.1f}",
                        f"{best['seconds']:.3f}",
                        f"{rate:.1f}",
                        f"{rate / mbit:.1%}",
                        f"{best['wire_bytes'] * 8 / 1e6 / statistics.median(curl) / mbit:.1%}" if curl else "",
                        f"{statistics.median(curl) / best['seconds']:.2f}" if curl else "",
                    ]
                )
            if web:
                web.close()
    table(["link", "MB", "seconds", "Mbit/s", "of the link", "curl, of the link", "kvswap / curl"], rows)


class Web:
    """nginx in the server's namespace, with a file of each size; `curl` in the reader's."""

    def __init__(self, network: Network, root: Path, sizes: list[int]) -> None:
        (root / "data").mkdir(parents=True)
        for size in sizes:
            (root / "data" / str(size)).write_bytes(os.urandom(size))
        self._network, self._root = network, root
        self._address = f"{network.address['server']}:8443"
        self._nginx = nginx(root, self._address, network.wrapper("server"))

    def seconds(self, size: int) -> float:
        command = [*self._network.wrapper("reader"), "curl", "-sSfk", "-o", str(self._root / "out")]
        command += ["-w", "%{time_total}", f"https://{self._address}/{size}"]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    def close(self) -> None:
        self._nginx.terminate()
        self._nginx.wait()


def _providers(
    root: Path, name: str, rates: list[float], made: Ingested, warm: Ingested, kill: bool = False
) -> dict[str, Any]:
    names = [f"p{i}" for i in range(len(rates))]
    with Network(dict(zip(names, rates, strict=True)) | {"reader": 0}) as network:
        providers = []
        for number, provider in enumerate(names):
            home = root / f"{name}-{number}"
            stock(home, made, warm)
            providers.append(network.daemon(provider, home))
        home = root / f"{name}-reader"
        reader(network, "reader", home, providers, warm)
        fetching = network.run("reader", home, "fetch", made.id, "--force")
        if kill:
            wanted = made.manifest.wire_bytes / 2
            while network.ask("reader", home, "status")["store_bytes"] < wanted:
                time.sleep(0.05)
            assert providers[0].process is not None
            for child in psutil.Process(providers[0].process.pid).children(recursive=True):
                child.kill()
            providers[0].process.send_signal(signal.SIGKILL)
        return answer(fetching)


def four(root: Path) -> None:
    print("\nFour providers at 100 Mbit/s each\n")
    made, warm = artifact(160, seed=4), artifact(4, seed=98)
    one = _providers(root, "one", [100], made, warm)
    runs = {
        "one": (one, 1.0),
        "four": (_providers(root, "four", [100] * 4, made, warm), 4.0),
        "four, one at a twentieth": (_providers(root, "slow", [100, 100, 100, 5], made, warm), 3.05),
        "four, one killed half-way": (_providers(root, "kill", [100] * 4, made, warm, kill=True), 3.4),
    }
    rows = []
    for name, (report, ideal) in runs.items():
        speed = one["seconds"] / report["seconds"]
        rows.append([name, f"{report['seconds']:.2f}", f"{speed:.2f}", f"{speed / ideal:.0%}", len(report["from"])])
    table(["providers", "seconds", "of one", "of what the links carry", "peers that gave"], rows)


def readers(root: Path) -> None:
    print("\nOne publisher, eight readers, every uplink 50 Mbit/s, all starting together\n")
    made = artifact(59, seed=8)
    wire = made.manifest.wire_bytes
    names = [f"r{i}" for i in range(8)]
    with Network(dict.fromkeys(("publisher", "lone", *names), 50)) as network:
        stock(root / "publisher", made)
        publisher = network.daemon("publisher", root / "publisher")
        reader(network, "lone", root / "lone", [publisher])
        lone = network.ask("lone", root / "lone", "fetch", made.id, "--force")["seconds"]
        network.stop(network._nodes[-1])
        for name in names:
            reader(network, name, root / name, [publisher])
        assert publisher.process is not None
        idle = _rss(publisher)
        before, peak = network.ask("publisher", root / "publisher", "status")["bytes_out"], [0]
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.1):
                peak[0] = max(peak[0], _rss(publisher))

        watcher = threading.Thread(target=watch)
        watcher.start()
        running = [network.run(name, root / name, "fetch", made.id, "--force") for name in names]
        reports = [answer(process) for process in running]
        done.set()
        watcher.join()
        sent = network.ask("publisher", root / "publisher", "status")["bytes_out"] - before
    last = max(r["seconds"] for r in reports)
    rows = [
        ["artifact", f"{wire / 1e6:.1f} MB"],
        ["a lone reader", f"{lone:.1f} s"],
        [
            "first and last of eight",
            f"{min(r['seconds'] for r in reports):.1f} and {last:.1f} s: {last / lone:.2f}x of the lone one",
        ],
        ["the publisher uploaded", f"{sent / wire:.2f}x the artifact"],
        [
            "peers that gave to a reader",
            f"{min(len(r['from']) for r in reports)}-{max(len(r['from']) for r in reports)}",
        ],
        ["publisher's memory above idle", f"{(peak[0] - idle) / 1e6:.0f} MB"],
    ]
    table(["eight readers", ""], rows)


def _rss(node: Daemon) -> int:
    """Resident bytes of the daemon, below the commands that wrap it."""
    assert node.process is not None
    process = psutil.Process(node.process.pid)
    return max(p.memory_info().rss for p in [process, *process.children(recursive=True)])


def memory(root: Path) -> None:
    print("\nMemory of a reader and its server over 2 GiB, loopback\n")
    made = artifact(2147, seed=2)
    env = {"KVSWAP_MODELS": str(root / "none"), "KVSWAP_QUOTA_BYTES": str(10**11)}
    stock(root / "big", made)
    server = Daemon(root / "big", env=env).start()
    node = Daemon(root / "big-reader", ["--bootstrap", server.address], env=env).start()
    try:
        node.client.trust_add(str(key().peer_id))
        while not node.client.status().peers:
            time.sleep(0.1)
        idle, peak, done = [_rss(node), _rss(server)], [0, 0], threading.Event()

        def watch() -> None:
            while not done.wait(0.05):
                for index, one in enumerate((node, server)):
                    peak[index] = max(peak[index], _rss(one))

        watcher = threading.Thread(target=watch)
        watcher.start()
        report = node.client.fetch(made.id, force=True).report
        done.set()
        watcher.join()
    finally:
        node.stop()
        server.stop()
    rows = [
        [name, f"{idle[i] / 1e6:.0f}", f"{peak[i] / 1e6:.0f}", f"{(peak[i] - idle[i]) / 1e6:.0f}"]
        for i, name in enumerate(("reader", "server"))
    ]
    table(["node", "idle MB", "peak MB", "above idle"], rows)
    print(f"({report.wire_bytes / 1e6:.0f} MB in {report.seconds:.1f} s)")


PARTS = {"links": links, "four": four, "readers": readers, "memory": memory}


def main() -> None:
    print(machine())
    for name in sys.argv[1:] or PARTS:
        with tempfile.TemporaryDirectory() as scratch:
            PARTS[name](Path(scratch))


if __name__ == "__main__":
    main()
