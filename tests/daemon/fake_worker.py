"""A model process without a model: the real loop and the real frames around jobs that do what tests need.

What `open` does is the name of the model's directory; a job does what its name says.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from kvswap.core.errors import Incompatible, Interrupted  # noqa: E402
from kvswap.worker.__main__ import main  # noqa: E402

HEARTBEAT = 0.05
_DIGEST = bytes(32)
OPENED = {
    "identity": {"label": "m", "weights": _DIGEST, "config": _DIGEST, "tokenizer": _DIGEST, "adapters": [],
                 "parameters": 1},
    "numerics": {"schedule": "", "attention": "", "compute_dtype": "", "torch": "", "transformers": "", "device": "",
                 "isa": "", "threads": 1, "claim": ""},
    "context": 1,
    "dtype": "float32",
}  # fmt: skip


class Jobs:
    def __init__(self, send, cancelled, told):
        self.send, self.cancelled, self.told = send, cancelled, told

    def run(self, message):
        if (job := message.pop("job")) == "fake":
            return getattr(self, message["do"])(**message["given"])
        return getattr(self, job)(**message)

    def open(self, directory, **_):
        kind = Path(directory).name.partition("-")[0]
        if kind == "hangs":
            threading.Event().wait()
        elif kind == "refused":
            raise Incompatible("not this one")
        elif kind == "crashes":
            os._exit(3)
        elif kind == "freezes":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif kind == "asks":
            print("Do you trust it? [y/N]")
            return {"said": input()}  # at the end of its input: EOFError
        elif kind == "waits":  # until the test says so
            while not (Path(directory) / "go").exists():
                time.sleep(0.01)
        return OPENED

    def who(self):
        return {"pid": os.getpid(), "cwd": str(Path.cwd()), "path": list(sys.path)}

    def echo(self, value=None):
        return {"value": value}

    def events(self, count):
        for number in range(count):
            self.send({"event": "prefill", "number": number, "data": b"x" * 100_000})
        return {"count": count}

    def until_cancelled(self, slow=0.0):
        """Obeys after `slow` seconds, and says things meanwhile."""
        self.send({"event": "begun"})
        while not self.cancelled.wait(0.01):
            self.send({"event": "prefill"})
        end = time.monotonic() + slow
        while time.monotonic() < end:
            self.send({"event": "prefill"})
            time.sleep(0.01)
        raise Interrupted("stopped")

    def deaf(self):
        self.send({"event": "begun"})
        threading.Event().wait()

    def sleep(self, seconds):
        time.sleep(seconds)  # computes nothing; heartbeats go on
        return {}

    def spin(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            sum(range(1000))
        return {}

    def tells(self, count):
        heard = []
        while len(heard) < count:
            heard += self.told.take(1.0)
        return {"heard": [notice.unit for notice in heard]}

    def freeze(self):
        os.kill(os.getpid(), signal.SIGSTOP)
        return {}

    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def leave(self):
        sys.exit(5)

    def chatter(self):
        """A library that prints and asks."""
        print("noise on standard output", flush=True)
        os.write(1, b"\xff\xff\xff\xff more of it")
        try:
            return {"read": sys.stdin.read()}
        finally:
            os.system("echo from a child; cat")

    def garbage(self):
        self.send.__self__._socket.sendall(b"\xff\xff\xff\xffgarbage")
        threading.Event().wait()

    def no_answer(self):
        self.send({"nothing": 1})
        threading.Event().wait()

    def imports(self, names):
        found = {name: importlib.util.find_spec(name) for name in names}
        return {name: getattr(spec, "origin", None) for name, spec in found.items()}


if __name__ == "__main__":
    main(Jobs, HEARTBEAT)
