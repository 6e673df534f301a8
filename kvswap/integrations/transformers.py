"""`generate()` from a fetched cache, with its pitfalls handled.

`model.generate` wants the *full* ids and a mask of the same length, and at least one token that is
not in the cache.  `inputs_after` builds them.

>>> cache, report = node.get_cache(text, model, tokenizer)                         # doctest: +SKIP
>>> question = question_text(tokenizer, "What is it about?")                     # doctest: +SKIP
>>> out = model.generate(**inputs_after(text, question, tokenizer, cache, model.device),
...                      max_new_tokens=64)                                     # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

from kvswap.core.errors import Incompatible, InvalidDocument
from kvswap.model.load import continuation_ids, document_ids
from kvswap.model.question import question_text
from kvswap.model.ready import load_model

__all__ = ["inputs_after", "load_model", "question_text"]


def inputs_after(text: str, question: str, tokenizer: Any, cache: Any, device: Any = "cpu") -> dict[str, Any]:
    """Return the keyword arguments for `generate`: ids of document and question, their mask, and the cache.

    `cache` has to hold the whole document.  `generate` consumes it: load it again, or deep-copy it, for another
    question. After a cache of states alone (Mamba 2) the ids are those of the question, as such a cache does not count
    its tokens. Raises `InvalidDocument` for an empty question, `Incompatible` for a cache of another length.
    """
    import torch

    from kvswap.model.cache import caching_layers
    from kvswap.model.layers import tokens_in
    from kvswap.model.passing import OF_STATES, USUAL

    document, following = document_ids(tokenizer, text), continuation_ids(tokenizer, question)
    if not following:
        raise InvalidDocument("the question has no tokens")
    counted = [held for layer in caching_layers(cache) if (held := tokens_in(layer)) is not None]
    if not counted:  # states alone: `generate` would go through all ids again, on top of the document's states
        question_ids = torch.tensor([following], device=device)
        return {"input_ids": question_ids, "attention_mask": torch.ones_like(question_ids), OF_STATES: cache}
    held = max(counted)
    if held != len(document):
        raise Incompatible(f"the cache holds {held} tokens, the document has {len(document)}", field="prefix.tokens")
    ids = torch.tensor([document + following], device=device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), USUAL: cache}
