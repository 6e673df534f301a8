"""The part of an accusation's grounds that the model process can determine (see `trust.accusation`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from kvswap.artifact.manifest import Manifest
from kvswap.core.errors import Incompatible, InvalidDocument, KvswapError
from kvswap.model import precision
from kvswap.trust.accusation import Grounds, comparable, judge
from kvswap.trust.levels import LevelResult
from kvswap.worker.document import DocumentTokens, rules_of

_TOKENISING = ("transformers",)  # beside the tokenizer's files, all that the tokens of a text depend on


def static(loaded: Any, identity: bytes, manifest: Manifest, document: DocumentTokens) -> Grounds:
    """Return the grounds that need no computation; `source` and `control` are left open."""
    if document.signed:  # two signed digests of the same ids: neither a model nor a tokenizer comes into it
        return Grounds(text="", weights="", numerics="", rules="")
    environment, less = loaded.numerics(), precision.reduced(loaded.device)
    names: Sequence[str] = ()
    if document.contradicted and not document.read_back:
        names = _TOKENISING
    return Grounds(
        text="" if document.ids is not None or document.contradicted else document.why,
        weights=_weights(loaded, identity, manifest),
        numerics=f"{less[0]}: this reader computes in reduced precision"
        if less
        else comparable(manifest.numerics, environment, *([names] if names else [])),
        rules=rules_of(manifest) or document.rules,
    )


def _weights(loaded: Any, identity: bytes, manifest: Manifest) -> str:
    """Return why the model in memory may not be the manifest's, in words; empty if it is.

    It is compared with the model's files now, as it may have been changed since it was loaded.
    """
    from kvswap.model.live import live_identity

    if identity != manifest.model.digest:
        return "this reader has another model"
    try:
        live = live_identity(loaded.model)
    except KvswapError as error:
        return f"this reader's model cannot be compared with its files: {error.message}"
    return "" if live == manifest.model.digest else "this reader's model is not that of its files any more"


def judged(
    look: Callable[[], LevelResult],
    grounds: Callable[[], Grounds],
    again: Callable[[], None],
    control: Callable[[], str],
) -> LevelResult:
    """Run a check; if it fails, run it a second time, and judge whether that failure proves a fault of the publisher.

    `again` reads the values from the signed bytes once more.  `control` runs the check on this reader's own cache of
    the same tokens, and returns why that does not pass, or empty.
    """
    result = look()
    if result.verdict != "failed":
        return result
    try:
        again()
    except KvswapError as error:  # for a cache that was computed in part, not every chunk is here
        return judge(result, replace(grounds(), source=f"the signed bytes cannot be read again: {error.message}"))
    result = look()
    if result.verdict != "failed":
        return result
    found = replace(grounds(), source="")
    if found.lacking == (found.control,):  # all else holds: then the control is worth its computation
        found = replace(found, control=_controlled(control))
    return judge(result, found)


def _controlled(control: Callable[[], str]) -> str:
    try:
        return control()
    except (Incompatible, InvalidDocument) as error:  # not finite here either, or too long to compute
        return f"this reader's own cache of the same tokens: {error.message}"
