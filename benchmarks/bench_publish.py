"""What publishing adds to the bare canonical prefill, and what loading blocks of other sizes would cost.

The model process's publish job (capture, encode, digest, probe, send) against a prefill alone, the
same text, in one process; and the canonical schedule at several block sizes against one shot.

    python benchmarks/bench_publish.py [TOKENS]
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import BLOCK_TOKENS, ids_of, load_default, machine, once, table  # noqa: E402


def publish_through_a_node(text: str) -> float:
    """Seconds of a publish by a real daemon, model loaded: model process, pipe, disk, signature."""
    import tempfile

    from tests.support import Daemon

    with tempfile.TemporaryDirectory() as home:
        node = Daemon(Path(home)).start()
        try:
            node.client.publish(text[:500])  # loads the model
            return min(node.client.publish(text + " " * n).seconds for n in (1, 2, 3))
        finally:
            node.stop()


def main() -> None:
    from kvswap.model.prefill import prefill
    from kvswap.worker import protocol
    from kvswap.worker.jobs import Jobs

    tokens = int(next((a for a in sys.argv[1:] if a.isdigit()), "1888"))
    loaded = load_default()
    ids = ids_of(loaded, tokens)
    text = loaded.tokenizer.decode(ids)
    ids = loaded.tokenize(text)
    print(f"{machine()}, {len(ids)} tokens\n")
    sent = 0

    def send(message: dict) -> None:
        nonlocal sent
        sent += len(protocol.frame(message))

    jobs = Jobs(send, threading.Event())
    jobs._loaded = loaded
    prefill(loaded, ids[:512], BLOCK_TOKENS)
    bare, whole = [], []
    for _ in range(3):
        bare.append(once(lambda: prefill(loaded, ids, BLOCK_TOKENS))[0])
        whole.append(once(lambda: jobs.do_publish(text, BLOCK_TOKENS, "planes", False))[0])
    through_node = publish_through_a_node(text)
    table(
        ["", "seconds", "against bare"],
        [
            [
                "`kvswap publish` through a daemon, stored and signed",
                f"{through_node:.2f}",
                f"{through_node / min(bare):.3f}",
            ],
            ["bare canonical prefill", f"{min(bare):.2f}", "1.00"],
            [
                "publish job (capture, encode, digests, probe, pipe)",
                f"{min(whole):.2f}",
                f"{min(whole) / min(bare):.3f}",
            ],
        ],
    )
    print()
    rows = []
    one_shot = min(once(lambda: prefill(loaded, ids, len(ids)))[0] for _ in range(2))
    for block in (128, 256, 512, 1024):
        took = min(once(lambda block=block: prefill(loaded, ids, block))[0] for _ in range(2))
        rows.append([block, f"{took:.2f}", f"{took / one_shot:.3f}"])
    table(["block tokens", "prefill s", "against one shot"], [*rows, ["one shot", f"{one_shot:.2f}", "1.000"]])


if __name__ == "__main__":
    main()
