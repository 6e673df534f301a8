"""Answering, with the model process's own jobs in a thread: from what is stored, fetched or prefilled, to the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvswap.api import AskRequest, AskResult
from kvswap.core.errors import InvalidDocument, NotFound, PlanSaysPrefill, UsageError
from kvswap.core.ids import document_digest
from kvswap.core.limits import LIMITS
from kvswap.exchange.ask import answer
from kvswap.exchange.publish import publish
from kvswap.exchange.request import Progress, silent
from kvswap.store.files import chunk_path
from tests.exchange.modelled import jobs_of, publisher_and_reader
from tests.support import DOCUMENT, run

TEXT = DOCUMENT.read_text()[:700]
REFERENCE = document_digest(TEXT.encode())
OTHER = TEXT[:500] + " And something else entirely, which nobody has published yet."


async def asked(
    node: Any, text: str | None = TEXT, reference: str = REFERENCE, progress: Progress = silent, **given: Any
) -> AskResult:
    request = AskRequest(ref=reference, question="What?", max_tokens=8, text=text, ignore_eos=True, **given)
    return await answer(node, request, progress)


def test_fetched_stored_or_prefilled_the_answer_has_the_same_bits(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["gemma3"]) as (_, a, b):
            made = await publish(a, TEXT.encode())
            prefilled = await asked(b, prefill=True)
            assert prefilled["artifact"] is None and prefilled["computed_tokens"] == prefilled["tokens"]
            assert prefilled["plan"]["reason"] == "asked for" and len(prefilled["token_ids"]) == 8
            fetched = await asked(b, force=True)
            assert fetched["artifact"] == made["artifact"] and fetched["from"] == [a.transport.peer]  # type: ignore[union-attr]
            assert fetched["computed_tokens"] + fetched["fetched_tokens"] == fetched["tokens"] == made["tokens"]
            stored = await asked(b, None, made.artifact, force=True)
            own = await asked(a)
            assert {x["logits_digest"] for x in (prefilled, fetched, stored, own)} == {prefilled["logits_digest"]}
            assert fetched["token_ids"] == prefilled["token_ids"] and fetched["claim"] == "bitwise"
            assert own["wire_bytes"] == 0  # while the other may still lack what it had computed before

    run(body())


def test_of_another_document_only_what_is_not_shared_is_computed(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"]) as (_, a, b):
            made = await publish(a, TEXT.encode())
            reference = document_digest(OTHER.encode())
            alone = await asked(b, OTHER, reference, prefill=True)
            shared = await asked(b, OTHER, reference, force=True, aim="money")
            assert shared["artifact"] == made["artifact"] and shared["logits_digest"] == alone["logits_digest"]
            assert shared["fetched_tokens"] >= 64 and shared["fetched_tokens"] % 64 == 0
            assert shared["computed_tokens"] == alone["tokens"] - shared["fetched_tokens"] > 0

    run(body())


def test_without_anybody_who_offers_it_a_text_is_prefilled_and_a_digest_is_not_found(
    tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"]) as (_, _a, b):
            made = await asked(b)
            assert made["artifact"] is None and made["plan"]["action"] == "prefill"
            assert "nobody offers" in made["plan"]["reason"] and made["wire_bytes"] == 0
            with pytest.raises(NotFound):
                await asked(b, None)

    run(body())


def test_a_plan_that_says_prefill_is_followed_with_a_text_and_told_without(
    tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"], price_per_gb=1e6) as (_, a, b):
            await publish(a, TEXT.encode())
            b.calibration.add_prefill((await b.model.choose()).calibration_key, [(0, 64, 1e-6)])
            made = await asked(b, aim="money")
            assert made["artifact"] is None and "prefilling here is better" in made["plan"]["reason"]
            with pytest.raises(PlanSaysPrefill):
                await asked(b, None, aim="money")

    run(body())


def test_what_is_damaged_here_is_fetched_anew(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"]) as (_, a, b):
            made = await publish(a, TEXT.encode())
            right = await asked(b, None, force=True)
            chunk = b.read(b.store.envelope(made["artifact"])).manifest.chunks[0].id  # type: ignore[arg-type]
            chunk_path(b.store.chunks_directory, chunk).write_bytes(b"rot")
            again = await asked(b, None, force=True)
            assert again["logits_digest"] == right["logits_digest"] and again["wire_bytes"] > 0
            assert "damaged_here" in [event["event"] for event in b.events.recent()] and b.store.verify().clean

    run(body())


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"question": " "}, InvalidDocument),
        ({"question": "x" * (LIMITS.question_bytes + 1)}, InvalidDocument),
        ({"max_tokens": 0}, UsageError),
        ({"max_tokens": 4097}, UsageError),
        ({"prefill": True, "text": None}, UsageError),
        ({"prefill": True, "host": "auto"}, UsageError),
    ],
)
def test_what_cannot_be_asked_is_told_before_anything_is_looked_for(
    tmp_path: Path, tiny_models: dict[str, Path], given: dict[str, Any], error: type[Exception]
) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"]) as (_, _a, b):
            usual: dict[str, Any] = {"question": "What?", "max_tokens": 1, "text": TEXT}
            with pytest.raises(error):
                await answer(b, AskRequest(ref=REFERENCE, **(usual | given)))
            assert not jobs_of(b)

    run(body())


def test_where_no_host_is_known_it_is_answered_here(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"]) as (_, a, b):
            events: list[str] = []

            async def progress(event: dict[str, Any]) -> None:
                events.append(event["event"])

            made = await asked(a, host="auto", progress=progress)
            assert made["plan"]["action"] == "prefill" and events.count("token") == 8
            with pytest.raises((NotFound, UsageError)):
                await asked(b, host=str(a.identity.publisher.peer_id))

    run(body())
