"""V5 of a stranger's artifact that keeps states: what is drawn is told, fetched and computed; the plan counts it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from kvswap.api.events import IntervalsEvent
from kvswap.api.requests import PublishOptions
from kvswap.artifact.layout import needed_files
from kvswap.core.errors import PlanSaysPrefill, Untrusted
from kvswap.core.ids import Cid, document_digest
from kvswap.exchange import Node
from kvswap.exchange.fetch import fetch
from kvswap.exchange.publish import publish
from kvswap.exchange.request import Terms
from kvswap.exchange.transfer.intervals import prepare_draw
from kvswap.store.files import chunk_path
from kvswap.trust.intervals import drawn, files_of
from tests.exchange.modelled import publisher_and_reader
from tests.families import build
from tests.support import DOCUMENT, run

TEXT = DOCUMENT.read_text()[:900]
REFERENCE = document_digest(TEXT.encode())
STRANGERS = Terms(force=True, allow_untrusted=True)
POINTS = PublishOptions(checkpoints=(64, 128, 192, 256))


@pytest.fixture(scope="module")
def delta_net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("model") / "delta", "qwen3.5")


@pytest.fixture(autouse=True)
def little_noise() -> Iterator[None]:
    with mock.patch("kvswap.worker.noise.TOKENS", 256):
        yield


def stranger(publisher: Node, reader: Node) -> None:
    reader.trust.policy.remove(str(publisher.identity.publisher.peer_id))


def test_a_strangers_states_are_verified_by_intervals_and_then_used(tmp_path: Path, delta_net: Path) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, delta_net) as (_, a, b):
            await publish(a, TEXT.encode(), POINTS)
            stranger(a, b)
            events = []

            async def note(event: object) -> None:
                events.append(event)

            done = await fetch(b, REFERENCE, STRANGERS, note, text=TEXT)
            assert {"V1", "V2", "V3", "V5"} <= set(done.verification["passed"])
            (told,) = [event for event in events if isinstance(event, IntervalsEvent)]
            manifest = done.statement.manifest
            seed = await prepare_draw(b, done.statement, 32, note)
            draw = drawn(manifest, seed, bytes(done.statement.artifact), 32)
            assert (told.intervals, told.of) == (len(draw.intervals), draw.of) and draw.of > told.intervals
            assert told.chance == round(draw.chance, 4) >= 0.25 and 0 < told.cost < 1
            here = {i for i, file in enumerate(manifest.files) if not b.store.missing([file.id])}
            assert here == set(files_of(manifest, draw)) | set(needed_files(manifest))  # and no other checkpoints

    run(body())


def test_who_keeps_a_drawn_state_back_is_not_used_and_meets_the_same_draw_again(
    tmp_path: Path, delta_net: Path
) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, delta_net) as (_, a, b):
            made = await publish(a, TEXT.encode(), POINTS)
            stranger(a, b)
            statement = a.read(a.store.envelope(made["artifact"]))  # type: ignore[arg-type]
            manifest = statement.manifest
            end = set(needed_files(manifest))
            for cid in {file.id for file in manifest.files} - {manifest.files[i].id for i in end}:
                path = chunk_path(a.store.chunks_directory, cid)
                if path.exists():
                    path.unlink()
            seeds = set()
            for _ in range(2):
                with pytest.raises(Untrusted, match="intervals drawn is not here"):
                    await fetch(b, Cid.parse(made["artifact"]), STRANGERS, text=TEXT)
                seeds.add(await prepare_draw(b, statement, 32, _silent))
            assert len(seeds) == 1

    run(body())


async def _silent(event: object) -> None:
    pass


def test_where_only_the_end_is_kept_prefilling_is_planned_instead(tmp_path: Path, delta_net: Path) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, delta_net) as (_, a, b):
            with mock.patch("kvswap.artifact.checkpoints.spacing", lambda *_: 0):
                await publish(a, TEXT.encode())
            wanted = Terms(allow_untrusted=True)
            stranger(a, b)
            with pytest.raises(PlanSaysPrefill, match="checking it is prefilling it"):
                await fetch(b, REFERENCE, wanted, text=TEXT)
            done = await fetch(b, REFERENCE, STRANGERS, text=TEXT)
            assert "V5" in done.verification["passed"]  # all of it was computed
            await fetch(b, REFERENCE, wanted, text=TEXT)  # verified, it is worth loading

    run(body())
