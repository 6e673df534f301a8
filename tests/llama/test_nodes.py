"""Two nodes and a real llama.cpp: what one publishes of a document, the other answers from.  No torch is here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import Daemon, kvswap, last_json

TEXT = "".join(f"Line {i}: the {i * 7919 % 1000}th thing is {i * 31 % 97}.\n" for i in range(40))


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Daemon]]:
    folder = tmp_path_factory.mktemp("nodes")
    ada = Daemon(folder / "ada", cold=True).start()
    bob = Daemon(folder / "bob", ["--bootstrap", ada.address], cold=True).start()
    try:
        yield ada, bob
    finally:
        ada.stop()
        bob.stop()


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("document") / "doc.txt"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize("name", ["dense", "sliding"])
def test_one_publishes_and_another_answers_from_it(
    nodes: tuple[Daemon, Daemon], models: dict[str, Path], document: Path, name: str
) -> None:
    ada, bob = nodes
    model = str(models[name])
    made = last_json(kvswap(ada.home, "publish", str(document), "--model", model, "--json"))
    assert made["model"] == name and made["tokens"] > 500 and made["document"].startswith("sha256:")
    again = last_json(kvswap(ada.home, "publish", str(document), "--model", model, "--json"))
    assert again["reused"] and again["artifact"] == made["artifact"]

    shown = last_json(kvswap(ada.home, "show", made["artifact"], "--json"))
    assert shown["engine"]["engine"] == "llama.cpp" and shown["extensions"] == ["engine"]
    assert shown["numerics"]["claim"] == ("bitwise" if name == "dense" else "tolerance")

    kvswap(bob.home, "trust", "add", ada.publisher)
    asked = ("ask", str(document), "What is the 7th thing?", "--model", model, "--max-tokens", "8", "--ignore-eos")
    own = last_json(kvswap(bob.home, *asked, "--prefill", "--json"))
    assert own["artifact"] is None and own["fetched_tokens"] == 0
    answer = last_json(kvswap(bob.home, *asked, "--force", "--json"))
    assert answer["artifact"] == made["artifact"], answer["plan"]
    assert answer["fetched_tokens"] == answer["tokens"] == made["tokens"] and answer["computed_tokens"] == 0
    assert answer["claim"] == "bitwise"  # the same build on the same machine
    assert len(answer["token_ids"]) == len(own["token_ids"]) == 8
    if name == "dense":
        assert answer["token_ids"] == own["token_ids"] and answer["text"] == own["text"]
    assert last_json(kvswap(bob.home, *asked, "--force", "--json"))["token_ids"] == answer["token_ids"]


def test_a_document_that_nobody_offers_is_prefilled_and_the_plan_says_why(
    nodes: tuple[Daemon, Daemon], models: dict[str, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("Nobody has this. " * 30)
    asked = ("ask", str(other), "Why?", "--model", str(models["dense"]), "--max-tokens", "2", "--ignore-eos", "--json")
    answer = last_json(kvswap(nodes[1].home, *asked))
    assert answer["artifact"] is None and answer["plan"]["action"] == "prefill" and answer["plan"]["reason"]
    assert len(answer["token_ids"]) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("publish", "DOC", "--model", "nothing.gguf"), 5, "no model nothing.gguf"),
        (("publish", "DOC", "--model", "DENSE", "--truncate"), 2, "--truncate"),
        (("publish", "DOC", "--model", "DENSE", "--codec", "int8"), 2, "int8"),
        (("ask", "DOC", "What?", "--model", "smollm2-135m"), 2, "no GGUF file"),
        (("ask", "DOC", "What?", "--model", "DENSE", "--host", "auto"), 2, "--host"),
        (("ask", "sha256:" + "0" * 64, "What?", "--model", "DENSE"), 2, "given as its file"),
    ],
)
def test_what_cannot_be_done_with_a_gguf_is_refused_by_name(
    nodes: tuple[Daemon, Daemon],
    models: dict[str, Path],
    document: Path,
    arguments: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    places = {"DOC": str(document), "DENSE": str(models["dense"])}
    done = kvswap(nodes[0].home, *(places.get(a, a) for a in arguments))
    assert done.returncode == code and said in done.stderr
