"""Weighing, over nodes in this process: whom to fetch from, in which codec, what is missing, and when to measure."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest

from kvswap.core.errors import Incompatible
from kvswap.core.ids import document_digest
from kvswap.cost import MIX, Objective
from kvswap.exchange.discovery.resolve import resolve
from kvswap.exchange.planning.decision import (
    best,
    best_link,
    calibrate,
    judge,
    measure_in_background,
    not_worth_it,
    plan_chunks,
)
from kvswap.exchange.publish import publish
from tests.exchange.modelled import RealModel, jobs_of, publisher_and_reader
from tests.exchange.test_fetch import DOCUMENT, SlowModel, world
from tests.support import DOCUMENT as TEXTS
from tests.support import NoModel, identity, make_artifact, run

TEXT = TEXTS.read_text()[:700]
REFERENCE = document_digest(TEXT.encode())


def test_of_two_codecs_the_smaller_is_taken_over_a_slow_link_and_the_one_in_the_store_over_none(
    tmp_path: Path,
) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            raw, planes = (make_artifact(tokens=64, codec=codec, model=identity()) for codec in ("raw", "planes"))
            holder, reader = await w.node(), await w.node(model=SlowModel())
            w.give(holder, raw)
            w.give(holder, planes)
            peer = holder.transport.peer  # type: ignore[union-attr]
            reader.calibration.add_load({"planes": 1_000_000}, 1.0)
            reader.calibration.add_load({"raw": 1_000_000}, 0.001)
            chosen = {}
            for rate in (1e3, 1e12):
                for _ in range(30):  # what was measured last counts most
                    reader.calibration.add_rate(peer, rate)
                usable = await resolve(reader, DOCUMENT)
                assert {str(r.statement.artifact) for r in usable} == {raw.id, planes.id}
                chosen[rate] = str((await best(reader, usable, Objective("time")))[0].statement.artifact)
            assert chosen == {1e3: planes.id, 1e12: raw.id}

    run(body())


def test_what_is_here_is_not_counted_and_a_beginning_needs_less(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=64, model=identity())
            reader = await w.node(model=SlowModel())
            every = sum(c.length for c in made.manifest.chunks)

            async def missing(tokens: int | None = None) -> int:
                return (await plan_chunks(reader, made.manifest, tokens, ("peer",), MIX)).missing_bytes

            whole, begun = await missing(), await missing(16)
            assert 0 < begun < whole < every  # not the windows that its end has left behind
            first = made.manifest.chunks[0].id
            w.give(reader, made, {first})
            assert await missing() == whole - len(made.chunks[first])
            w.give(reader, made)
            assert await missing() == 0

    run(body())


def test_without_a_model_a_fetch_is_all_there_is(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made, reader = make_artifact(tokens=64), await w.node(model=NoModel())
            planned = await plan_chunks(reader, made.manifest, None, ("peer",), MIX)
            assert planned.plan.action == "fetch" and planned.plan.prefill is None
            nobody = await plan_chunks(reader, made.manifest, None, (), MIX)
            assert nobody.plan.action == "none" and nobody.link is None and nobody.most_per_gb == math.inf
            assert await judge(reader, made.manifest, MIX) is None
            assert best_link(reader, ()) is None

    run(body())


def test_prefill_is_measured_before_money_is_spent_and_beside_a_fetch_once(
    tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"]) as (_, a, b):
            await publish(a, TEXT.encode())
            (usable,) = await resolve(b, REFERENCE)
            _, planned = await best(b, [usable], MIX)
            assert planned.plan.prefill is None and jobs_of(b)["calibrate"] == 0  # not held against a fetch
            choice = await b.model.choose()
            for _ in range(3):
                measure_in_background(b, choice, 64)
            while b.background.measuring:
                await asyncio.sleep(0.005)
            assert jobs_of(b)["calibrate"] == 1
            measure_in_background(b, choice, 64)
            assert not b.background.measuring
            _, planned = await best(b, [usable], MIX, measure=True)
            assert planned.plan.prefill is not None and jobs_of(b)["calibrate"] == 1
            rest = await judge(b, usable.statement.manifest, Objective("time"))
            assert rest is not None
            assert (rest(1e12, 1).action, rest(1e-3, 10**9).action) == ("fetch", "prefill")

    run(body())


@pytest.mark.parametrize("price", [{"price_per_gb": 1.0}, {}])
def test_only_where_bytes_cost_money_a_first_plan_waits_for_a_measurement(
    tmp_path: Path, tiny_models: dict[str, Path], price: dict[str, Any]
) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"], **price) as (_, a, b):
            await publish(a, TEXT.encode())
            await best(b, await resolve(b, REFERENCE), MIX)
            assert jobs_of(b)["calibrate"] == len(price)

    run(body())


def test_a_measurement_that_fails_is_told_and_tried_again(
    tmp_path: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"]) as (_, _a, b):
            choice = await b.model.choose()

            async def fails(*_: Any, **__: Any) -> Any:
                raise Incompatible("not this one")

            with monkeypatch.context() as broken:
                broken.setattr(RealModel, "run", fails)
                measure_in_background(b, choice, 64)
                while b.background.measuring:
                    await asyncio.sleep(0.005)
            assert [e["reason"] for e in b.events.recent() if e["event"] == "not_calibrated"] == ["not this one"]
            curve = await calibrate(b, choice, 64)
            assert curve is not None and curve.seconds(64, 0) > 0

    run(body())


def test_a_plan_that_declines_is_told_with_its_figures(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made, reader = make_artifact(tokens=64), await w.node(model=SlowModel())
            planned = await plan_chunks(reader, made.manifest, None, ("peer",), Objective("time", max_bytes=1))
            assert planned.plan.action != "fetch"
            told = not_worth_it(made.id, planned.plan)
            assert told.exit_code == 8 and told.details["plan"]["action"] == planned.plan.action
            assert "--force" in told.hint  # type: ignore[operator]

    run(body())
