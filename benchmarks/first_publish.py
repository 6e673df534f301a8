"""How many first publishes of a process are wrong, where detecting the processor's kernels is made slow.

The first cos of a process asks MKL which kernels the processor has.  That is kept in two steps without a lock, and
another thread that computes between them takes other kernels, which are less accurate
(https://github.com/pytorch/pytorch/issues/188792).  A small library, loaded before torch, does the same steps with
20 ms between them, and lets one thread alone begin, so that what is rare on a real machine happens every time.  It
ends on the type of kernels that this processor has.  Each publish runs in a process forked from one that has imported
torch and transformers and computed nothing.

    python benchmarks/first_publish.py --count 300
    python benchmarks/first_publish.py --count 30 --without     # the cure left out
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WAYS = ("load", "prefix")  # through the model process's jobs; through `LocalPrefill`, as `Client.get_cache` does
TOKENS, BLOCK = 300, 256
SHIM = """
#include <unistd.h>
static int type = -1;
int mkl_vml_serv_cpu_detect(void) {
    int was = __sync_val_compare_and_swap(&type, -1, 9);
    if (was != -1) return was;
    usleep(20000);
    type = %d;
    return type;
}
"""


def build_shim(directory: Path) -> Path:
    """Compile the library for this processor."""
    flags = Path("/proc/cpuinfo").read_text()
    source = directory / "shim.c"
    source.write_text(SHIM % (5 if " avx512f" in flags else 3))
    target = directory / "shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(target), str(source)], check=True, timeout=60)
    return target


def run(count: int, way: str = "load", without: bool = False) -> dict[str, int]:
    """Publish `count` times, each time in a fresh process; says how many were not what a settled process makes."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        model = directory / "model"
        made = (
            f"from pathlib import Path; from tests.support import tiny_model; tiny_model(Path({str(model)!r}), 'llama')"
        )
        subprocess.run([sys.executable, "-c", made], cwd=ROOT, check=True, timeout=300)
        command = [sys.executable, __file__, "--child", str(model), "--count", str(count), "--way", way]
        environment = {**os.environ, "LD_PRELOAD": str(build_shim(directory)), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [*command, *(["--without"] if without else [])],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            check=True,
            timeout=3600,
        )
    return dict(json.loads(done.stdout))


def _digest(model: Path, way: str) -> str:
    from tests.support import DOCUMENT

    text = DOCUMENT.read_text()[: TOKENS * 2]
    if way == "load":
        from kvswap.worker.jobs import Jobs
        from kvswap.worker.messages import OpenJob, PublishJob

        jobs = Jobs(lambda _: None, threading.Event())
        jobs.do(OpenJob(directory=str(model), label="m", dtype="float32", device="cpu", threads=2))
        result = jobs.do(PublishJob(text=text, block_tokens=BLOCK, codec="raw"))
        return hashlib.sha256(repr(result.tensors).encode()).hexdigest()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(2)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model)
    from kvswap.client.loading import LocalPrefill

    with torch.no_grad():
        cache = LocalPrefill(text, loaded, tokenizer, BLOCK).cache(8)
    hasher = hashlib.sha256()
    for layer in cache.layers:
        for tensor in (layer.keys, layer.values):
            hasher.update(tensor.contiguous().numpy().tobytes())
    return hasher.hexdigest()


def _forked(model: Path, way: str, initialized: bool, without: bool) -> str:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            if initialized:
                import torch

                torch.zeros(1).cos()
            if without:
                from kvswap.model import kernels

                kernels.initialize_kernels = lambda: None  # before what calls it is imported
                from kvswap.model import probing

                probing.check_cache = lambda model: None  # computes a few tokens at load, which would be a cure too
            os.write(write, _digest(model, way).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as pipe:
        got = pipe.read()
    if os.waitpid(child, 0)[1] or not got:
        raise RuntimeError("a publishing process failed")
    return got


def _parent(model: Path, count: int, way: str, without: bool) -> None:
    import torch
    import transformers.models.llama.modeling_llama

    # Nothing of kvswap here: importing its model package is the cure, and each child has to meet it by itself.
    right = _forked(model, way, True, without)
    wrong = sum(_forked(model, way, False, without) != right for _ in range(count))
    assert torch.__version__ and transformers
    print(json.dumps({"publishes": count, "wrong": wrong}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--way", choices=WAYS, default="load")
    parser.add_argument("--without", action="store_true", help="leave the cure out")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        _parent(given.child, given.count, given.way, given.without)
    else:
        print(json.dumps(run(given.count, given.way, given.without)))


if __name__ == "__main__":
    main()
