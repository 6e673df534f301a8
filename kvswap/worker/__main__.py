"""`python -m kvswap.worker`: the model process.  Speaks `protocol` on stdin and stdout."""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from typing import Any, BinaryIO

from kvswap.core.errors import KvswapError, WorkerFailed
from kvswap.worker import protocol
from kvswap.worker.jobs import Jobs
from kvswap.worker.told import Told


def main() -> int:
    # stdout is the protocol: whatever a library prints goes to stderr.
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the node's to handle
    inbox: queue.Queue[dict[str, Any] | None] = queue.Queue(16)
    cancelled = threading.Event()
    lock = threading.Lock()
    told = Told()

    def send(value: dict[str, Any]) -> None:
        data = memoryview(protocol.frame(value))
        with lock:
            while data:
                data = data[out.write(data) :]

    def listen(stream: BinaryIO) -> None:
        while (message := protocol.read(stream)) is not None:
            if message.get("cancel"):
                cancelled.set()
            elif "tell" in message:
                told.put(message["tell"])
            else:
                told.clear()
                inbox.put(message)
        os._exit(0)  # the node is gone: nobody will read a result

    threading.Thread(target=listen, args=(sys.stdin.buffer,), daemon=True).start()
    jobs = Jobs(send, cancelled, told)
    while (message := inbox.get()) is not None:
        cancelled.clear()
        try:
            send({"result": jobs.run(message)})
        except KvswapError as error:
            send({"error": error.to_dict()})
        except Exception as error:  # noqa: BLE001 - the boundary of a process: report, live on
            failure = WorkerFailed(f"the model process failed: {type(error).__name__}: {str(error)[:300]}")
            send({"error": failure.to_dict()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
