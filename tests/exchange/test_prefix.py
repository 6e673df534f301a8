"""The shared beginning of two documents, with the model process's own jobs in a thread: found, weighed and fetched."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from kvswap.artifact.chain import chain_digests, pack_ids, token_sequence_of
from kvswap.core.errors import PlanSaysPrefill
from kvswap.core.ids import Cid
from kvswap.exchange import Node
from kvswap.exchange.discovery.pulling import cached_prefix_keys
from kvswap.exchange.fetch import fetch
from kvswap.exchange.model_port import Wanted
from kvswap.exchange.node.listing import list_artifact
from kvswap.exchange.prefix import (
    CachedPrefix,
    check_prefix_plan,
    fetch_prefix,
    find_prefix,
    longest_cached_prefix,
    plan_prefix,
)
from kvswap.exchange.publish import publish
from kvswap.exchange.request import STRICT, Terms, lookup_of
from kvswap.exchange.withdraw import withdraw
from kvswap.worker.messages import TokenizeJob
from tests.exchange.modelled import publisher_and_reader
from tests.families import build
from tests.support import DOCUMENT, make_artifact, run

TEXT = DOCUMENT.read_text()[:700]
OTHER = TEXT[:500] + " And something else entirely, which nobody has published yet."
FORCED = Terms(force=True)


async def look(node: Node, text: str = OTHER, terms: Terms = STRICT) -> tuple[int, CachedPrefix | None]:
    return await find_prefix(node, await node.model.choose(), text, terms)


def test_a_beginning_ends_at_a_block_and_a_whole_document_at_its_end(
    tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"]) as (_, a, b):
            made = await publish(a, TEXT.encode())
            tokens, found = await look(b)
            assert found is not None and str(found.statement.artifact) == made["artifact"]
            assert 64 <= found.tokens < tokens and found.tokens % 64 == 0
            assert found.peers == (a.transport.peer,)  # type: ignore[union-attr]
            longer = TEXT + " and more after it"
            _, all_of_it = await look(b, longer)
            assert all_of_it is not None and all_of_it.tokens == made["tokens"] // 64 * 64
            choice = await b.model.choose()
            ids = b.model.loaded.tokenize(longer)  # type: ignore[attr-defined]
            told = await b.model.run(choice, TokenizeJob(text=longer, block_tokens=64))
            whole = await longest_cached_prefix(b, Wanted.of(choice), told.chain, 64, ids=ids)
            shared = whole.statement.manifest.prefix.tokens if whole is not None else 0
            assert shared == made["tokens"] and whole is not None
            assert whole.tokens in (shared, all_of_it.tokens)  # to its end where its last token is the longer one's too
            assert await look(b, "Nothing of this was ever published.") == (pytest.approx(20, abs=20), None)

    run(body())


def test_the_longest_of_several_wins_and_of_equals_what_is_here(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"]) as (_, a, b):
            short = await publish(a, TEXT[:300].encode())
            _, found = await look(b)
            assert found is not None and str(found.statement.artifact) == short["artifact"]
            long = await publish(a, TEXT.encode())
            b.network.prefix_indexes.expire(a.transport.peer)  # type: ignore[union-attr]
            _, found = await look(b)
            assert found is not None and str(found.statement.artifact) == long["artifact"]
            own = await publish(b, TEXT.encode())
            _, found = await look(b)
            assert found is not None and str(found.statement.artifact) == own["artifact"] and found.peers == ()
            _, found = await look(b, terms=lookup_of(STRICT, local=True))
            assert found is not None and found.peers == ()

    run(body())


@pytest.mark.parametrize("why", ["withdrawn", "untrusted", "other blocks", "local only"])
def test_what_is_not_to_be_used_begins_nothing(tmp_path: Path, tiny_models: dict[str, Path], why: str) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"]) as (_, a, b):
            made = await publish(a, TEXT.encode())
            terms = STRICT
            if why == "withdrawn":
                await withdraw(a, Cid.parse(made["artifact"]), "a typing error")
            elif why == "untrusted":
                b.trust.policy.remove(str(a.identity.publisher.peer_id))
                terms = msgspec.structs.replace(terms, allow_untrusted=True)  # a part cannot be verified by itself
            elif why == "other blocks":
                object.__setattr__(b.settings, "block_tokens", 32)
            else:
                terms = lookup_of(terms, local=True)
            assert (await look(b, terms=terms))[1] is None
            if why == "untrusted":
                assert "beginning_refused" in [event["event"] for event in b.events.recent()]

    run(body())


def test_only_the_chunks_of_the_beginning_are_fetched_and_once(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"]) as (_, a, b):
            made = await publish(a, TEXT.encode())
            _, found = await look(b)
            assert found is not None
            planned = await plan_prefix(b, found)
            chunks = found.statement.manifest.chunks
            assert planned.missing_bytes == sum(chunks[i].length for i in found.chunks) < made["wire_bytes"]
            await fetch_prefix(b, found, FORCED)
            assert b.store.used_bytes == planned.missing_bytes
            assert (await plan_prefix(b, found)).missing_bytes == 0
            before = a.counters.bytes_out
            await fetch_prefix(b, found, FORCED)
            assert a.counters.bytes_out == before

    run(body())


def test_an_identity_that_equals_a_chain_digest_continues_nothing(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    """Both are hashes of so many bytes: a publisher can sign a model that is called as a document's first block is.

    Its chain is then that of the document from the second block on, and is found by it; what is used is another matter:
    only what agrees from the first token on, and of this very model.
    """

    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"], block_tokens=16) as (_, a, b):
            ids = b.model.loaded.tokenize(TEXT)  # type: ignore[attr-defined]
            honest = (await b.model.choose()).identity
            chain = chain_digests(honest.digest, ids, 16)
            first = pack_ids(ids[:16])
            called = msgspec.structs.replace(honest, weights=honest.digest, config=first[:32], tokenizer=first[32:])
            assert called.digest == chain[0]
            rest = token_sequence_of(called.digest, ids[16:], 16)
            assert rest.chain[0] == chain[1]
            made = make_artifact(
                a.identity.publisher, tokens=len(ids) - 16, block_tokens=16, dtype="float32", model=called, prefix=rest
            )
            for node in (a, b):
                for cid, data in made.chunks.items():
                    node.store.put_chunk(data, cid)
                list_artifact(node.store, made.statement)
                assert node.store.longest_prefix(chain)
            for terms in (STRICT, FORCED, lookup_of(STRICT, local=True)):
                assert (await look(b, TEXT, terms))[1] is None
            assert not b.network.prefix_indexes.false_indexes, "nor is the peer blamed that holds it"

    run(body())


def test_who_has_the_end_alone_asks_for_an_inner_checkpoint(tmp_path: Path) -> None:
    """Of states, a whole fetch brings those of the end: where a longer text resumes before it, others have the rest."""

    async def body() -> None:
        async with publisher_and_reader(tmp_path, build(tmp_path / "model", "lfm2")) as (_, a, b):
            made = await publish(a, TEXT.encode())
            await fetch(b, Cid.parse(made["artifact"]), FORCED)
            assert b.store.lookup(Cid.parse(made["artifact"]))[0].complete
            _, found = await look(b)
            assert found is not None and 0 < found.tokens < made["tokens"]
            assert found.peers == (a.transport.peer,)  # type: ignore[union-attr]
            manifest = found.statement.manifest
            planned = await plan_prefix(b, found)
            states = [c for c in manifest.chunks if manifest.layout.is_state(c.run)]
            assert 0 < planned.missing_bytes <= sum(chunk.length for chunk in states)
            await fetch_prefix(b, found, FORCED)
            _, again = await look(b)
            assert again is not None and (again.tokens, again.peers) == (found.tokens, ())
            _, alone = await look(b, terms=lookup_of(STRICT, local=True))
            assert alone is not None and alone.peers == ()

    run(body())


def test_one_that_is_not_worth_it_is_not_fetched(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"], price_per_gb=1e6) as (_, a, b):
            await publish(a, TEXT.encode())
            b.calibration.add_prefill((await b.model.choose()).calibration_key, [(0, 64, 1e-6)])
            cheap = Terms(aim="money")
            _, found = await look(b, terms=cheap)
            assert found is not None
            with pytest.raises(PlanSaysPrefill, match="is not worth it"):
                await fetch_prefix(b, found, cheap)
            assert b.store.used_bytes == 0
            check_prefix_plan(found, await plan_prefix(b, found, cheap), msgspec.structs.replace(cheap, force=True))

    run(body())


def test_who_looks_up_often_is_told_of_all_beginnings_at_once(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"]) as (_, a, b):
            version, keys = await cached_prefix_keys(b, "", 0.0)
            assert keys == b""
            again, _ = await cached_prefix_keys(b, version, 0.0)
            assert again == version
            await publish(a, TEXT.encode())
            b.network.prefix_indexes.expire(a.transport.peer)  # type: ignore[union-attr]
            changed, keys = await cached_prefix_keys(b, version, 30.0)
            assert changed != version and keys
            b.trust.groups.new("team")
            assert (await cached_prefix_keys(b, changed, 30.0))[1] is None  # some have other names than their own

    run(body())
