"""The connector's parts by themselves: what it is told, what it refuses, which slots a load goes into."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheGroupSpec, SlidingWindowSpec

from kvswap.core.errors import Incompatible, UsageError
from kvswap.integrations.vllm.engine import KVCacheGroup, engine_of
from kvswap.integrations.vllm.node_client import Files, LookUp, Match
from kvswap.integrations.vllm.paged import PagedLayer, slots
from kvswap.integrations.vllm.scheduler import SchedulerSide
from kvswap.integrations.vllm.settings import ConnectorSettings
from tests.support import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("parts") / "llama", "llama", head_dim=32)


def full(dtype: torch.dtype = torch.float32, **more: Any) -> FullAttentionSpec:
    return FullAttentionSpec(block_size=32, num_kv_heads=2, head_size=32, dtype=dtype, **more)


def configured(directory: Path, specs: list[Any] | None = None, **changes: Any) -> tuple[Any, Any]:
    parts = {
        "model_config": {
            "model": str(directory),
            "revision": None,
            "quantization": None,
            "dtype": torch.float32,
            "hf_overrides": {},
        },
        "load_config": {"load_format": "auto"},
        "device_config": {"device_type": "cpu"},
        "parallel_config": {"tensor_parallel_size": 1, "pipeline_parallel_size": 1},
        "scheduler_config": {"disable_hybrid_kv_cache_manager": False},
    }
    for name, value in changes.items():
        for part in parts.values():
            if name in part:
                part[name] = value
    config = SimpleNamespace(
        **{name: SimpleNamespace(**part) for name, part in parts.items()},
        speculative_config=changes.get("speculative_config"),
        lora_config=changes.get("lora_config"),
    )
    groups = [
        KVCacheGroupSpec([f"model.layers.{2 * i + n}.self_attn.attn" for i in range(2)], spec)
        for n, spec in enumerate(specs or [full()])
    ]
    if len(groups) == 1:
        groups[0].layer_names = [f"model.layers.{i}.self_attn.attn" for i in range(3)]
    return config, SimpleNamespace(kv_cache_groups=groups)


def test_an_engine_is_known_by_its_model_and_layers(model: Path) -> None:
    engine = engine_of(*configured(model))
    assert engine.dtype == "float32" and not engine.hybrid and engine.usable(100) == 100
    assert engine.groups == (
        KVCacheGroup(
            ("model.layers.0.self_attn.attn", "model.layers.1.self_attn.attn", "model.layers.2.self_attn.attn"),
            (0, 1, 2),
            32,
            2,
            32,
            32,
            None,
        ),
    )
    window = SlidingWindowSpec(block_size=32, num_kv_heads=2, head_size=32, dtype=torch.float32, sliding_window=24)
    hybrid = engine_of(*configured(model, [full(), window]))
    assert hybrid.hybrid and hybrid.usable(100) == 96
    assert [group.layers for group in hybrid.groups] == [(0, 2), (1, 3)]


@pytest.mark.parametrize(
    "changes,what",
    [
        ({"tensor_parallel_size": 2}, "tensor_parallel_size"),
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size"),
        ({"quantization": "awq"}, "awq"),
        ({"lora_config": object()}, "LoRA"),
        ({"speculative_config": object()}, "speculative"),
        ({"hf_overrides": {"rms_norm_eps": 1e-3}}, "hf-overrides"),
        ({"hf_overrides": lambda config: config}, "hf-overrides"),
        ({"load_format": "dummy"}, "load-format dummy"),
        ({"load_format": "bitsandbytes"}, "load-format bitsandbytes"),
        ({"specs": [full(torch.float8_e4m3fn)]}, "float8"),
        ({"specs": [full(attention_chunk_size=64)]}, "chunked"),
        ({"model": "no/such-model"}, "not on this machine"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(model: Path, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(Incompatible, match=what):
        engine_of(*configured(model, **changes))


def test_an_engine_in_reduced_precision_is_refused(model: Path) -> None:
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(Incompatible, match="precision"):
            engine_of(*configured(model))
    finally:
        torch.set_float32_matmul_precision("highest")


def test_windows_without_the_hybrid_manager_are_refused(model: Path) -> None:
    config, cache = configured(model, [full(sliding_window=24)], disable_hybrid_kv_cache_manager=True)
    with pytest.raises(Incompatible, match="hybrid"):
        engine_of(config, cache)


def test_settings_name_the_key_that_is_wrong() -> None:
    assert ConnectorSettings.of({"home": "/x", "min_tokens": 64, "lookup_seconds": 1}) == ConnectorSettings(
        "/x", None, 256, 64, 1
    )
    for extra, key in (
        ({"hoem": "/x"}, "hoem"),
        ({"min_tokens": 0}, "min_tokens"),
        ({"min_tokens": True}, "min_tokens"),
        ({"force": 1}, "force"),
        ({"lookup_seconds": "1"}, "lookup_seconds"),
    ):
        with pytest.raises(UsageError, match=key):
            ConnectorSettings.of(extra)


def test_slots_leave_null_blocks_out() -> None:
    group = KVCacheGroup(("x",), (0,), 4, 1, 8, 8, 6)
    slot, token = slots(group, [0, 7, 3], 2, 11)
    assert token.tolist() == [4, 5, 6, 7, 8, 9, 10]
    assert slot.tolist() == [28, 29, 30, 31, 12, 13, 14]
    assert not len(slots(group, [0, 0, 3], 0, 8)[0])


def test_a_layer_is_written_token_by_token_and_one_without_a_writer_refused() -> None:
    seen: list[Any] = []
    impl = SimpleNamespace(do_kv_cache_update=lambda *arguments: seen.append(arguments))
    cache = torch.zeros(8, 2, 4, 16)
    layer = PagedLayer(SimpleNamespace(impl=impl), cache)
    k, v = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    layer.put(k, v, torch.arange(5))
    _, key, value, into, slot = seen[0]
    assert torch.equal(key, k.transpose(0, 1)) and torch.equal(value, v.transpose(0, 1)) and key.is_contiguous()
    assert into is cache and slot.tolist() == list(range(5))
    with pytest.raises(Incompatible, match="SimpleNamespace"):
        PagedLayer(SimpleNamespace(impl=SimpleNamespace()), cache)


class Desk:
    """Where the scheduler's half asks: look-ups end when the test says so."""

    def __init__(self, seconds: float | None = 10.0) -> None:
        self.news = threading.Event()
        self.seconds = seconds
        self.searches: list[LookUp] = []
        self.doubted: list[str] = []

    def search(self, ids: Any, budget: float) -> LookUp:
        self.searches.append(LookUp())
        return self.searches[-1]

    def prefill_seconds(self, tokens: int) -> float | None:
        return self.seconds

    def learn(self, *sample: Any) -> None:
        pass

    def revalidate(self, artifact: str) -> None:
        self.doubted.append(artifact)


