"""`KvswapConnector`: vLLM's interface (KVConnectorBase_V1), and nothing else; its two halves do the work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    SupportsHMA,
)
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from kvswap.core.errors import UsageError
from kvswap.integrations.vllm.engine import engine_of
from kvswap.integrations.vllm.node_client import NodeClient
from kvswap.integrations.vllm.save_requests import Save
from kvswap.integrations.vllm.scheduler import Load, SchedulerSide
from kvswap.integrations.vllm.settings import ConnectorSettings
from kvswap.integrations.vllm.worker import WorkerSide
from kvswap.model.kernels import initialize_kernels

initialize_kernels()  # the package's entry point has called it already, if this version is installed


@dataclass
class KvswapMetadata(KVConnectorMetadata):
    """The message from scheduler to worker for one step: what to load, what to publish."""

    loads: list[Load] = field(default_factory=list)
    idle: bool = False  # nothing runs in this step
    saves: list[Save] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)  # requests whose saves stay incomplete


class KvswapConnector(KVConnectorBase_V1, SupportsHMA):
    """A vLLM KV connector that loads published prefixes, and publishes.

    The package's docstring shows how to name it in vLLM's configuration.
    """

    _cache_hit_source = CacheHitSource.P2P

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        transfer = self._kv_transfer_config
        if transfer.kv_load_failure_policy != "recompute":
            raise UsageError(
                "with kvswap a load that fails must not fail the request",
                hint='"kv_load_failure_policy": "recompute" in --kv-transfer-config',
            )
        settings = ConnectorSettings.of(transfer.kv_connector_extra_config)
        engine = engine_of(vllm_config, kv_cache_config)
        self._scheduler: SchedulerSide | None = None
        self._worker: WorkerSide | None = None
        self._node: NodeClient | None = None
        if role == KVConnectorRole.SCHEDULER:
            self._node = NodeClient(engine, settings)
            self._scheduler = SchedulerSide(engine, self._node, settings)
        else:
            self._worker = WorkerSide(engine, settings)

    @property
    def requires_kv_delivery(self) -> bool:
        """The constant False: a cache that is not published is no loss."""
        return False

    def shutdown(self) -> None:
        """Close the connection to the node, and end loading and publishing."""
        if self._node is not None:
            self._node.close()
        if self._worker is not None:
            self._worker.close()

    # -- worker ----------------------------------------------------------------------------------

    @property
    def _work(self) -> WorkerSide:
        assert self._worker is not None  # noqa: S101 - of the worker's role
        return self._worker

    @property
    def _step(self) -> KvswapMetadata:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, KvswapMetadata)  # noqa: S101 - our own scheduler's
        return metadata

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Take the engine's cache tensors, by layer name.  Raises `Incompatible` for what kvswap cannot handle."""
        layers = self._vllm_config.compilation_config.static_forward_context
        self._work.register(kv_caches, layers)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Start the loads of this step in threads."""
        for load in self._step.loads:
            self._work.start(load)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Do nothing: requests wait for their loads before they run."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Do nothing: blocks to be published are read once the whole step has run."""

    def wait_for_save(self) -> None:
        """Copy the tokens to be published that this step has computed."""
        self._work.save(self._step.saves, self._step.dropped)

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """Return the requests whose loads have ended or failed since the last call.

        In a step in which nothing runs it waits for a load to end, for a moment.
        """
        if self._step.idle:
            self._work.wait()
        finished, failed = self._work.finished()
        return KVConnectorTransferResults(finished_recving=finished, failed_recving=failed)

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Return the blocks that were not filled, of the requests last reported as ended."""
        return self._work.invalid()

    # -- scheduler -------------------------------------------------------------------------------

    @property
    def _requests(self) -> SchedulerSide:
        assert self._scheduler is not None  # noqa: S101 - of the scheduler's role
        return self._scheduler

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Return how many tokens after the computed ones can be loaded, and whether that happens asynchronously.

        None as the number means that the look-up is not over, and vLLM should ask again.
        """
        return self._requests.get_num_new_matched_tokens(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Note the blocks that vLLM has allocated for a request's load."""
        self._requests.update_state_after_alloc(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        """Return what the worker has to load and to save in this step."""
        self._requests.stepped(scheduler_output)
        idle = scheduler_output.total_num_scheduled_tokens == 0
        self._requests.pause(idle)
        return KvswapMetadata(self._requests.take(), idle, *self._requests.saves(scheduler_output))

    def on_new_request(self, request: Any) -> None:
        """Start the look-up for a new request."""
        self._requests.on_new_request(request)

    def update_connector_output(self, connector_output: Any) -> None:
        """Note which loads have ended, and which of them failed."""
        output = connector_output
        self._requests.update_connector_output(
            output.finished_recving or set(), output.failed_recving, output.invalid_block_ids
        )

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Forget a finished request; its blocks may be freed at once."""
        self._requests.forget(request.request_id)
        return False, None

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Forget a finished request of an engine with several cache groups; its blocks may be freed at once."""
        self._requests.forget(request.request_id)
        return False, None
