"""What a manifest of many chunks costs is not paid on the event loop, which answers everybody else meanwhile.

Counted are the lines of Python that run on the loop's thread: for an artifact of eight times as many chunks hardly
more.  What is fetched, chunk by chunk, is another matter.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from kvswap.artifact.archive import pack
from kvswap.cost import Objective
from kvswap.daemon.artifacts_api import ArtifactsApi
from kvswap.exchange import Node
from kvswap.exchange.fetch import fetch
from kvswap.exchange.import_archive import import_archive
from kvswap.exchange.model_port import Wanted
from kvswap.exchange.planning.decision import plan_chunks
from kvswap.exchange.prefix import CachedPrefix, fetch_prefix, longest_cached_prefix
from kvswap.exchange.request import Terms, lookup_of, silent
from kvswap.exchange.transfer.hybrid import CacheOrigin, run_from
from kvswap.exchange.verify import run_checks
from kvswap.trust.levels import Level
from kvswap.worker.conversation import EndNotice
from kvswap.worker.messages import AnswerJob, ComputedAnswer
from tests.counting import counting
from tests.exchange.test_fetch import SlowModel, World, world
from tests.support import FULL, Ingested, identity, make_artifact, run

BLOCK = 8


def artifact(chunks: int) -> Ingested:
    return make_artifact(tokens=chunks * BLOCK, block_tokens=BLOCK, specs=(FULL,), model=identity())


async def lines(work: Awaitable[Any]) -> int:
    """How many lines of Python, and turns of comprehensions, run on this thread until the work is done."""
    with counting() as counted:
        await work
    return counted.lines


async def plan(w: World, node: Node, made: Ingested) -> int:
    return await lines(plan_chunks(node, made.manifest, None, (), Objective("time"), hybrid=True))


async def fetch_again(w: World, node: Node, made: Ingested) -> int:
    return await lines(fetch(node, made.statement.artifact))


async def look_for_prefix(w: World, node: Node, made: Ingested) -> int:
    choice = await node.model.choose()
    chain, terms = made.manifest.prefix.chain[:4], lookup_of(Terms(), local=True)
    return await lines(longest_cached_prefix(node, Wanted.of(choice), chain, BLOCK, terms, list(range(32))))


async def use_prefix(w: World, node: Node, made: Ingested) -> int:
    found = CachedPrefix(made.statement, (len(made.manifest.chunks) - 1) * BLOCK, ())
    return await lines(fetch_prefix(node, found, Terms(force=True)))


async def take_archive(w: World, node: Node, made: Ingested) -> int:
    """The files themselves come one by one; without any of them the manifest alone is what it costs."""
    data = b"".join(pack(made.statement.artifact, made.statement.envelope, []))

    async def pieces() -> AsyncIterator[bytes]:
        yield data

    with pytest.raises(Exception, match="are not in the archive"):
        await import_archive(node, pieces())
    return await lines(_refused(import_archive(node, pieces())))


class Answering(SlowModel):
    """A model that answers once nothing more comes."""

    async def run(self, choice: Any, job: Any, on_event: Any = None, outbox: Any = None) -> Any:
        while outbox is not None and not isinstance(await outbox.get(), EndNotice):
            pass
        return ComputedAnswer(
            text="", token_ids=[], logits_digest="", tokens=1, computed=0, claim="", load_us=1, prefill_us=0,
            ready_us=0, first_us=0, total_us=0, samples=[],
        )  # fmt: skip


async def answer(w: World, node: Node, made: Ingested) -> int:
    """From the store, or else while it is fetched: nobody has it, so that no chunk comes."""
    planned = await plan_chunks(node, made.manifest, None, (), Objective("time"), hybrid=True)
    source = CacheOrigin(made.statement, None, planned, 0.0)
    job = AnswerJob(question="What?", steps=1, block_tokens=BLOCK, text="a text")
    return await lines(run_from(node, await node.model.choose(), source, Terms(), silent, silent, job))


async def hash_chunks(w: World, node: Node, made: Ingested) -> int:
    return await lines(run_checks(node, made.statement, (Level.POLICY, Level.DIGESTS)))


async def show(w: World, node: Node, made: Ingested) -> int:
    request = make_mocked_request("GET", "/", match_info={"ref": str(made.statement.artifact)})
    with counting(of="kvswap/daemon") as counted:  # and not what stands in for a connection
        await ArtifactsApi(node).artifact(request)
    return counted.lines


async def _refused(work: Awaitable[Any]) -> None:
    try:
        await work
    except Exception:  # noqa: BLE001 - that it is refused was seen before
        return


@pytest.mark.parametrize(
    "way", [plan, fetch_again, look_for_prefix, use_prefix, take_archive, answer, hash_chunks, show]
)
def test_eight_times_the_chunks_are_no_more_work_for_the_loop(
    way: Callable[[World, Node, Ingested], Awaitable[int]], tmp_path: Path
) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            node = await w.node(model=Answering(), p2p=False)
            counts = []
            for chunks in (64, 512):
                made = artifact(chunks)
                if way is not take_archive:
                    w.give(node, made)
                await way(w, node, made)  # what is done once for each artifact is done
                counts.append(await way(w, node, made))
            assert counts[1] < counts[0] + 448, counts  # not one line a chunk

    run(body())


def test_waiting_for_what_nobody_has_is_no_more_work_either(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            node = await w.node(model=Answering(), p2p=False)
            counts = []
            for chunks in (64, 512):
                made = artifact(chunks)
                await answer(w, node, made)
                counts.append(await answer(w, node, made))
            # How often it looks again while it waits is the machine's; looking at each chunk would be eight times as much.
            assert counts[1] < 4 * counts[0], counts

    run(body())