class Blocks:
    def get_block_ids(self) -> tuple[list[int], ...]:
        return ([1, 2, 3, 4],)


def request(name: str, tokens: int = 100) -> Any:
    return SimpleNamespace(
        request_id=name, prompt_token_ids=list(range(tokens)), mm_features=[], lora_request=None, prompt_embeds=None
    )


def side(model: Path, desk: Desk) -> SchedulerSide:
    return SchedulerSide(engine_of(*configured(model)), desk, ConnectorSettings(min_tokens=32))  # type: ignore[arg-type]


def found(search: LookUp, tokens: int, artifact: str = "a") -> None:
    search.match = Match(artifact, tokens, True, Files(artifact, "", "", None))
    search.end()


def test_a_request_waits_for_its_look_up_and_then_loads(model: Path) -> None:
    desk = Desk()
    requests = side(model, desk)
    requests.on_new_request(one := request("one"))
    assert requests.get_num_new_matched_tokens(one, 0) == (None, False)
    found(desk.searches[0], 90)
    assert requests.get_num_new_matched_tokens(one, 0) == (90, True)
    assert requests.get_num_new_matched_tokens(one, 32) == (58, True)  # some of it is in vLLM's own cache by now
    requests.update_state_after_alloc(one, Blocks(), 58)
    (load,) = requests.take()
    assert (load.first, load.stop, load.blocks) == (32, 90, ((1, 2, 3, 4),)) and requests.take() == []
    requests.update_state_after_alloc(one, Blocks(), 0)
    requests.update_connector_output({"one"}, set(), set())
    assert requests.get_num_new_matched_tokens(one, 0) == (0, False)


