"""The tokens that an artifact has to consist of, as far as a reader can know: from the text, or read from layer 0."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvswap.artifact import chain
from kvswap.artifact.manifest import Manifest
from kvswap.artifact.tensors import LayerTensors
from kvswap.core.errors import Incompatible, IntegrityError
from kvswap.core.limits import LIMITS
from kvswap.core.text import printable


@dataclass(frozen=True, slots=True)
class DocumentTokens:
    """The token ids that the manifest signs, or the reason why they are not known.

    `contradicted` is True if they are not known because the manifest contradicts itself, as far as this reader can
    tell.
    `read_back` is True if they were read from layer 0.  `rules` is the reason why this reader's tokens may not be those
    of the model's files.  `signed` is True if the contradiction is between signed values alone, whatever any reader
    makes of the text.
    """

    ids: Sequence[int] | None
    why: str = ""
    contradicted: bool = False
    read_back: bool = False
    rules: str = ""
    signed: bool = False


def rules_of(manifest: Manifest) -> str:
    """Return which special rules a manifest's tokens were made by, in words; empty if every reader makes the same."""
    if manifest.prefix.template is not None:
        return f"its tokens were made by rules of its own ({printable(manifest.prefix.template)[:80]})"
    if not manifest.prefix.special_tokens:
        return "its tokens were made without the special tokens of the model"
    return ""


def of_text(loaded: Any, manifest: Manifest, text: str) -> DocumentTokens:
    """Compare a text with the manifest: its tokens are confirmed by the signed token digest.

    They are refuted only if the text has the signed document digest, so that it is certainly the document's.
    """
    from kvswap.model.tokenizing import departure

    prefix, document = manifest.prefix, manifest.document
    same = document is not None and hashlib.sha256(text.encode()).digest() == document.sha256
    if document is not None and not same:
        return DocumentTokens(None, "the text that was given is not the document's")
    if rules := rules_of(manifest):
        return DocumentTokens(None, rules)
    ids = loaded.tokenize(text)
    if chain.token_digest(ids[: prefix.tokens]) != prefix.token_digest:
        if document is None:
            return DocumentTokens(None, "a private document, and the text that was given does not have its tokens")
        why = "the manifest's tokens are not those of the text"
        return DocumentTokens(None, why, contradicted=True, rules=departure(loaded.tokenizer, text))
    if len(ids) > prefix.tokens and prefix.tokens + prefix.block_tokens + 2 * LIMITS.probe_tokens <= loaded.context:
        return DocumentTokens(
            None, f"it holds the first {prefix.tokens} of the document's {len(ids)} tokens, not all that fit"
        )
    return _chained(manifest, ids[: prefix.tokens])


def _chained(manifest: Manifest, ids: Sequence[int], *, read_back: bool = False) -> DocumentTokens:
    """Return these ids, which have the signed token digest, if the signed chain digests are theirs as well.

    By its chain digests alone an artifact is found, and used, as a prefix of other documents.
    """
    prefix, cuts = manifest.prefix, manifest.layout.checkpoints
    if chain.chain_digests(manifest.model.digest, ids, prefix.block_tokens, cuts) != prefix.chain:
        why = "the manifest's chain is not of the tokens whose digest it signs"
        return DocumentTokens(None, why, contradicted=True, read_back=read_back, signed=True)
    return DocumentTokens(ids, read_back=read_back)


def of_prefix(loaded: Any, manifest: Manifest, text: str, tokens: int) -> DocumentTokens:
    """Return the first `tokens` tokens of a text if the manifest's prefix starts with them."""
    prefix = manifest.prefix
    ids = loaded.tokenize(text)[:tokens]
    made = chain.chain_digests(manifest.model.digest, ids, prefix.block_tokens, manifest.layout.checkpoints)
    if len(ids) < tokens or made != prefix.chain[: len(made)]:
        return DocumentTokens(None, "the text that was given does not begin with the artifact's tokens")
    return DocumentTokens(ids)


def of_layer(loaded: Any, manifest: Manifest, first: LayerTensors | None) -> DocumentTokens:
    """Return the document's tokens as read back from layer 0."""
    from kvswap.model.readback import read_document

    prefix, document = manifest.prefix, manifest.document
    if document is None:
        return DocumentTokens(None, "a private document, and its text was not given")
    if rules := rules_of(manifest):
        return DocumentTokens(None, rules)
    if first is None or manifest.layout.layers[0].has_states:
        return DocumentTokens(None, "the text was not given, and the tokens cannot be read back from states")
    if first.first:
        return DocumentTokens(None, "the text was not given, and layer 0 keeps only a window of it")
    try:
        ids = read_document(loaded, first, prefix.token_digest, document.sha256)
    except Incompatible as error:
        return DocumentTokens(None, f"{error.message} ({error.hint})")
    except IntegrityError as error:
        return DocumentTokens(None, error.message, contradicted=True, read_back=True)
    return _chained(manifest, ids, read_back=True)
