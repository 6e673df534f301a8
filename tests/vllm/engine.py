"""`python -m tests.vllm.engine CONFIG`: a real vLLM engine that takes batches of prompts as JSON lines.

CONFIG is JSON: arguments of `vllm.LLM`, and `home` of a node for the connector ("": without it).  A line
{"prompts": [[ids], ...], "max_tokens": n, "reset": forget what is cached, "salt": ..., "extra": {...}} is answered by
{"seconds": s, "outputs": [{"ids": [...], "scores": [...], "cached": n, "first": seconds to the first token}, ...],
"walk": {"files": [...], "again": {file: visits}, "calls": [...]}}, the walk through the connector where "walk" is asked
for; then the engine's parts are to be in this process (VLLM_ENABLE_V1_MULTIPROCESSING=0).
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import nullcontext
from typing import Any

from tests.walking import walking

OWN = ("connector", "scheduler", "worker")  # what vLLM calls in every step: a walk goes on from there
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "2",
    "GOMP_SPINCOUNT": "10000",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def transfer(home: str, **extra: Any) -> dict[str, Any]:
    """vLLM's `kv_transfer_config` for the connector."""
    return {
        "kv_connector": "KvswapConnector",
        "kv_connector_module_path": "kvswap.integrations.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"home": home, **extra},
    }


def main(config: dict[str, Any]) -> None:
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    def prompt(ids: list[int], salt: str | None) -> TokensPrompt:
        made = TokensPrompt(prompt_token_ids=ids)
        if salt is not None:
            made["cache_salt"] = salt
        return made

    home, extra = config.pop("home", ""), config.pop("extra", {})
    if home:
        config["kv_transfer_config"] = transfer(home, **extra)
    llm = LLM(enforce_eager=True, skip_tokenizer_init=True, disable_log_stats=False, **config)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if asked.get("reset"):
            llm.reset_prefix_cache()
        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=asked["max_tokens"],
            ignore_eos=True,
            detokenize=False,
            logprobs=0,
            extra_args=asked.get("extra"),
        )
        began = time.perf_counter()
        prompts = [prompt(ids, asked.get("salt")) for ids in asked["prompts"]]
        with walking("integrations/vllm", *OWN, threads=True) if asked.get("walk") else nullcontext() as walk:
            done = llm.generate(prompts, sampling, use_tqdm=False)
        seconds = time.perf_counter() - began
        outputs = [
            {
                "ids": list(one.outputs[0].token_ids),
                "scores": [
                    step[i].logprob for i, step in zip(one.outputs[0].token_ids, one.outputs[0].logprobs, strict=True)
                ],
                "cached": one.num_cached_tokens,
                "first": one.metrics.first_token_latency if one.metrics else None,
            }
            for one in done
        ]
        answer = {"seconds": seconds, "outputs": outputs}
        if walk is not None:
            answer["walk"] = {"files": walk.files, "again": walk.again, "calls": walk.calls}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    answers = os.fdopen(os.dup(1), "w")  # vLLM prints to stdout as it likes
    os.dup2(2, 1)
    main(json.loads(sys.argv[1]))
