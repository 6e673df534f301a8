"""Publishing by its parts: what is marked, which blocks a step completes, and how a cache is read back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kvswap.core.errors import Incompatible, UsageError
from kvswap.integrations.vllm.engine import KVCacheGroup
from kvswap.integrations.vllm.paged import PagedLayer
from kvswap.integrations.vllm.save_requests import Recent, SaveRequests
from kvswap.integrations.vllm.settings import ConnectorSettings

PAGE, BLOCK = 4, 8
GROUP = KVCacheGroup(("x",), (0,), PAGE, 2, 8, 8, None)
ENGINE: Any = SimpleNamespace(
    identity=SimpleNamespace(digest=bytes(32)), groups=(GROUP,), block_tokens=PAGE, hybrid=False
)


def marks(**settings: Any) -> SaveRequests:
    return SaveRequests(
        ENGINE, ConnectorSettings(**{"block_tokens": BLOCK, "min_tokens": PAGE, "publish": "asked"} | settings)
    )


def request(name: str, ids: list[int], publish: Any = True, salt: str | None = None) -> Any:
    params = {"kvswap": {"publish": publish}} if publish is not None else None
    return SimpleNamespace(request_id=name, prompt_token_ids=ids, kv_transfer_params=params, cache_salt=salt)


def output(**scheduled: tuple[int, int]) -> Any:
    """Requests with (tokens before, tokens now); block n of a request is number n + 1."""
    cached = SimpleNamespace(req_ids=list(scheduled), num_computed_tokens=[before for before, _ in scheduled.values()])
    return SimpleNamespace(
        scheduled_new_reqs=[],
        scheduled_cached_reqs=cached,
        num_scheduled_tokens={name: now for name, (_, now) in scheduled.items()},
        kv_connector_block_state=SimpleNamespace(get_block_ids=lambda name: (list(range(1, 100)),)),
    )


def nothing(name: str) -> int:
    return 0


def test_each_step_gives_what_it_completes_and_no_more() -> None:
    made = marks()
    made.on_new_request(request("a", list(range(30))))
    (first,) = made.step(output(a=(0, 10)), nothing)
    assert (first.first, first.stop, first.tokens, first.blocks) == (0, 10, 28, ((1, 2, 3),)) and first.ids
    assert not made.step(output(b=(0, 10)), nothing)
    (second,) = made.step(output(a=(10, 20)), nothing)  # to the prompt's end; 28 are whole pages
    assert (second.first, second.stop, second.blocks, second.ids) == (10, 28, ((3, 4, 5, 6, 7),), b"")
    assert not made.step(output(a=(30, 1)), nothing) and not made.dropped()


@pytest.mark.parametrize(
    "publish", [None, False, {"tokens": 0}, {"tokens": 31}, {"tokens": True}, {"tokens": "8"}, [8], "yes"]
)
def test_what_is_no_mark_publishes_nothing(publish: Any) -> None:
    made = marks()
    made.on_new_request(request("a", list(range(30)), publish))
    assert not made.step(output(a=(0, 30)), nothing)


def test_so_many_tokens() -> None:
    made = marks()
    made.on_new_request(request("a", list(range(30)), {"tokens": 9}))
    (save,) = made.step(output(a=(0, 30)), nothing)
    assert (save.stop, save.tokens, save.blocks) == (9, 9, ((1, 2, 3),))


def test_salted_published_already_and_sent_before() -> None:
    made = marks()
    made.on_new_request(request("salted", list(range(30)), salt="s"))
    made.on_new_request(request("known", list(range(100, 130))))
    made.on_new_request(request("once", list(range(200, 230))))
    saves = made.step(output(salted=(0, 30), known=(0, 30), once=(0, 30)), lambda name: 28 * (name == "known"))
    assert [save.request for save in saves] == ["once"]
    made.on_new_request(request("again", list(range(200, 230))))
    assert not made.step(output(again=(0, 30)), nothing)


def test_what_was_loaded_is_not_published_nor_what_contains_it() -> None:
    made = marks()
    loaded = request("loaded", list(range(30)))
    made.on_new_request(loaded)
    made.loaded(loaded, 8, 15)  # pages 2 and 3, the last in part
    assert not made.step(output(loaded=(15, 15)), nothing)
    made.on_new_request(request("same", list(range(30))))
    made.on_new_request(request("before", list(range(9)), {"tokens": 8}))  # pages 0 and 1 were computed here
    made.on_new_request(request("within", list(range(30)), {"tokens": 9}))
    step = output(same=(0, 30), before=(0, 9), within=(0, 30))
    assert [save.request for save in made.step(step, nothing)] == ["before"]


def test_a_request_that_ends_in_the_middle_is_dropped() -> None:
    made = marks()
    made.on_new_request(request("a", list(range(30))))
    made.step(output(a=(0, 10)), nothing)
    made.forget("a")
    assert made.dropped() == ["a"] and not made.dropped()
    made.on_new_request(request("b", list(range(30))))
    made.forget("b")  # of which nothing was saved
    assert not made.dropped()


def test_what_two_prompts_begin_with() -> None:
    made = marks(publish="repeated", group="lab")
    shared = list(range(20))
    made.on_new_request(request("a", shared + [50] * 10, publish=None))
    made.on_new_request(request("b", shared + [60] * 10, publish=None))
    (save,) = made.step(output(a=(0, 30), b=(0, 30)), nothing)
    assert (save.request, save.tokens) == ("b", 16)


def test_a_policy_is_for_a_group_alone() -> None:
    with pytest.raises(UsageError, match="group"):
        ConnectorSettings.of({"publish": "repeated"})
    with pytest.raises(UsageError, match="publish"):
        ConnectorSettings.of({"publish": "always"})
    assert ConnectorSettings.of({"publish": "repeated", "group": "lab"}).group == "lab"


def test_what_was_seen_is_forgotten_in_time() -> None:
    recent = Recent(most=2)
    assert [recent.add(digest) for digest in (b"a", b"a", b"b", b"c", b"a")] == [1, 2, 1, 1, 1]
    assert b"c" in recent and b"b" not in recent


class Backend:
    """Writes as some backend might: K transposed and shuffled, V after it, a gap between."""

    def __init__(self, lossy: bool = False) -> None:
        self._lossy = lossy
        self._order = torch.randperm(8, generator=torch.Generator().manual_seed(1))

    def do_kv_cache_update(self, layer: Any, k: Any, v: Any, cache: Any, slots: Any) -> None:
        flat = cache.view(cache.shape[0], -1)
        half = 2 * PAGE * 8
        for token, slot in enumerate(slots.tolist()):
            block, at = divmod(slot, PAGE)
            keys = flat[block, :half].view(2, 8, PAGE)
            keys[:, self._order, at] = k[token] / 3 if self._lossy else k[token]
            flat[block, half + 16 : 2 * half + 16].view(PAGE, 2, 8)[at] = v[token]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_cache_is_read_back_whatever_its_layout(dtype: torch.dtype) -> None:
    cache = torch.zeros(6, 2 * 2 * PAGE * 8 + 16, dtype=dtype)
    layer = PagedLayer(SimpleNamespace(impl=Backend()), cache)
    layer.learn(GROUP)
    assert not cache.any()  # a scratch block was written, not the engine's
    k, v = (torch.randn(2, 3 * PAGE, 8).to(dtype) for _ in range(2))
    blocks = [4, 1, 2]
    slots = torch.tensor([block * PAGE + at for block in blocks for at in range(PAGE)])
    layer.put(k, v, slots)
    read_k, read_v = layer.get(blocks, GROUP)
    assert torch.equal(read_k, k) and torch.equal(read_v, v)


def test_a_cache_that_does_not_keep_what_is_written_is_refused() -> None:
    layer = PagedLayer(SimpleNamespace(impl=Backend(lossy=True)), torch.zeros(6, 2 * 2 * PAGE * 8 + 16))
    with pytest.raises(Incompatible, match="Backend"):
        layer.learn(GROUP)