def test_others_wait_for_a_load_of_the_same_and_top_up(model: Path) -> None:
    desk = Desk()
    requests = side(model, desk)
    for name in ("one", "two"):
        requests.on_new_request(request(name))
        found(desk.searches[-1], 90)
    assert requests.get_num_new_matched_tokens(request("one"), 0) == (90, True)
    requests.update_state_after_alloc(request("one"), Blocks(), 90)
    assert requests.get_num_new_matched_tokens(request("two"), 0) == (None, False)
    assert requests.get_num_new_matched_tokens(request("two"), 64) == (26, True)  # its last block alone
    requests.update_connector_output({"one"}, set(), set())
    assert requests.get_num_new_matched_tokens(request("two"), 0) == (90, True)
    requests.forget("one")
    requests.forget("two")


def test_what_failed_is_computed_and_not_tried_again_at_once(model: Path) -> None:
    for failed, invalid in (({"one"}, set()), (set(), {2})):
        desk = Desk()
        requests = side(model, desk)
        requests.on_new_request(request("one"))
        found(desk.searches[0], 90)
        requests.get_num_new_matched_tokens(request("one"), 0)
        requests.update_state_after_alloc(request("one"), Blocks(), 90)
        requests.update_connector_output({"one"}, failed, invalid)
        assert desk.doubted == ["a"] and requests.get_num_new_matched_tokens(request("one"), 0) == (0, False)
        requests.on_new_request(request("two"))
        found(desk.searches[1], 90)
        assert requests.get_num_new_matched_tokens(request("two"), 0) == (0, False)


def test_a_look_up_may_cost_a_fiftieth_of_the_prefill_and_no_more(model: Path, monkeypatch: Any) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    desk = Desk(seconds=10.0)  # a fiftieth: 0.2 s
    requests = side(model, desk)
    desk.news.set()
    requests.on_new_request(request("one"))

    def idles(seconds: float) -> tuple[int | None, bool]:
        desk.news.set()
        requests.pause(idle=True)
        now[0] += seconds
        desk.news.set()
        requests.pause(idle=True)
        return requests.get_num_new_matched_tokens(request("one"), 0)

    assert requests.get_num_new_matched_tokens(request("one"), 0) == (None, False)
    assert idles(0.15) == (None, False)
    requests.pause(idle=False)
    now[0] += 1.0  # others run: that costs nothing
    requests.pause(idle=False)
    assert requests.get_num_new_matched_tokens(request("one"), 0) == (None, False)
    assert idles(0.06) == (0, False)
    requests.forget("one")
    now[0] += 3600.0  # nothing to do for an hour: nobody waited
    requests.on_new_request(request("one"))
    assert requests.get_num_new_matched_tokens(request("one"), 0) == (None, False)
    requests.on_new_request(request("two"))  # one more that waits: twice as much may be waited
    assert idles(0.3) == (None, False) and idles(0.2) == (0, False)


def test_what_is_being_fetched_may_take_what_was_planned(model: Path, monkeypatch: Any) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    desk = Desk()
    requests = side(model, desk)
    requests.on_new_request(request("one"))
    desk.searches[0].planned = 5.0
    now[0] += 4.0
    assert requests.get_num_new_matched_tokens(request("one"), 0) == (None, False)
    now[0] += 2.0
    assert requests.get_num_new_matched_tokens(request("one"), 0) == (0, False)


def test_who_begins_alike_waits_for_the_first(model: Path, monkeypatch: Any) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    leader, follower = LookUp(), LookUp()
    follower.leader = leader
    assert follower.under_way is leader
    now[0] += 50.0
    leader.end()
    assert follower.under_way is follower and follower.waited == 0.0


def test_a_request_may_say_that_it_is_not_to_be_looked_up(model: Path) -> None:
    desk = Desk()
    requests = side(model, desk)
    asked = request("one")
    asked.kv_transfer_params = {"kvswap": {"lookup": False}}
    requests.on_new_request(asked)
    assert not desk.searches and requests.get_num_new_matched_tokens(asked, 0) == (0, False)
