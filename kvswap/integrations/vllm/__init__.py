"""kvswap inside vLLM: published prefixes are loaded into the paged cache instead of being prefilled.

    vllm serve MODEL --kv-transfer-config '{"kv_connector": "KvswapConnector",
        "kv_connector_module_path": "kvswap.integrations.vllm", "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute"}'

A node (`kvswap daemon`) runs beside the engine; this package queries it and reads its chunk files.  `engine` describes
the engine and refuses what is not supported, `scheduler` decides what to load, `worker` loads it, `paged` reads and
writes vLLM's blocks, `save_requests` and `capture` publish.
"""

from kvswap.integrations.vllm.connector import KvswapConnector

__all__ = ["KvswapConnector"]
