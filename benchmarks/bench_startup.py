"""How light it is: `kvswap --help`, importing the client, and a daemon without a model.

python benchmarks/bench_startup.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import seconds, table  # noqa: E402


def main() -> None:
    import psutil

    from tests.support import Daemon

    def run(*arguments: str) -> float:
        return seconds(lambda: subprocess.run([sys.executable, *arguments], capture_output=True, check=True), 7)

    bare = run("-c", "pass")
    with tempfile.TemporaryDirectory() as home:
        node = Daemon(Path(home)).start()
        try:
            assert node.process is not None
            rss = psutil.Process(node.process.pid).memory_info().rss
        finally:
            node.stop()
    table(
        ["", "measured", "of which Python itself"],
        [
            ["`kvswap --help`", f"{run('-m', 'kvswap', '--help'):.3f} s", f"{bare:.3f} s"],
            ["`import kvswap; kvswap.Client`", f"{run('-c', 'import kvswap; kvswap.Client'):.3f} s", f"{bare:.3f} s"],
            ["daemon without a model, resident memory", f"{rss / 1e6:.0f} MB", ""],
        ],
    )


if __name__ == "__main__":
    main()
