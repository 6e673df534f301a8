"""Prometheus text of a node's counters and gauges."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from kvswap.daemon.supervisor import ModelProcess
from kvswap.exchange.node.node import Node


class _NodeCollector(Collector):
    def __init__(self, node: Node, model: ModelProcess) -> None:
        self._node = node
        self._model = model

    def collect(self):  # type: ignore[no-untyped-def]
        counters, node = self._node.counters, self._node
        for name, text, value in (
            ("kvswap_published", "Documents published since start", counters.published),
            ("kvswap_fetched", "Artifacts fetched since start", counters.fetched),
            ("kvswap_plans_prefill", "Fetches declined by the plan", counters.plans_prefill),
            ("kvswap_bytes_in", "Chunk bytes received from peers", counters.bytes_in),
            ("kvswap_bytes_out", "Chunk bytes sent to peers", counters.bytes_out),
            ("kvswap_rejected_chunks", "Chunks that were not what was asked for", counters.rejected_chunks),
            ("kvswap_worker_crashes", "Times the model process ended while working", self._model.crashes),
        ):
            yield CounterMetricFamily(name, text, value)
        peers = len(node.transport.connected()) if node.p2p else 0
        for name, text, gauge in (
            ("kvswap_store_bytes", "Bytes of chunks in the store", node.store.used_bytes),
            ("kvswap_store_quota_bytes", "Quota of the store", node.store.quota_bytes),
            ("kvswap_peers", "Connected peers", peers),
            ("kvswap_p2p_up", "1 while the peer-to-peer part runs", int(node.p2p)),
            ("kvswap_model_loaded", "1 while the model process runs", int(self._model.pid is not None)),
            ("kvswap_start_time_seconds", "Unix time of the start", counters.started),
        ):
            yield GaugeMetricFamily(name, text, gauge)


def render(node: Node, model: ModelProcess) -> bytes:
    """Render the counters in the exposition format of Prometheus."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_NodeCollector(node, model))
    return generate_latest(registry)
