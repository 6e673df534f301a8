"""A chunk that was damaged or deleted here: who asks gets an answer, and what is not here is not said to be."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kvswap.api import AskRequest
from kvswap.api.events import TokenEvent
from kvswap.artifact.layout import needed
from kvswap.core.errors import IntegrityError, KvswapError, NotFound
from kvswap.core.ids import Cid
from kvswap.exchange import Node
from kvswap.exchange.ask import answer
from kvswap.store.files import chunk_path, chunk_reader
from kvswap.trust import one_key, read_statement
from kvswap.worker.conversation import EndNotice
from kvswap.worker.messages import AnswerJob, ComputedAnswer, TokenizedText, TokenizeJob
from tests.exchange.test_fetch import DOCUMENT, SlowModel, world
from tests.support import Ingested, make_artifact, run

TEXT = "a document for tests"


def ask(**options: Any) -> AskRequest:
    return AskRequest(ref=DOCUMENT, question="Is it?", max_tokens=1, **options)


class HostedRequest(SlowModel):
    """Answers from chunks that it reads and checks itself, as the model process does, or else by prefilling."""

    def __init__(self) -> None:
        super().__init__()
        self.done: Counter[str] = Counter()
        self.refuses: KvswapError | None = None
        self.says = False

    async def warm(self, choice: Any) -> None:
        pass

    async def run(self, choice: Any, job: Any, on_event: Any = None, outbox: Any = None) -> Any:
        if isinstance(job, TokenizeJob):
            return TokenizedText(tokens=5, ids=b"", token_digest=bytes(32), chain=[bytes(32)])
        assert isinstance(job, AnswerJob)
        computed = 5
        if job.envelope is not None:
            self.done["cache"] += 1
            if self.says:
                await on_event(TokenEvent(text="It"))
            if self.refuses is not None:
                raise self.refuses
            statement = read_statement(job.envelope, one_key(job.key))
            while outbox is not None and not isinstance(await outbox.get(), EndNotice):
                pass
            read = chunk_reader(Path(str(job.chunks)))
            for file in (statement.manifest.chunks[i] for i in needed(statement.manifest)):
                if Cid.of(read(file.id)) != file.id:
                    raise IntegrityError(f"chunk {file.id} does not have its digest", hint="kvswap verify --store")
            computed = 0
        else:
            self.done["prefill"] += 1
        return said(computed)


def said(computed: int) -> ComputedAnswer:
    """An answer about a document of five tokens."""
    micros = dict.fromkeys(("load_us", "prefill_us", "first_us", "ready_us", "total_us"), 1)
    told = {"text": "It is.", "token_ids": [1], "logits_digest": "", "claim": "", "tokens": 5, "samples": []}
    return ComputedAnswer(computed=computed, **micros, **told)  # type: ignore[arg-type]


def harm(node: Node, made: Ingested, how: str) -> list[Cid]:
    """Two of the chunks are not what they were; the index does not know."""
    cids = [made.manifest.chunks[i].id for i in sorted(needed(made.manifest))[:2]]
    for cid in cids:
        path = chunk_path(node.store.chunks_directory, cid)
        path.unlink() if how == "deleted" else path.write_bytes(b"rot")
    return cids


@pytest.mark.parametrize("how", ["deleted", "damaged"])
@pytest.mark.parametrize("text", [None, TEXT])
def test_with_somebody_who_has_it_what_is_damaged_is_fetched_anew(tmp_path: Path, how: str, text: str | None) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made, model = make_artifact(tokens=40, text=TEXT.encode()), HostedRequest()
            holder, reader = await w.node(), await w.node(model=model)
            w.give(holder, made)
            w.give(reader, made)
            cids = harm(reader, made, how)
            answered = await answer(reader, ask(text=text, force=True))
            assert answered["text"] == "It is." and answered["artifact"] == made.id and answered["wire_bytes"] > 0
            assert model.done == {"cache": 2} and reader.store.missing(cids) == []
            assert "damaged_here" in [event["event"] for event in reader.events.recent()]
            assert reader.store.verify().clean

    run(body())


@pytest.mark.parametrize("how", ["deleted", "damaged"])
def test_with_nobody_else_it_is_prefilled_or_told_as_not_here(tmp_path: Path, how: str) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made, model = make_artifact(tokens=40, text=TEXT.encode()), HostedRequest()
            node = await w.node(model=model)
            w.give(node, made)
            cids = harm(node, made, how)
            answered = await answer(node, ask(text=TEXT))
            assert answered["text"] == "It is." and answered["plan"]["action"] == "prefill"
            assert model.done == {"cache": 1, "prefill": 1} and node.store.missing(cids) == cids
            with pytest.raises(NotFound):
                await answer(node, ask())

    run(body())


@pytest.mark.parametrize("says", [False, True])
def test_what_is_no_damage_here_or_was_begun_to_be_answered_is_not_tried_again(tmp_path: Path, says: bool) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made, model = make_artifact(tokens=40, text=TEXT.encode()), HostedRequest()
            node = await w.node(model=model)
            w.give(node, made)
            model.says, model.refuses = says, IntegrityError("it does not decode")
            if says:
                harm(node, made, "damaged")
            with pytest.raises(IntegrityError, match="does not decode"):
                await answer(node, ask(text=TEXT))
            assert model.done == {"cache": 1}

    run(body())


def test_who_reads_beside_the_node_is_told_what_helps(tmp_path: Path) -> None:
    """`fetch` alone says that all is here, as the index does."""
    with pytest.raises(NotFound) as told:
        chunk_reader(tmp_path)(Cid.of(b"gone"))
    assert "kvswap verify --store" in told.value.hint
